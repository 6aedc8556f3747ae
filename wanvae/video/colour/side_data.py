"""Data beside the samples of a frame, such as its rotation or the brightness of its display."""

from __future__ import annotations

from fractions import Fraction

import av
from av.filter import Graph
from av.sidedata.sidedata import Type

# How many of FFmpeg's kinds of data after the last kind that PyAV knows are taken off a frame.
_NEWER_KINDS = 16


def side_data_of(frame: av.VideoFrame, kind: str) -> bytes | None:
    """Returns the data of a kind, by its name in PyAV, such as "DISPLAYMATRIX"; None without it."""
    data = _readable(frame).side_data.get(kind)
    return None if data is None else bytes(data)


def _readable(frame: av.VideoFrame) -> av.VideoFrame:
    """Returns the frame without the data that PyAV cannot read.

    These are data of kinds that PyAV has no name for, such as EXIF, and colour profiles: FFmpeg
    notes the name of a profile beside it, and PyAV frees these notes a second time, which ends the
    process. So nothing may look at ``side_data`` of a frame that is not from here.
    """
    newest = max(kind.value for kind in Type)
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    for kind in (Type.ICC_PROFILE.value, *range(newest + 1, newest + 1 + _NEWER_KINDS)):
        following = graph.add("sidedata", mode="delete", type=str(kind))
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    stripped = graph.pull()
    assert isinstance(stripped, av.VideoFrame)
    return stripped
