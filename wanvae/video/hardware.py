"""Devices that decode video instead of the CPU, where FFmpeg has them."""

from __future__ import annotations

from av.codec.hwaccel import HWAccel, hwdevices_available

from wanvae.video.common import VideoError


def hardware_decoding(name: str) -> HWAccel:
    """Returns what opens a file so that a device decodes it, as far as it can.

    Args:
        name: FFmpeg's name of a kind of device, like "cuda"; after a colon, which device.

    Raises:
        VideoError: this FFmpeg has no such kind.
    """
    kind, _, device = name.partition(":")
    known = hwdevices_available()
    if kind not in known:
        has = f"it has {', '.join(known)}" if known else "it has none; leave out --hwaccel"
        raise VideoError(f"this FFmpeg has no hardware decoding {kind!r}: {has}")
    return HWAccel(kind, device=device or None, allow_software_fallback=True)
