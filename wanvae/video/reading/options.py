"""What people choose about the pictures that are read."""

from __future__ import annotations

from dataclasses import dataclass

from wanvae.video.common import VideoError
from wanvae.video.reading.background import Colour, parse_colour


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How pictures come out of a file.

    Attributes:
        deinterlace: give each interlaced frame all lines of one time, with FFmpeg's bwdif.
        background: what transparent pictures are laid on where alpha is not read; None takes black,
            as players do.
        hwaccel: the kind of device that decodes, with FFmpeg's name, like "cuda", or with a device,
            like "vaapi:/dev/dri/renderD128"; None decodes on the CPU. A codec that the device does
            not decode is decoded on the CPU, with a UserWarning; a VideoError if there is no such
            device.
    """

    deinterlace: bool = False
    background: Colour | None = None
    hwaccel: str | None = None


AS_STORED = ReadOptions()


def refuse_background(background: object, *, alpha: bool) -> None:
    """Raises VideoError if a model that encodes ``alpha`` is given a background."""
    if alpha and background is not None:
        raise VideoError("this model encodes alpha, so there is no background: leave it out")


def parse_options(*, deinterlace: bool, background: str | None, hwaccel: str | None) -> ReadOptions:
    """Returns options with a background of a name or a text like "#ff8000".

    Raises:
        VideoError: the background is no colour.
    """
    colour = None if background is None else parse_colour(background)
    return ReadOptions(deinterlace=deinterlace, background=colour, hwaccel=hwaccel)
