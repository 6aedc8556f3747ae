"""Costs of plans: multiply-adds, and how much each layer reads and writes for each tile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

import torch

from wanvae.execution.flow import STEP_PIXELS, STEP_PIXELS_OF_GPU
from wanvae.execution.network import Network
from wanvae.execution.plan import Plan, cut_into_spans, shrink
from wanvae.nn import Streaming
from wanvae.nn.region import Region, Span, make_whole_region
from wanvae.nn.sequential import trace_regions

# How many positions each tiled layer reads and writes along an axis, in the order layers run.
Lengths: TypeAlias = "dict[Streaming, tuple[int, int]]"
# Latents to a border that nothing at a span sees.
FAR = 2**16


@dataclass(frozen=True)
class Workload:
    """The input to plan for.

    Attributes:
        batch: clips at once.
        channels: channels of the input: of the video to encode, or of the latents to decode.
        latents: length of the clip in latents; None is a stream without end.
        height, width: size of the frames in pixels.
        dtype: dtype to compute in.
        offloads: whether the device is a GPU: then states can wait outside of its memory.
        rehearsal: what runs on this GPU, as ``wanvae.nn.kernels.dispatch.find_rehearsal`` says.
    """

    batch: int
    channels: int
    latents: int | None
    height: int
    width: int
    dtype: torch.dtype
    offloads: bool = False
    rehearsal: str = "cuda"

    @property
    def step_pixels(self) -> int:
        """Pixels at full resolution that keep the device busy."""
        return STEP_PIXELS_OF_GPU if self.offloads else STEP_PIXELS


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis of a frame.

    Attributes:
        largest: the span for which layers read and write most.
        lengths: how many positions each tiled layer reads and writes for that span.
        written: how many positions each tiled layer writes for all spans.
    """

    largest: Span
    lengths: Lengths
    written: dict[Streaming, int]


class Costs:
    """The costs of plans of a network. The network may be on the meta device."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._find_lengths = cache(partial(find_lengths_along, network))
        self._halo = cache(partial(find_halo, network))
        self._axis = cache(self._find_axis)
        self._whole_frames = cache(self._find_whole_frames)
        self._work = cache(count_multiply_adds)

    def lengths(self, span: Span, split_core: bool) -> Lengths:
        """Returns how many positions each tiled layer reads and writes for a span in pixels."""
        halo, factor = self._halo(split_core), self._network.spatial_factor
        return self._find_lengths(bring_borders_near(span, halo, factor), split_core)

    def multiply_adds(self, workload: Workload, plan: Plan) -> int:
        """Returns the multiply-adds of ``plan`` as layers define them; fast algorithms need fewer.

        Raises:
            ValueError: the length of ``workload`` is not known.
        """
        if workload.latents is None:
            raise ValueError("a stream without end has no number of multiply-adds")
        heights: dict[Streaming, int] = {}
        widths: dict[Streaming, int] = {}
        if plan.tile_size is not None:
            heights, widths = (axis.written for axis in self._axes(workload, plan))
        total = 0
        of_whole_frames = self._whole_frames(workload.height, workload.width, workload.latents)
        for layer, (positions, frames) in of_whole_frames.items():
            if layer not in heights:
                total += self._work(layer, positions, frames)
            elif layer.resamples():
                total += layer.multiply_adds(heights[layer] * widths[layer], frames)
            else:
                # A layer that takes regions does the same work for each position.
                total += heights[layer] * widths[layer] * self._work(layer, 1, frames)
        return workload.batch * total

    def largest_tile(self, workload: Workload, plan: Plan) -> Region | None:
        """Returns the tile for which layers read and write most; None is the whole frame."""
        if plan.tile_size is None:
            return None
        rows, columns = (axis.largest for axis in self._axes(workload, plan))
        return rows, columns

    def largest_area(self, workload: Workload, plan: Plan) -> int:
        """Returns the positions of the largest tile with halo, in the layer with most positions."""
        if plan.tile_size is None:
            return workload.height * workload.width
        heights, widths = (axis.lengths.values() for axis in self._axes(workload, plan))
        return max(
            height * width
            for of_layer in zip(heights, widths, strict=True)
            for height, width in zip(*of_layer, strict=True)
        )

    def kind(self, tile: Region, plan: Plan) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Returns what layers read and write for a tile. If it is equal, memory is equal."""
        return tuple(tuple(self.lengths(span, plan.split_core).values()) for span in tile)

    def _axes(self, workload: Workload, plan: Plan) -> list[Axis]:
        """Returns the rows and the columns of the grid of tiles."""
        assert plan.tile_size is not None
        sides = zip((workload.height, workload.width), plan.tile_size, strict=True)
        return [self._axis(side, tile, plan.split_core) for side, tile in sides]

    def _find_axis(self, side: int, tile: int, split_core: bool) -> Axis:
        spans = cut_into_spans(side, tile, self._network.spatial_factor)
        lengths = {span: self.lengths(span, split_core) for span in spans}
        largest = max(spans, key=lambda span: sum(map(sum, lengths[span].values())))
        written = {
            layer: sum(each[layer][1] for each in lengths.values()) for layer in lengths[largest]
        }
        return Axis(largest, lengths[largest], written)

    def _find_whole_frames(
        self, height: int, width: int, latents: int
    ) -> dict[Streaming, tuple[int, int]]:
        """Returns for each layer the positions of a whole frame of output, and the input frames."""
        network = self._network
        scale = 1 if network.core_first else network.spatial_factor
        output = make_whole_region(height // scale, width // scale)
        found, frames = {}, network.count_input(latents)
        for layer, _, (rows, columns) in trace_regions(network.layers, output):
            found[layer] = rows.size * columns.size, frames
            frames = layer.count_output(frames, starts=True)
        return found


def count_multiply_adds(layer: Streaming, positions: int, frames: int) -> int:
    """Returns the multiply-adds of a layer."""
    return layer.multiply_adds(positions, frames)


def bring_borders_near(span: Span, halo: int, factor: int) -> Span:
    """Returns a span of a smaller image for which each layer has the same lengths.

    Args:
        halo: how far layers read beyond a span; borders that are farther away change nothing.
        factor: the span moves by a multiple of this.
    """
    cut = max(0, span.start - halo) // factor * factor
    cut_after = max(0, span.size - span.stop - halo) // factor * factor
    return Span(span.start - cut, span.stop - cut, span.size - cut - cut_after)


def find_halo(network: Network, split_core: bool) -> int:
    """Returns how many pixels beyond a span the tiled layers read at most."""
    start, halo = FAR * network.spatial_factor, 0
    span = Span(start, start + network.spatial_factor, 2 * start + network.spatial_factor)
    for part in network.parts(split_core=split_core):
        if not part.whole:
            for _, (read, _), _ in trace_regions(part.layers, shrink((span, span), part.scale)):
                pixels = span.size // read.size
                halo = max(halo, span.start - read.start * pixels, read.stop * pixels - span.stop)
    return halo


def find_lengths_along(network: Network, span: Span, split_core: bool) -> Lengths:
    """Returns how many positions each tiled layer reads and writes for a span in pixels."""
    lengths: Lengths = {}
    for part in network.parts(split_core=split_core):
        if not part.whole:
            output = shrink((span, span), part.scale)
            for layer, (read, _), (rows, _) in trace_regions(part.layers, output):
                lengths[layer] = len(read), len(rows)  # kernels are square
    return lengths
