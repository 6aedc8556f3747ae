"""Plans that fit a memory budget, and what a plan costs.

Nothing here is a formula of the network: a plan is run on the meta device, where tensors have
shapes but no values, on a clip just long enough to show how the cost grows.
"""

from __future__ import annotations

import math
import re
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wanvae.errors import UserError
from wanvae.execution.flow import join, latents_at_once
from wanvae.execution.tiling import (
    Coding,
    Network,
    Plan,
    default_plan,
    make_tiles,
    shrunk,
)
from wanvae.nn import Streaming
from wanvae.nn.region import Region, Span, whole_region
from wanvae.nn.sequential import regions_of_layers, resampled

UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
# What the libraries need besides tensors, and what the heap wastes between them.
OVERHEAD = 64 * UNITS["MB"]
# What planning itself takes, once in the life of a process: libraries that PyTorch loads for it.
PLANNING_MEMORY = 160 * UNITS["MB"]
# The smallest tile that is tried, in pixels; smaller ones are nearly all halo.
SMALLEST_TILE = 64
# How many plans of a kind to look at for a stream.
STREAM_LOOKS = 12
# How many of the smallest tiles to look at: the very smallest overlap so much that they take more.
FEWEST_LOOKS = 3

# Height and width in pixels, or one number for both.
TileSize: TypeAlias = "int | tuple[int, int]"
# Bytes, or text like "4GB".
Memory: TypeAlias = "int | str"


@dataclass(frozen=True)
class Job:
    """What to plan for.

    Attributes:
        batch: clips at once.
        channels: of the input: 3 to encode, those of the latents to decode.
        latents: of the clip, or None for a stream without end.
        height, width: of the frames in pixels.
        dtype: to compute in.
        offloads: whether states can wait in other memory than that of the device: on GPUs.
    """

    batch: int
    channels: int
    latents: int | None
    height: int
    width: int
    dtype: torch.dtype
    offloads: bool = False


class TooLittleMemory(UserError):
    """A memory limit that no plan keeps to; the message names the least that one does."""


