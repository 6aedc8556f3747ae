"""Sharing one video over several processes. The result equals the result of one process.

Every process runs the core of the network on whole frames. The processes share the tiles of the
shell, balanced by multiply-adds, and exchange nothing while they compute tiles. After the tiles of
an encoder, all processes get the features of all tiles. The tiles of a decoder go only to the first
process.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product

import torch
import torch.distributed as dist
from torch import Tensor

from wanvae.engine.processes import expecting_processes
from wanvae.execution.cost import Costs, Workload, find_lengths_along
from wanvae.execution.joining import join
from wanvae.execution.network import Network, remember_by_architecture
from wanvae.execution.plan import Plan
from wanvae.execution.tiling import Painting
from wanvae.nn import Streaming
from wanvae.nn.region import Region, Span
from wanvae.nn.sequential import cropped_layers

# The rank of the process that gets decoded video.
FIRST = 0
# Halvings of an interval in the search for the work of a fair share.
HALVINGS = 16


@dataclass(frozen=True)
class Shares:
    """The tiles of a frame, and which process computes each tile.

    Attributes:
        tiles: the tiles of the frame, in pixels.
        owners: for each tile the rank of the process that computes it. A process may have no tile.
        work: for each process the multiply-adds of its tiles, for a clip of two latents.
    """

    tiles: tuple[Region, ...]
    owners: tuple[int, ...]
    work: tuple[int, ...]


@remember_by_architecture
def share_out(network: Network, plan: Plan, height: int, width: int, processes: int) -> Shares:
    """Returns the tiles and owners with which ``processes`` processes finish soonest.

    No tile is larger than planned.

    Args:
        height, width: size of the frames in pixels.
    """
    factor = network.spatial_factor
    sides = height // factor, width // factor
    largest = [side // factor for side in plan.tile_size or (height, width)]
    fewest = [-(-side // most) for side, most in zip(sides, largest, strict=True)]
    # If there are more tiles than processes, a few more tiles may be shared more evenly.
    most_tiles = max(processes, 2 * fewest[0] * fewest[1])
    rows, columns = (
        range(few, min(few + processes, side + 1)) for few, side in zip(fewest, sides, strict=True)
    )
    work = TileWork(network, plan.split_core, height, width)
    candidates = [
        work.share(grid, largest, processes)
        for grid in product(rows, columns)
        if grid[0] * grid[1] <= most_tiles
    ]
    return min(candidates, key=lambda shares: (max(shares.work), len(shares.tiles)))


def estimate_speedup(network: Network, workload: Workload, shares: Shares) -> float:
    """Returns how many times as fast as one process the shares are, by multiply-adds alone."""
    clip = replace(workload, latents=2)
    whole = Costs(network).multiply_adds(clip, Plan(None, None))
    (shell,) = share_out(network, Plan(None, None), workload.height, workload.width, 1).work
    return whole / (whole - shell + max(shares.work))


class TileWork:
    """The multiply-adds of tiles of a frame.

    Args:
        split_core: whether the core runs on tiles too.
        height, width: size of the frame in pixels.
    """

    def __init__(self, network: Network, split_core: bool, height: int, width: int) -> None:
        self._network = network
        self._split_core = split_core
        self._sides = height, width
        self._work_per_position = find_work_per_position(network)
        self._lengths = cache(self._find_lengths)
        self._spans = cache(self._find_spans)

    def share(self, grid: tuple[int, int], largest: Sequence[int], processes: int) -> Shares:
        """Returns shares of a grid of tiles; each tile goes to the process with least work so far.

        Args:
            grid: number of rows and of columns of tiles.
            largest: largest height and width of a tile, in latents.
        """
        rows, columns = (
            self._spans(axis, count, most)
            for axis, (count, most) in enumerate(zip(grid, largest, strict=True))
        )
        tiles = list(product(rows, columns))
        work = [self._count_work(tile) for tile in tiles]
        busy = [(0, rank) for rank in range(processes)]
        owners = [FIRST] * len(tiles)
        for index in sorted(range(len(tiles)), key=work.__getitem__, reverse=True):
            done, rank = heapq.heappop(busy)
            owners[index] = rank
            heapq.heappush(busy, (done + work[index], rank))
        loads = tuple(done for done, _ in sorted(busy, key=lambda entry: entry[1]))
        return Shares(tuple(tiles), tuple(owners), loads)

    def _count_work(self, tile: Region) -> int:
        return self._sum_work(*(self._lengths(span) for span in tile))

    def _sum_work(self, some: dict[Streaming, int], others: dict[Streaming, int]) -> int:
        """Returns the work of a tile from the lengths of each layer along both axes."""
        return sum(self._work_per_position[layer] * some[layer] * others[layer] for layer in some)

    def _find_lengths(self, span: Span) -> dict[Streaming, int]:
        """Returns how many positions each tiled layer writes along an axis for a span in pixels."""
        lengths = find_lengths_along(self._network, span, self._split_core)
        return {layer: written for layer, (_, written) in lengths.items()}

    def _find_spans(self, axis: int, count: int, most: int) -> list[Span]:
        """Returns ``count`` spans of an axis with about equal work; inner spans have two halos."""
        factor, size = self._network.spatial_factor, self._sides[axis]
        other = self._sides[1 - axis]
        across = self._lengths(Span(0, other, other))

        @cache
        def work(start: int, stop: int) -> int:
            lengths = self._lengths(Span(start * factor, stop * factor, size))
            return self._sum_work(lengths, across)

        ends = find_balanced_ends(size // factor, count, most, work)
        return [Span(a * factor, b * factor, size) for a, b in pairwise(ends)]


def find_work_per_position(network: Network) -> dict[Streaming, int]:
    """Returns multiply-adds of each layer per position of a frame, for a clip of two latents."""
    work, frames = {}, network.count_input(2)
    for layer in cropped_layers(network.layers):
        work[layer] = layer.multiply_adds(1, frames)
        frames = layer.count_output(frames, starts=True)
    return work


def find_balanced_ends(
    size: int, count: int, most: int, work: Callable[[int, int], int]
) -> list[int]:
    """Returns the ends of ``count`` spans that cover ``size`` and take about equal work.

    Args:
        most: largest length of a span; ``count`` spans of this length cover ``size``.
        work: returns the work of a span from start to stop. Longer spans take more work.
    """

    def ends_within(limit: float) -> list[int] | None:
        ends = [0]
        for left in range(count - 1, -1, -1):
            # The other spans must be able to cover the rest, and each span has a position or more.
            start, stop = ends[-1], max(ends[-1] + 1, size - left * most)
            last = min(start + most, size - left)
            while stop < last and work(start, stop + 1) <= limit:
                stop += 1
            if work(start, stop) > limit:
                return None
            ends.append(stop)
        return ends if ends[-1] == size else None

    low, high = 0.0, float(work(0, size))
    best = ends_within(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        ends = ends_within(middle)
        low, high, best = (low, middle, ends) if ends else (middle, high, best)
    if best is None:
        raise ValueError(f"{count} spans of at most {most} do not cover {size}")
    return best


class SharedTiles:
    """Tiles that several processes share. All processes push the same input.

    Every process gets the painting of an encoder. Only the first process gets the video of a
    decoder.

    Args:
        rank: the number of this process.
    """

    def __init__(self, shares: Shares, rank: int) -> None:
        self.tiles = shares.tiles
        self._owners = shares.owners
        self._rank = rank

    def paint(self, painting: Painting) -> Tensor | None:
        """Returns the painting with the tiles of all processes; None if another process gets it.

        Raises:
            ProcessError: another process has ended.
        """
        if painting.is_video and self._rank != FIRST:
            self._send_own(painting)
            return None
        for owner, (tile, flow) in zip(self._owners, painting.tiles, strict=True):
            if owner == self._rank:
                painting.paint(tile, flow)
        like = painting.empty(*self._find_shape(painting))
        for owner, (tile, _) in zip(self._owners, painting.tiles, strict=True):
            place = painting.place(tile, like)
            if not painting.is_video:
                self._share(place, owner)
            elif owner != FIRST:
                receive(place, owner)
        return painting.whole

    def _send_own(self, painting: Painting) -> None:
        """Computes the tiles of this process, then sends them to the first process."""
        computed = [
            join(painting.compute(flow), painting.frames)
            for owner, (_, flow) in zip(self._owners, painting.tiles, strict=True)
            if owner == self._rank
        ]
        for values in computed:
            if values is not None:
                with expecting_processes():
                    dist.send(values, dst=FIRST)

    def _find_shape(self, painting: Painting) -> tuple[int, int]:
        """Returns batch and channels of the painting, also in a process without a tile."""
        whole = painting.whole
        if whole is not None and painting.is_video:
            return whole.shape[0], whole.shape[1]
        _, flow = painting.tiles[0]
        shape = torch.tensor([0, 0] if whole is None else whole.shape[:2], device=flow.device)
        with expecting_processes():
            dist.broadcast(shape, src=self._owners[0])
        batch, channels = shape.tolist()
        return batch, channels

    def _share(self, place: Tensor, owner: int) -> None:
        """Gives all processes the tile that ``owner`` has computed."""
        values = torch.empty_like(place, memory_format=torch.contiguous_format)
        if owner == self._rank:
            values.copy_(place)
        with expecting_processes():
            dist.broadcast(values, src=owner)
        if owner != self._rank:
            place.copy_(values)


def receive(place: Tensor, owner: int) -> None:
    """Gets the tile that ``owner`` has computed."""
    values = torch.empty_like(place, memory_format=torch.contiguous_format)
    with expecting_processes():
        dist.recv(values, src=owner)
    place.copy_(values)
