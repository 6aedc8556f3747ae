"""How a picture is turned and mirrored to be upright, as a file says."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import torch
from av.filter import Graph
from av.sidedata.sidedata import Type

# How many of FFmpeg's kinds of data after the last kind that PyAV knows are taken off a frame.
_NEWER_KINDS = 16


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
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # the frame has data of a kind that this PyAV does not know, such as EXIF
        matrix = _without_unknown_data(frame).side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation(False, ())
    # Nine numbers: right' = a * right + c * down and down' = b * right + d * down.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    right, down = (c, b) if transposed else (a, d)
    return Orientation(transposed, (-2,) * (down < 0) + (-1,) * (right < 0))


def _without_unknown_data(frame: av.VideoFrame) -> av.VideoFrame:
    """Returns the frame without the data of kinds that PyAV has no name for."""
    newest = max(kind.value for kind in Type)
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    for kind in range(newest + 1, newest + 1 + _NEWER_KINDS):
        following = graph.add("sidedata", mode="delete", type=str(kind))
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    stripped = graph.pull()
    assert isinstance(stripped, av.VideoFrame)
    return stripped
