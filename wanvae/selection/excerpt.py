"""The part of a video that clips are cut from."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from wanvae.selection.bars import Box

# Seconds by which a time that is written as a float may be off.
ROUNDING = Fraction(1, 10**10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """A scene of a video, inside its black bars.

    Attributes:
        first: number of the first frame.
        begin: seconds from the first frame of the video to the first frame of the scene.
        until: seconds to the end of the last frame of the scene.
        box: the picture inside the bars; None keeps whole frames.
        whole: height and width of whole frames.
    """

    first: int
    begin: float
    until: float
    box: Box | None
    whole: tuple[int, int]

    def describe(self, frames: int) -> str:
        """Returns the first frame, the number of ``frames`` and the box, like 0+9 64x96+8+0."""
        box = self.box
        inside = "" if box is None else f" {box.height}x{box.width}+{box.top}+{box.left}"
        return f"{self.first}+{frames}{inside}"
