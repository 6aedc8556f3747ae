"""What of a file is not in the frames that are read, or is changed: one sentence for each kind."""

from __future__ import annotations

import av

from wanvae.video.colour.colours import Colours
from wanvae.video.common import HdrWarning, Notices
from wanvae.video.reading.aspect import ratio_text, square_size
from wanvae.video.reading.background import Colour, name_of
from wanvae.video.reading.packets import PacketSource


class Losses:
    """Tells what of a file is lost or changed, once for each kind, as far as its frames are read.

    Args:
        source: the file.
        background: the colour behind transparent pictures; None if alpha is read.
    """

    def __init__(self, source: PacketSource, notices: Notices, background: Colour | None) -> None:
        self._source = source
        self._notices = notices
        self._background = background
        self._begun = False

    def tell(self, frame: av.VideoFrame, colours: Colours) -> None:
        """Tells what of the next frame is lost."""
        if not self._begun:
            self._begun = True
            self._tell_of_file(frame)
        if colours.name is not None:
            self._notices.tell(colours.conversion, kind=HdrWarning)
        if frame.interlaced_frame:
            self._notices.tell(
                "it is interlaced, and read as it is: lines of two times alternate where something "
                "moves; deinterlace it first, or read it with --deinterlace (in Python, with "
                "ReadOptions)"
            )

    def tell_transparency(self) -> None:
        """Tells on what transparent pictures are laid."""
        if self._background is None:
            return
        colour = name_of(self._background)
        self._notices.tell(
            f"it is transparent in places, and is laid on {colour}; name another colour with "
            "--background (in Python, with ReadOptions)"
        )

    def _tell_of_file(self, frame: av.VideoFrame) -> None:
        self._tell_of_pixels(frame.width, frame.height)
        if self._source.drops_alpha:
            self._notices.tell(
                "its transparency is left out, because this FFmpeg has no decoder for it"
            )
        if self._source.pictures > 1:
            self._notices.tell(
                f"it holds {self._source.pictures} videos or pictures; the one of {frame.width}x"
                f"{frame.height} pixels is read, and the others (such as transparency) are left out"
            )

    def _tell_of_pixels(self, width: int, height: int) -> None:
        ratio = self._source.pixel_ratio
        if ratio is None or (square := square_size(width, height, ratio)) == (width, height):
            return
        self._notices.tell(
            f"its pixels are not square ({ratio_text(ratio)}); its pictures of "
            f"{width}x{height} are scaled to {square[0]}x{square[1]}, as players show them"
        )


def has_alpha(frame: av.VideoFrame) -> bool:
    """Returns whether a frame has alpha, or a palette, which may have it."""
    layout = frame.format
    return layout.has_palette or any(part.is_alpha for part in layout.components)