class Planner:
    """Finds plans for one encoder or decoder.

    Args:
        network: a twin of it on the meta device.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._parameters = list(nn.ModuleList(network.layers).parameters())
        self._memory = cache(self._find_memory)
        self._lengths = cache(partial(lengths_along, network))

    def plan_for(self, job: Job, max_memory: int) -> Plan:
        """The plan that is expected to be fastest within ``max_memory`` bytes.

        On the CPU, what planning takes is part of that.

        Raises:
            TooLittleMemory: no plan takes so little.
        """
        planning = 0 if job.offloads else PLANNING_MEMORY
        plan, smallest = self._fastest_within(job, max_memory - planning)
        if plan is None:
            raise TooLittleMemory(
                f"{show_memory(max_memory)} is too little memory for this: it takes at least "
                f"{show_memory(smallest + planning)}, besides the model and its input"
            )
        return plan

    def _fastest_within(self, job: Job, limit: int) -> tuple[Plan | None, int]:
        """The fastest plan of at most ``limit`` bytes, and the least memory that was seen."""
        whole = default_plan(self.network, job.height, job.width, None)
        smallest = self.memory(job, whole)
        if smallest <= limit:
            return replace(whole, lean=True), smallest
        for kinds in self._plans(job) if whole.frames is not None else []:
            looks = [self._look(job, plans, limit) for plans in kinds]
            fitting = [plan for plans, _ in looks for plan in plans]
            smallest = min(smallest, *(least for _, least in looks))
            for plan in sorted(fitting, key=lambda plan: self._slowness(job, plan)):
                if self.memory(job, plan) <= limit:
                    return plan, smallest
        return None, smallest

    def tiles(self, job: Job, plan: Plan) -> list[Region | None]:
        """The tiles of a plan."""
        return make_tiles(self.network, job.height, job.width, plan)

    def memory(self, job: Job, plan: Plan) -> int:
        """The expected peak of ``plan`` in bytes: with the result, without model and input."""
        return self._memory(job, replace(plan, lean=False))

    @torch.no_grad()
    def _find_memory(self, job: Job, plan: Plan) -> int:
        largest = self._largest(job, plan)
        if job.latents is None:
            return OVERHEAD + self._stream_memory(job, plan, largest)

        def peak(latents: int) -> int:
            x = self._input(job, latents)
            # Two tiles where there are some, for the second finds the result already there.
            tiles = [largest] if len(self.tiles(job, plan)) == 1 else [largest, largest]
            coding = Coding(self.network, plan, tiles, latents)
            with MemoryMeter([x, *self._parameters]) as meter:
                join(coding.push([x]), self.network.frames_made(x.shape[2], starts=True))
            return meter.peak

        return OVERHEAD + extrapolated(peak, job.latents, plan)

    def multiply_adds(self, job: Job, plan: Plan) -> int:
        """The multiply-adds of ``plan``, as the layers define them; some are computed in fewer.

        The length of ``job`` must be known.
        """
        total, frames = 0, 1 + (job.latents - 1) * self.network.group
        for layer, positions in self._positions(job, plan).items():
            total += layer.multiply_adds(positions, frames)
            frames = resampled(frames, layer.time_factor(), starts=True)
        return job.batch * total

    def _positions(self, job: Job, plan: Plan) -> dict[Streaming, int]:
        """For each layer, in order, the positions of a frame that it computes for all tiles."""
        network = self.network
        sides = job.height, job.width
        if not network.core_first:
            sides = tuple(side // network.spatial_factor for side in sides)
        positions = {
            layer: rows.size * columns.size
            for layer, _, (rows, columns) in regions_of_layers(network.layers, whole_region(*sides))
        }
        if plan.tile_size is not None:
            heights, widths = (
                [self._lengths(span, plan.split_core) for span in spans]
                for spans in self._grid(job, plan)
            )
            for layer in heights[0]:
                height, width = (sum(made[layer][1] for made in axis) for axis in (heights, widths))
                positions[layer] = height * width
        return positions

    def _stream_memory(self, job: Job, plan: Plan, largest: Region | None) -> int:
        """The peak of a stream of one tile, and the states of all others that stay there."""
        at_once = latents_of(plan)
        coding = Coding(self.network, replace(plan, offload=False), [largest])
        x = self._input(job, 1 + 2 * at_once)
        steps = [1, *[at_once * self.network.group] * 2]
        with MemoryMeter([x, *self._parameters]) as meter:
            for piece in x.split(steps, dim=2):
                for _ in coding.push([piece]):
                    pass
        if plan.tile_size is None or plan.offload:
            return meter.peak
        # Tiles that read and make the same sizes have states of the same size.
        kinds = [(self._kind(tile, plan), tile) for tile in self.tiles(job, plan)]
        numbers = Counter(kind for kind, _ in kinds)
        sizes = {kind: self._state_size(job, plan, tile) for kind, tile in dict(kinds).items()}
        states = sum(size * numbers[kind] for kind, size in sizes.items())
        return meter.peak + states - sizes[self._kind(largest, plan)]

    def _kind(self, tile: Region, plan: Plan) -> tuple[tuple[tuple[int, int], ...], ...]:
        """What tells how much a tile takes: what each layer reads and makes, along both axes."""
        return tuple(tuple(self._lengths(span, plan.split_core).values()) for span in tile)

    def _state_size(self, job: Job, plan: Plan, tile: Region | None) -> int:
        """Bytes that the tiled layers keep for a tile."""
        coding = Coding(self.network, plan, [tile])
        for _ in coding.push([self._input(job, 1 + 2)]):
            pass
        states = [flow.state for part, flows in coding.parts if not part.whole for _, flow in flows]
        return sum(leaf.nbytes for leaf in tree_leaves(states))

    def _plans(self, job: Job) -> Iterator[list[list[Plan]]]:
        """Plans that are worth a look, by kinds that differ in their tiles alone.

        What comes together is about equally fast, but for tiles; slower kinds come later.
        """
        factor = self.network.spatial_factor
        tile_sizes = [*product(tile_sides(job.height, factor), tile_sides(job.width, factor))]
        offloads = (False, True) if job.offloads and job.latents is None else (False,)
        for offload, frames in product(offloads, (2, 1)):
            split = [Plan(size, frames, True, True, offload) for size in tile_sizes]
            plain = [replace(plan, split_core=False) for plan in split]
            yield [plain if offload else [Plan(None, frames, lean=True), *plain], split]

    def _look(self, job: Job, plans: list[Plan], limit: int) -> tuple[list[Plan], int]:
        """Those of a kind that are expected to fit, and the least memory that was seen."""
        plans = sorted(plans, key=lambda plan: self._pixels(job, plan))
        if job.latents is None and not plans[0].offload:
            # Large tiles take much at once, and small ones, which overlap more, much for states.
            plans = plans[:: math.ceil(len(plans) / STREAM_LOOKS)]
            fitting = [plan for plan in plans if self.memory(job, plan) <= limit]
            return fitting, min(self.memory(job, plan) for plan in plans)
        # Larger tiles take more memory, so that few need a look to tell which fit.
        count = bisect_right(plans, limit, key=lambda plan: self.memory(job, plan))
        least = min(self.memory(job, plan) for plan in plans[:FEWEST_LOOKS])
        return plans[: max(count, FEWEST_LOOKS)], least

    def _pixels(self, job: Job, plan: Plan) -> int:
        """Of the largest tile with its halo, where that is largest."""
        if plan.tile_size is None:
            return job.height * job.width
        rows, columns = self._largest(job, plan)
        heights, widths = (self._lengths(span, plan.split_core) for span in (rows, columns))
        return max(
            height * width
            for layer in heights
            for height, width in zip(heights[layer], widths[layer], strict=True)
        )

    def _slowness(self, job: Job, plan: Plan) -> int:
        """What grows as the time that plans take which differ in their tiles."""
        return self.multiply_adds(job if job.latents else replace(job, latents=2), plan)

    def _largest(self, job: Job, plan: Plan) -> Region | None:
        """The tile that takes most."""
        if plan.tile_size is None:
            return None

        def extent(span: Span) -> int:
            return sum(map(sum, self._lengths(span, plan.split_core).values()))

        rows, columns = (max(spans, key=extent) for spans in self._grid(job, plan))
        return rows, columns

    def _grid(self, job: Job, plan: Plan) -> tuple[list[Span], list[Span]]:
        """The rows and the columns of tiles, which do not depend on each other."""
        rows, columns = zip(*self.tiles(job, plan), strict=True)
        return list(dict.fromkeys(rows)), list(dict.fromkeys(columns))

    def _input(self, job: Job, latents: int) -> Tensor:
        scale = self.network.pixels_per_input
        length = 1 + (latents - 1) * self.network.group
        shape = job.batch, job.channels, length, job.height // scale, job.width // scale
        return torch.empty(shape, dtype=job.dtype, device="meta")


def choose_plan(
    network: Network,
    job: Job,
    tile_size: TileSize | None,
    max_memory: Memory | None,
    within: Callable[[int], Plan],
) -> Plan:
    """The plan that people ask for by tiles of at most ``tile_size``, or by ``max_memory``.

    Args:
        within: the plan for a limit in bytes.

    Raises:
        ValueError: both are given, ``tile_size`` is not a multiple of the spatial factor, or
            ``max_memory`` cannot be read.
        TooLittleMemory: no plan takes so little.
    """
    if max_memory is not None:
        if tile_size is not None:
            raise UserError("max_memory chooses tiles by itself: give it or tile_size, not both")
        return within(parse_memory(max_memory))
    if isinstance(tile_size, int):
        tile_size = (tile_size, tile_size)
    if tile_size is not None and len(tile_size) != 2:
        raise UserError(f"tile_size must be one number or a height and a width, not {tile_size}")
    return default_plan(network, job.height, job.width, tile_size)


def lengths_along(
    network: Network, span: Span, split_core: bool
) -> dict[Streaming, tuple[int, int]]:
    """How much each tiled layer reads and makes, along an axis, for a span in pixels."""
    lengths = {}
    for part in network.parts(split_core=split_core):
        if not part.whole:
            made = shrunk((span, span), part.scale)
            for layer, (read, _), (rows, _) in regions_of_layers(part.layers, made):
                lengths[layer] = len(read), len(rows)  # kernels are square
    return lengths


def tile_sides(side: int, factor: int) -> list[int]:
    """Lengths of tiles that are worth a look along a side in pixels, the longest first."""
    most = max(1, side // SMALLEST_TILE)
    counts, count = [most], 1
    while count < most:
        counts.append(count)
        count = max(count + 1, count * 5 // 4)
    return sorted({math.ceil(side / factor / n) * factor for n in counts}, reverse=True)


def latents_of(plan: Plan) -> int:
    """Latents that a plan processes at once."""
    return 1 if plan.frames is None else latents_at_once(plan.frames)


def extrapolated(cost: Callable[[int], int], latents: int, plan: Plan) -> int:
    """``cost`` of a clip of so many latents, from what it is for short ones if it is long."""
    at_once = latents_of(plan)
    # After the second full step, the cost grows evenly.
    short, longer = 1 + 2 * at_once, 1 + 3 * at_once
    if plan.frames is None or latents <= longer:
        return cost(latents)
    of_short = cost(short)
    return of_short + (cost(longer) - of_short) * (latents - short) // at_once


class MemoryMeter(TorchDispatchMode):
    """Adds up the memory of tensors as they come and go inside ``with``, those given apart."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._current = 0
        # Kept as well, for a weak set forgets what nobody holds.
        self._given = [tensor.untyped_storage() for tensor in given]
        self._counted = weakref.WeakSet(self._given)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._counted:
            return
        self._counted.add(storage)
        self._current += storage.nbytes()
        self.peak = max(self.peak, self._current)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self._current -= size


def parse_memory(memory: Memory) -> int:
    """Bytes, of a text such as "700MB" or "4.5 GB" (units of 1024), or of their number itself.

    Raises:
        ValueError: it is no such text.
    """
    if isinstance(memory, int):
        return memory
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)?\s*", memory.upper())
    if match is None:
        raise UserError(f"cannot read {memory!r} as memory: write a number and KB, MB or GB")
    return int(float(match[1]) * UNITS[match[2] or "B"])


def show_memory(size: int) -> str:
    """Bytes as text that ``parse_memory`` reads, rounded up."""
    return f"{-(-size // UNITS['MB'])}MB"
