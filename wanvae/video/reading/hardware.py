"""Devices that decode video instead of the CPU, where FFmpeg has them."""

from __future__ import annotations

from contextlib import suppress

import av
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.error import FFmpegError

from wanvae.video.common import VideoError, reason

# The codec that most devices decode.
_WIDESPREAD = "h264"


def check_hardware(name: str | None) -> None:
    """Raises the error of ``hardware_decoding`` once, and not for each video; None is the CPU."""
    if name is not None:
        hardware_decoding(name)


def hardware_decoding(name: str) -> HWAccel:
    """Returns what opens a file so that a device decodes it, as far as it can.

    Args:
        name: FFmpeg's name of a kind of device, like "cuda"; after a colon, which device.

    Raises:
        VideoError: this FFmpeg has no such kind, or the device cannot be used.
    """
    kind, _, device = name.partition(":")
    known = hwdevices_available()
    if kind not in known:
        has = f"it has {', '.join(known)}" if known else "it has none; leave out --hwaccel"
        raise VideoError(f"this FFmpeg has no hardware decoding {kind!r}: {has}")
    decoding = HWAccel(kind, device=device or None, allow_software_fallback=True)
    with suppress(NotImplementedError):  # such devices may decode other codecs
        try:
            decoding.create(av.Codec(_WIDESPREAD, "r"))
        except FFmpegError as error:
            raise VideoError(
                f"the device {name!r} for hardware decoding cannot be used ({reason(error)}); name "
                "another, or leave out --hwaccel to decode on the CPU"
            ) from error
    return decoding
