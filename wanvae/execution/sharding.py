"""One video over several processes, with the result of one.

Every process runs the core of the network on whole frames. The tiles of the shell are shared out,
balanced by their multiply-adds, and nothing is exchanged inside them: after an encoder's tiles all
processes get the features of all tiles, once; a decoder's tiles go to the first process alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wanvae.engine.processes import expecting_processes
from wanvae.execution.budget import Job, Planner, lengths_along
from wanvae.execution.flow import Flow, first_parameter, join
from wanvae.execution.tiling import Coding, Network, Part, Plan
from wanvae.nn import State
from wanvae.nn.region import Region, Span, crop, whole_of
from wanvae.nn.sequential import cropped_layers, resampled

# The process that decoded video goes to.
FIRST = 0
# Halvings of an interval that find how much work is a fair share.
HALVINGS = 16


class Processes(Protocol):
    """Processes that work together: ``Accelerator`` and ``PartialState`` of accelerate are some."""

    @property
    def num_processes(self) -> int: ...

    @property
    def process_index(self) -> int: ...


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
    counts = (
        range(few, min(few + processes, side + 1)) for few, side in zip(fewest, sides, strict=True)
    )
    work = Work(network, plan.split_core, height, width)
    shares = [
        work.shares(grid, largest, processes)
        for grid in product(*counts)
        if grid[0] * grid[1] <= most_tiles
    ]
    return min(shares, key=lambda shares: (max(shares.work), len(shares.tiles)))


def expected_speedup(planner: Planner, job: Job, shares: Shares) -> float:
    """How many times as fast as one process, if only multiply-adds took time."""
    clip = replace(job, latents=2)
    whole = planner.multiply_adds(clip, Plan(None, None))
    (shell,) = share_out(planner.network, Plan(None, None), job.height, job.width, 1).work
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

    def _in_all(self, some: dict[nn.Module, int], others: dict[nn.Module, int]) -> int:
        """The work of a tile that is as long along both axes."""
        return sum(self._of_position[layer] * some[layer] * others[layer] for layer in some)

    def _find_lengths(self, span: Span) -> dict[nn.Module, int]:
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


def work_of_positions(network: Network) -> dict[nn.Module, int]:
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
    return best


class ShardedCoding(Coding):
    """A stream of which each process makes its share of the tiles; all push the same.

    The results of an encoder come in every process, those of a decoder in the first alone.

    Args:
        rank: of this process.
        state: of an earlier coding of this process, with as many of them.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        shares: Shares,
        rank: int,
        latents: int | None = None,
        state: State = None,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__(network, plan, shares.tiles, latents, state, compiled=compiled)
        self._owners = shares.owners
        self._rank = rank

    def run(self, x: Tensor) -> Tensor:
        """As in one process; decoded videos have no frames in any process but the first.

        Raises:
            ProcessError: another process is no longer there.
        """
        result = super().run(x)
        if result is not None:
            return result
        height, width = (side * self._network.spatial_factor for side in x.shape[3:])
        like = first_parameter(self._network.layers)
        return like.new_empty(len(x), self._network.out_channels, 0, height, width)

    def _tile_by_tile(
        self,
        part: Part,
        flows: Sequence[tuple[Region, Flow]],
        pieces: Iterable[Tensor],
        starts: bool,
    ) -> Iterator[Tensor]:
        pieces = list(pieces)
        frames = self._frames_of(part, pieces, starts=starts)
        to_first = self._network.core_first and part is self.parts[-1][0]
        paints = self._rank == FIRST or not to_first
        whole, kept = None, []
        for owner, (tile, flow) in zip(self._owners, flows, strict=True):
            if owner == self._rank and paints:
                whole = self._paint(whole, part, frames, tile, flow, pieces)
            elif owner == self._rank:
                kept.append(join(self._through_tile(flow, pieces), frames))
        if not paints:
            for made in kept:
                with expecting_processes():
                    dist.send(made, dst=FIRST)
            return
        if not to_first:
            whole = self._agreed(whole, part, frames, flows, pieces)
        for owner, (tile, _) in zip(self._owners, flows, strict=True):
            self._receive(crop(whole, whole_of(tile), tile), owner, to_first=to_first)
        yield whole

    def _agreed(
        self,
        whole: Tensor | None,
        part: Part,
        frames: int,
        flows: Sequence[tuple[Region, Flow]],
        pieces: Sequence[Tensor],
    ) -> Tensor:
        """``whole``, and in a process that has no tile a place for those of the others."""
        tile, flow = flows[0]
        channels = torch.tensor(0 if whole is None else whole.shape[1], device=flow.device)
        with expecting_processes():
            dist.broadcast(channels, src=self._owners[0])
        if whole is not None:
            return whole
        like = first_parameter(part.layers)
        made = like.new_empty(len(pieces[0]), int(channels), 0, 0, 0)
        return self._empty(made, frames, tile, part)

    def _receive(self, place: Tensor, owner: int, *, to_first: bool) -> None:
        """Get what ``owner`` made for a part of the whole; it already has that there."""
        if to_first and owner == FIRST:
            return
        values = torch.empty_like(place, memory_format=torch.contiguous_format)
        if owner == self._rank:
            values.copy_(place)
        with expecting_processes():
            if to_first:
                dist.recv(values, src=owner)
            else:
                dist.broadcast(values, src=owner)
        if owner != self._rank:
            place.copy_(values)
