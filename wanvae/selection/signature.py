"""What a frame looks like in 64 bits, and how it moves in 64 others.

The bits are signs of the lowest frequencies of the picture (a perceptual hash), and of its
difference from an earlier picture. They hardly change when a video is scaled,
encoded again or framed with bars. Pictures of one background and another movement have other bits
of movement.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray

# Pixels per side of the picture that is transformed, and frequencies per side.
SIDE, FREQUENCIES = 32, 8
# A movement is the difference from the picture so many signatures earlier.
EARLIER = 2
# Pictures of less contrast have no bits, nor have smaller movements; in levels of 255.
LEAST_CONTRAST, LEAST_MOVEMENT = 6.0, 1.0
# Rows at an edge that are darker than this are a bar.
BLACK = 30.0

COSINES = np.cos(
    pi / SIDE * np.outer(np.arange(FREQUENCIES), np.arange(SIDE) + 0.5), dtype=np.float64
).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Signature:
    """The bits of a frame. 0 means that there are none.

    Attributes:
        picture: what it looks like.
        movement: how it differs from an earlier frame.
    """

    picture: int
    movement: int


class Signer:
    """Gives frames of one scene their signatures."""

    def __init__(self) -> None:
        self._before: deque[NDArray[np.float32]] = deque(maxlen=EARLIER)

    def sign(self, luma: NDArray[np.uint8]) -> Signature:
        """Returns the signature of the next frame ``(H, W)``, a small picture with its bars."""
        picture = scaled(without_bars(luma.astype(np.float32)))
        movement = 0
        if len(self._before) == EARLIER:
            before = self._before[0]
            step = picture - picture.mean() - (before - before.mean())
            movement = bits_of(step) if step.std() >= LEAST_MOVEMENT else 0
        self._before.append(picture)
        return Signature(bits_of(picture) if picture.std() >= LEAST_CONTRAST else 0, movement)


def bits_of(picture: NDArray[np.float32]) -> int:
    """Returns a bit for each of 63 frequencies: whether it is above the median of all."""
    frequencies = (COSINES @ picture @ COSINES.T).ravel()[1:]
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(np.append(bits, True)).tobytes(), "big")


def without_bars(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a picture without the black rows and columns at its edges."""
    for axis in (1, 0):
        level = luma.mean(axis)
        lit = np.flatnonzero(level > BLACK)
        if len(lit) < len(level) / 4:
            return luma
        first, last = int(lit[0]), int(lit[-1])
        # A row that is half bar and half picture.
        first += 0 < first < last and level[first] < 0.6 * level[first + 1]
        last -= len(level) - 1 > last > first and level[last] < 0.6 * level[last - 1]
        luma = luma[first : last + 1] if axis == 1 else luma[:, first : last + 1]
    return luma


def scaled(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a picture with ``SIDE`` pixels per side, each the mean of the area that it covers."""
    down, right = (areas(length) for length in luma.shape)
    return down @ luma @ right.T


def areas(length: int) -> NDArray[np.float32]:
    """Returns ``(SIDE, length)``: the share that each pixel has in the mean over an area."""
    edges = np.linspace(0, length, SIDE + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares = overlap.clip(0)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)
