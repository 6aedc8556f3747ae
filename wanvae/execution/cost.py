"""Costs of plans: multiply-adds, and how much each layer reads and writes for each tile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from wanvae.execution.network import Network
from wanvae.execution.plan import Plan, make_tiles, shrink
from wanvae.nn import Streaming
from wanvae.nn.region import Region, Span, make_whole_region
from wanvae.nn.sequential import trace_regions


@dataclass(frozen=True)
class Workload:
    """The input to plan for.

    Attributes:
        batch: clips at once.
        channels: channels of the input: of the video to encode, or of the latents to decode.
        latents: length of the clip in latents; None is a stream without end.
        height, width: size of the frames in pixels.
        dtype: dtype to compute in.
        offloads: whether states can wait outside the memory of the device, as for GPUs.
    """

    batch: int
    channels: int
    latents: int | None
    height: int
    width: int
    dtype: torch.dtype
    offloads: bool = False


class Costs:
    """The costs of plans of a network. The network may be on the meta device."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._lengths = cache(self._find_lengths)

    def lengths(self, span: Span, plan: Plan) -> dict[Streaming, tuple[int, int]]:
        """Returns how many positions each tiled layer reads and writes for a span in pixels."""
        return self._lengths(span, plan.split_core)

    def _find_lengths(self, span: Span, split_core: bool) -> dict[Streaming, tuple[int, int]]:
        return find_lengths_along(self._network, span, split_core)

    def multiply_adds(self, workload: Workload, plan: Plan) -> int:
        """Returns the multiply-adds of ``plan`` as layers define them; fast algorithms need fewer.

        Raises:
            ValueError: the length of ``workload`` is not known.
        """
        if workload.latents is None:
            raise ValueError("a stream without end has no number of multiply-adds")
        total, frames = 0, self._network.count_input(workload.latents)
        for layer, positions in self._positions(workload, plan).items():
            total += layer.multiply_adds(positions, frames)
            frames = layer.count_output(frames, starts=True)
        return workload.batch * total

    def _positions(self, workload: Workload, plan: Plan) -> dict[Streaming, int]:
        """Returns how many positions of a frame each layer computes for all tiles, in order."""
        network = self._network
        scale = 1 if network.core_first else network.spatial_factor
        output = make_whole_region(workload.height // scale, workload.width // scale)
        positions = {
            layer: rows.size * columns.size
            for layer, _, (rows, columns) in trace_regions(network.layers, output)
        }
        if plan.tile_size is not None:
            heights, widths = (
                [self.lengths(span, plan) for span in spans] for spans in self._grid(workload, plan)
            )
            for layer in heights[0]:
                height, width = (sum(each[layer][1] for each in axis) for axis in (heights, widths))
                positions[layer] = height * width
        return positions

    def largest_tile(self, workload: Workload, plan: Plan) -> Region | None:
        """Returns the tile for which layers read and write most; None is the whole frame."""
        if plan.tile_size is None:
            return None

        def extent(span: Span) -> int:
            return sum(map(sum, self.lengths(span, plan).values()))

        rows, columns = (max(spans, key=extent) for spans in self._grid(workload, plan))
        return rows, columns

    def largest_area(self, workload: Workload, plan: Plan) -> int:
        """Returns the positions of the largest tile with halo, in the layer with most positions."""
        tile = self.largest_tile(workload, plan)
        if tile is None:
            return workload.height * workload.width
        heights, widths = (self.lengths(span, plan) for span in tile)
        return max(
            height * width
            for layer in heights
            for height, width in zip(heights[layer], widths[layer], strict=True)
        )

    def kind(self, tile: Region, plan: Plan) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Returns what layers read and write for a tile. If it is equal, memory is equal."""
        return tuple(tuple(self.lengths(span, plan).values()) for span in tile)

    def _grid(self, workload: Workload, plan: Plan) -> tuple[list[Span], list[Span]]:
        """Returns the rows and the columns of the grid of tiles."""
        tiles = make_tiles(self._network, workload.height, workload.width, plan)
        rows, columns = zip(*tiles, strict=True)
        return list(dict.fromkeys(rows)), list(dict.fromkeys(columns))


def find_lengths_along(
    network: Network, span: Span, split_core: bool
) -> dict[Streaming, tuple[int, int]]:
    """Returns how many positions each tiled layer reads and writes for a span in pixels."""
    lengths = {}
    for part in network.parts(split_core=split_core):
        if not part.whole:
            output = shrink((span, span), part.scale)
            for layer, (read, _), (rows, _) in trace_regions(part.layers, output):
                lengths[layer] = len(read), len(rows)  # kernels are square
    return lengths
