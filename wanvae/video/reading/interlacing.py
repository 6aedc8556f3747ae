"""Interlaced frames, whose lines are of two times, to frames of one time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeAlias

from av import VideoFrame
from av.filter import Graph

from wanvae.video.graphs import results_of

# A frame and its time in seconds.
Timed: TypeAlias = tuple[Fraction, VideoFrame]


def deinterlaced(timed: Iterable[Timed]) -> Iterator[Timed]:
    """Yields the frames with their times. Interlaced frames get all lines of their first field.

    The lines of the second field are computed from the frame and its two neighbours, by FFmpeg's
    bwdif. Frames that are not marked as interlaced stay as they are.
    """
    waiting: deque[Timed] = deque()
    graph: Graph | None = None
    layout: tuple[int, int, str] | None = None
    for time, frame in timed:
        now = frame.width, frame.height, frame.format.name
        if graph is None or now != layout:
            yield from _results(graph, None, waiting)
            graph, layout = _build(frame), now
        waiting.append((time, frame))
        yield from _results(graph, frame, waiting)
    yield from _results(graph, None, waiting)


def _build(frame: VideoFrame) -> Graph:
    """Returns a graph for frames of one layout, which gives one frame for each."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    filling = graph.add("bwdif", mode="send_frame", parity="auto", deint="interlaced")
    graph.link_nodes(source, filling, graph.add("buffersink")).configure()
    return graph


def _results(
    graph: Graph | None, frame: VideoFrame | None, waiting: deque[Timed]
) -> Iterator[Timed]:
    """Yields what a graph has finished after a frame, or after its end, which is None.

    Args:
        waiting: the frames that the graph was given and has not returned.
    """
    if graph is None:
        return
    if frame is not None:
        frame.pts, frame.time_base = len(waiting), Fraction(1)
    graph.push(frame)
    for result in results_of(graph):
        assert isinstance(result, VideoFrame)
        time, given = waiting.popleft()
        # Filters know colours by the properties of their graph.
        result.colorspace, result.color_range = given.colorspace, given.color_range
        result.color_trc, result.color_primaries = given.color_trc, given.color_primaries
        yield time, result
