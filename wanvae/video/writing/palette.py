"""Pictures of 256 colours: each gets the palette that suits it best."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter import Graph

from wanvae.video.graphs import results_of

# Of the kinds of FFmpeg that leave small errors where eyes average, the one without wrong pixels.
_DITHER = "dither=sierra2"


class Palettes:
    """Turns RGB pictures of one size into pictures with palettes."""

    def __init__(self, width: int, height: int, time_base: Fraction) -> None:
        graph = self._graph = Graph()
        rgb = av.VideoFormat("rgb24")
        source = graph.add_buffer(width=width, height=height, format=rgb, time_base=time_base)
        split = graph.add("split")
        generate = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        use = graph.add("paletteuse", f"new=1:{_DITHER}")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(generate, 1, 0)
        generate.link_to(use, 0, 1)
        use.link_to(graph.add("buffersink"))
        graph.configure()

    def push(self, picture: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Takes the next picture, or None at the end, and yields pictures that are ready."""
        self._graph.push(picture)
        for ready in results_of(self._graph):
            assert isinstance(ready, av.VideoFrame)
            yield ready
