"""How a picture is turned and mirrored to be upright, as a file says."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import av
import torch

from wanvae.video.colour.side_data import side_data_of


@dataclass(frozen=True)
class Orientation:
    """What makes a stored picture upright. The picture is transposed first.

    Attributes:
        transposed: rows become columns.
        flips: axes of ``(..., H, W)`` along which the picture is then mirrored.
    """

    transposed: bool
    flips: tuple[int, ...]

    def stored_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width of the stored picture of an upright one."""
        return (width, height) if self.transposed else (height, width)

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        """Returns ``(..., H, W)`` upright."""
        upright = image.transpose(-1, -2) if self.transposed else image
        return upright.flip(self.flips) if self.flips else upright


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Returns the orientation in the display matrix of a frame, from a container or from EXIF.

    Other angles than multiples of a quarter turn become the nearest multiple.
    """
    matrix = side_data_of(frame, "DISPLAYMATRIX")
    if matrix is None:
        return Orientation(False, ())
    # Nine numbers: right' = a * right + c * down and down' = b * right + d * down.
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    right, down = (c, b) if transposed else (a, d)
    return Orientation(transposed, (-2,) * (down < 0) + (-1,) * (right < 0))
