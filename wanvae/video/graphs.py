"""FFmpeg's graphs of filters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from av import AudioFrame, VideoFrame
from av.error import BlockingIOError, EOFError
from av.filter import Graph


def results_of(graph: Graph) -> Iterator[VideoFrame | AudioFrame]:
    """Yields the frames that a graph has ready.

    Raises:
        FFmpegError: a filter fails.
    """
    with suppress(BlockingIOError, EOFError):  # it needs more frames, or has ended
        while True:
            yield graph.pull()
