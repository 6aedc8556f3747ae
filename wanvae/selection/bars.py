"""Finds black bars around the picture of a video, as letterboxes have them.

A row belongs to a bar if it is black in all frames that are looked at, over its whole width, and if
the picture begins behind it with a step. So noise does not hide a bar, a dark picture is no bar,
and a bar stays up to the subtitles in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# The highest mean and standard deviation of a row of a bar, in levels of 255.
BLACKEST, EVENEST = 24.0, 8.0
# How far the levels of the rows of one bar may be from each other.
ALIKE = 4.0
# How much lighter than the bar the picture must be, within so many rows.
STEP, STEP_WITHIN = 12.0, 4
# A frame that is nowhere lighter than this tells nothing.
LIT = 48.0
# Bars of fewer pixels stay, and so do bars that leave less than this share of a side.
THINNEST, LEAST_LEFT = 2, 0.3
# The picture begins so many pixels inside of its first light row, which is often half black.
INSET = 1


@dataclass(frozen=True, slots=True)
class Box:
    """The part of a frame that is not bars, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut_out(self, frames: Tensor) -> Tensor:
        """Returns this part of frames ``(..., H, W)``."""
        rows, columns = self.top + self.height, self.left + self.width
        return frames[..., self.top : rows, self.left : columns]

    def scaled(self, whole: tuple[int, int], size: tuple[int, int]) -> Box:
        """Returns the same part of frames of another size.

        Args:
            whole: height and width of the frames that the box is part of.
            size: height and width of the other frames.
        """
        rows, columns = (wanted / own for own, wanted in zip(whole, size, strict=True))
        top, left = round(self.top * rows), round(self.left * columns)
        bottom = max(top + 1, round((self.top + self.height) * rows))
        right = max(left + 1, round((self.left + self.width) * columns))
        return Box(top, left, bottom - top, right - left)


class BarDetector:
    """Finds the bars of one video from some of its frames."""

    def __init__(self) -> None:
        self._levels: list[NDArray[np.float32]] = []
        self._spreads: list[NDArray[np.float32]] = []

    def add(self, luma: NDArray[np.uint8]) -> None:
        """Adds a frame ``(H, W)``, upright, in levels of 255. All have one size."""
        # Every second pixel of a row tells enough of it.
        lines = luma[:, ::2].T.astype(np.float32), luma[::2].astype(np.float32)
        levels = [pixels.mean(0) for pixels in lines]
        if max(level.max() for level in levels) < LIT:
            return
        spreads = [pixels.std(0) for pixels in lines]
        if self._levels:
            levels = list(map(np.maximum, self._levels, levels))
            spreads = list(map(np.maximum, self._spreads, spreads))
        self._levels, self._spreads = levels, spreads

    def finish(self) -> Box | None:
        """Returns the picture inside the bars; None without bars."""
        if not self._levels:
            return None
        ranges = []
        for level, spread in zip(self._levels, self._spreads, strict=True):
            first = bar_length(level, spread)
            end = len(level) - bar_length(level[::-1], spread[::-1])
            # Even, for codecs that store colours for every second pixel.
            first, end = first + first % 2, end - end % 2
            if end - first < LEAST_LEFT * len(level):
                return None
            ranges.append((first, end))
        (top, bottom), (left, right) = ranges
        box = Box(top, left, bottom - top, right - left)
        whole = tuple(len(level) - len(level) % 2 for level in self._levels)
        return None if (box.height, box.width) == whole else box


def bar_length(level: NDArray[np.float32], spread: NDArray[np.float32]) -> int:
    """Returns how many rows from the first on belong to a bar, and to its edge."""
    lit = np.flatnonzero((level > BLACKEST) | (spread > EVENEST))
    length = int(lit[0]) if len(lit) else 0
    if length < THINNEST:
        return 0
    # The rows at the edge may be mixed with the picture.
    bar = level[: max(1, length - 2)]
    behind = level[length : length + STEP_WITHIN]
    if np.ptp(bar) > ALIKE or behind.max() < bar.mean() + STEP:
        return 0
    return length + INSET
