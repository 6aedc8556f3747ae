"""One video over several processes, with the result of one.

Every process runs the core of the network on whole frames. The tiles of the shell are shared out,
balanced by their multiply-adds, and nothing is exchanged inside a tile. After the tiles of an
encoder all processes get the features of all tiles, once; the tiles of a decoder go to the first
process alone.
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
from wanvae.execution.cost import Costs, Workload, lengths_along
from wanvae.execution.flow import join
from wanvae.execution.network import Network, remember_by_architecture
from wanvae.execution.plan import Plan
from wanvae.execution.tiling import Painting
from wanvae.nn import Streaming
from wanvae.nn.region import Region, Span
from wanvae.nn.sequential import cropped_layers, resampled

# The process that decoded video goes to.
FIRST = 0
# Halvings of an interval that find how much work is a fair share.
HALVINGS = 16


@dataclass(frozen=True)
class Shares:
    """Who makes what of each frame.

    Attributes:
        tiles: of the frame in pixels.
        owners: for each tile the rank of the process that makes it; some may have none.
        work: for each process the multiply-adds of its tiles, for a clip of two latents.
    """

    tiles: tuple[Region, ...]
    owners: tuple[int, ...]
    work: tuple[int, ...]


@remember_by_architecture
def share_out(network: Network, plan: Plan, height: int, width: int, processes: int) -> Shares:
    """Tiles, no larger than planned, that so many processes are done with soonest.

    Args:
        height, width: of the frames in pixels.
    """
    factor = network.spatial_factor
    sides = height // factor, width // factor
    largest = [side // factor for side in plan.tile_size or (height, width)]
    fewest = [-(-side // most) for side, most in zip(sides, largest, strict=True)]
    # Where there are more tiles than processes, a few more may be shared out more evenly.
    most_tiles = max(processes, 2 * fewest[0] * fewest[1])
    rows, columns = (
        range(few, min(few + processes, side + 1)) for few, side in zip(fewest, sides, strict=True)
    )
    work = Work(network, plan.split_core, height, width)
    shares = [
        work.shares(grid, largest, processes)
        for grid in product(rows, columns)
        if grid[0] * grid[1] <= most_tiles
    ]
    return min(shares, key=lambda shares: (max(shares.work), len(shares.tiles)))


def expected_speedup(network: Network, workload: Workload, shares: Shares) -> float:
    """How many times as fast as one process, if only multiply-adds took time."""
    clip = replace(workload, latents=2)
    whole = Costs(network).multiply_adds(clip, Plan(None, None))
    (shell,) = share_out(network, Plan(None, None), workload.height, workload.width, 1).work
    return whole / (whole - shell + max(shares.work))


class Work:
    """What tiles of a frame take.

    Args:
        split_core: whether the core runs on tiles as well.
        height, width: of the frame in pixels.
    """

    def __init__(self, network: Network, split_core: bool, height: int, width: int) -> None:
        self._network = network
        self._split_core = split_core
        self._sides = height, width
        self._of_position = work_of_positions(network)
        self._lengths = cache(self._find_lengths)
        self._spans = cache(self._find_spans)

    def shares(self, grid: tuple[int, int], largest: Sequence[int], processes: int) -> Shares:
        """A grid of rows and columns of tiles, each to the process that has least to do so far.

        Args:
            largest: height and width of a tile at most, in latents.
        """
        rows, columns = (
            self._spans(axis, count, most)
            for axis, (count, most) in enumerate(zip(grid, largest, strict=True))
        )
        tiles = list(product(rows, columns))
        work = [self._of_tile(tile) for tile in tiles]
        busy = [(0, rank) for rank in range(processes)]
        owners = [FIRST] * len(tiles)
        for index in sorted(range(len(tiles)), key=work.__getitem__, reverse=True):
            done, rank = heapq.heappop(busy)
            owners[index] = rank
            heapq.heappush(busy, (done + work[index], rank))
        loads = tuple(done for done, _ in sorted(busy, key=lambda entry: entry[1]))
        return Shares(tuple(tiles), tuple(owners), loads)

    def _of_tile(self, tile: Region) -> int:
        return self._in_all(*(self._lengths(span) for span in tile))

    def _in_all(self, some: dict[Streaming, int], others: dict[Streaming, int]) -> int:
        """The work of a tile that is as long along both axes."""
        return sum(self._of_position[layer] * some[layer] * others[layer] for layer in some)

    def _find_lengths(self, span: Span) -> dict[Streaming, int]:
        """How much each tiled layer makes along an axis for a span in pixels."""
        lengths = lengths_along(self._network, span, self._split_core)
        return {layer: made for layer, (_, made) in lengths.items()}

    def _find_spans(self, axis: int, count: int, most: int) -> list[Span]:
        """So many spans of an axis that take about equal work: those inside have two halos."""
        factor, size = self._network.spatial_factor, self._sides[axis]
        other = self._sides[1 - axis]
        across = self._lengths(Span(0, other, other))

        @cache
        def work(start: int, stop: int) -> int:
            lengths = self._lengths(Span(start * factor, stop * factor, size))
            return self._in_all(lengths, across)

        ends = fair_ends(size // factor, count, most, work)
        return [Span(a * factor, b * factor, size) for a, b in pairwise(ends)]


def work_of_positions(network: Network) -> dict[Streaming, int]:
    """Multiply-adds of each layer for a position of each frame of a clip of two latents."""
    work, frames = {}, 1 + network.group
    for layer in cropped_layers(network.layers):
        work[layer] = layer.multiply_adds(1, frames)
        frames = resampled(frames, layer.time_factor(), starts=True)
    return work


def fair_ends(size: int, count: int, most: int, work: Callable[[int, int], int]) -> list[int]:
    """Where so many spans begin and end that cover ``size`` and take about equal work.

    Args:
        most: length of a span at most; ``count`` of them suffice.
        work: of a span from start to stop; more of longer ones.
    """

    def ends_within(limit: float) -> list[int] | None:
        ends = [0]
        for left in range(count - 1, -1, -1):
            # No shorter than that the others can cover the rest, each has one position at least.
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
    """Tiles that several processes share; all of them push the same.

    The painting of an encoder comes in every process, the video of a decoder in the first alone.

    Args:
        rank: the number of this process.
    """

    def __init__(self, shares: Shares, rank: int) -> None:
        self.tiles = shares.tiles
        self._owners = shares.owners
        self._rank = rank

    def paint(self, painting: Painting) -> Tensor | None:
        """The painting with the tiles of all processes; None where it goes to another process.

        Raises:
            ProcessError: another process has ended.
        """
        if painting.is_video and self._rank != FIRST:
            self._send_own(painting)
            return None
        for owner, (tile, flow) in zip(self._owners, painting.tiles, strict=True):
            if owner == self._rank:
                painting.paint(tile, flow)
        like = painting.empty(self._channels_of(painting))
        for owner, (tile, _) in zip(self._owners, painting.tiles, strict=True):
            place = painting.place(tile, like)
            if not painting.is_video:
                self._share(place, owner)
            elif owner != FIRST:
                receive(place, owner)
        return painting.whole

    def _send_own(self, painting: Painting) -> None:
        """Compute the tiles of this process, then send them to the first."""
        computed = [
            join(painting.compute(flow), painting.frames)
            for owner, (_, flow) in zip(self._owners, painting.tiles, strict=True)
            if owner == self._rank
        ]
        for values in computed:
            if values is not None:
                with expecting_processes():
                    dist.send(values, dst=FIRST)

    def _channels_of(self, painting: Painting) -> int:
        """The channels of the painting, also in a process that has no tile of it."""
        whole = painting.whole
        if whole is not None and painting.is_video:
            return whole.shape[1]
        _, flow = painting.tiles[0]
        channels = torch.tensor(0 if whole is None else whole.shape[1], device=flow.device)
        with expecting_processes():
            dist.broadcast(channels, src=self._owners[0])
        return int(channels)

    def _share(self, place: Tensor, owner: int) -> None:
        """Give all processes the tile that ``owner`` has computed."""
        values = torch.empty_like(place, memory_format=torch.contiguous_format)
        if owner == self._rank:
            values.copy_(place)
        with expecting_processes():
            dist.broadcast(values, src=owner)
        if owner != self._rank:
            place.copy_(values)


def receive(place: Tensor, owner: int) -> None:
    """Get the tile that ``owner`` has computed."""
    values = torch.empty_like(place, memory_format=torch.contiguous_format)
    with expecting_processes():
        dist.recv(values, src=owner)
    place.copy_(values)
