"""What a file holds that is not in the frames that are read: one sentence for each kind."""

from __future__ import annotations

from fractions import Fraction

import av

from wanvae.video.colour import Colours
from wanvae.video.common import HdrWarning, Notices
from wanvae.video.packets import PacketSource

# How far from square pixels are before anyone sees it.
_SQUARE = Fraction(1, 100)


class Losses:
    """Tells what of a file is lost, once for each kind, as far as its frames are read."""

    def __init__(self, source: PacketSource, notices: Notices, *, alpha: bool = False) -> None:
        self._source = source
        self._notices = notices
        self._begun = False
        # Nothing is left out where alpha is read, and nothing is told twice.
        self._transparent = alpha

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
                "moves; deinterlace it first"
            )
        if not self._transparent and (self._source.drops_alpha or _is_transparent(frame)):
            self._transparent = True
            self._notices.tell(
                "it is transparent in places; transparency is left out, and shows the colours that "
                "the file has there"
            )

    def _tell_of_file(self, frame: av.VideoFrame) -> None:
        ratio = self._source.stream.sample_aspect_ratio
        if ratio and abs(ratio - 1) > _SQUARE:
            self._notices.tell(
                f"its pixels are not square ({ratio.numerator}:{ratio.denominator}), and are read "
                "as if they were; players stretch them"
            )
        if self._source.pictures > 1:
            self._notices.tell(
                f"it holds {self._source.pictures} videos or pictures; the one of {frame.width}x"
                f"{frame.height} pixels is read, and the others (such as transparency) are left out"
            )


def has_alpha(frame: av.VideoFrame) -> bool:
    """Returns whether a frame has alpha, or a palette, which may have it."""
    layout = frame.format
    return layout.has_palette or any(part.is_alpha for part in layout.components)


def _is_transparent(frame: av.VideoFrame) -> bool:
    """Whether any pixel is not opaque."""
    return has_alpha(frame) and bool(frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255)
