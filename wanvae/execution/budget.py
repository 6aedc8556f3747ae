"""Plans that fit a memory limit.

No formula describes the memory of a network. Instead, a plan runs on the meta device, where tensors
have shapes but no values, on a clip just long enough to show how the memory grows.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import chain, product

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from wanvae.errors import UserError
from wanvae.execution.cost import Costs, Workload
from wanvae.execution.joining import join
from wanvae.execution.limits import Limits, Memory
from wanvae.execution.meter import MemoryMeter
from wanvae.execution.network import Network, remember_by_architecture
from wanvae.execution.plan import Plan, make_default_plan, make_tiles
from wanvae.execution.rehearsal import Rehearsal
from wanvae.execution.tiling import Coding, LocalTiles
from wanvae.nn import unstreamable_layers
from wanvae.nn.kernels.dispatch import rehearsing
from wanvae.nn.region import Region

UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
# Bytes that libraries need besides tensors, and bytes that the heap wastes between tensors.
OVERHEAD = 64 * UNITS["MB"]
# Bytes that planning takes, once in the life of a process: libraries that PyTorch loads for it.
PLANNING_MEMORY = 160 * UNITS["MB"]
# The smallest tile that is tried, in pixels; smaller tiles are nearly all halo.
SMALLEST_TILE = 64
# The number of plans of a kind that are tried for a stream.
STREAM_LOOKS = 12
# The number of smallest tiles that are tried: the very smallest overlap most and take more memory.
FEWEST_LOOKS = 3


class TooLittleMemory(UserError):
    """A memory limit that no plan fits.

    Attributes:
        needed: bytes of the plan that takes least memory.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class Planner:
    """Finds plans for an encoder or a decoder.

    Args:
        network: the network to plan for; only its shapes matter.
        overhead: bytes that a run takes besides its tensors.
        planning_memory: bytes that planning takes, if it uses the same memory as the run.
        smallest_tile: the smallest side of a tile to try, in pixels.

    Attributes:
        network: the twin of the network on the meta device.
        costs: the costs of plans for the network.
    """

    def __init__(
        self,
        network: Network,
        *,
        overhead: int = OVERHEAD,
        planning_memory: int = PLANNING_MEMORY,
        smallest_tile: int = SMALLEST_TILE,
    ) -> None:
        self.network = network.twin()
        self.costs = Costs(self.network)
        self._overhead = overhead
        self._planning_memory = planning_memory
        self._smallest_tile = smallest_tile
        self._parameters = list(nn.ModuleList(self.network.layers).parameters())
        self._rehearsal = Rehearsal()
        self._memory = cache(self._find_memory)
        self._peak_of_tile = cache(self._find_peak_of_tile)

    def plan_for(self, workload: Workload, max_memory: int) -> Plan:
        """Returns the plan that is expected to be fastest within ``max_memory`` bytes.

        On the CPU, planning itself counts towards ``max_memory``.

        Raises:
            TooLittleMemory: every plan takes more.
        """
        planning = 0 if workload.offloads else self._planning_memory
        plan = self._fastest_within(workload, max_memory - planning)
        if plan is None:
            needed = self._smallest(workload) + planning
            raise TooLittleMemory(
                f"{show_memory(max_memory)} is too little memory for this: it takes at least "
                f"{show_memory(needed)}, besides the model and its input",
                needed,
            )
        return plan

    def choose(self, workload: Workload, limits: Limits) -> Plan:
        """Returns what ``choose_plan`` returns for this network, with the costs found so far."""
        if limits.max_memory is None or limits.plan is not None:
            return choose_plan(self.network, workload, limits)
        return self.plan_for(workload, parse_memory(limits.max_memory))

    def _fastest_within(self, workload: Workload, limit: int) -> Plan | None:
        """Returns the fastest plan within ``limit`` bytes, or None if every plan takes more."""
        whole = self._default_plan(workload)
        if self.memory(workload, whole) <= limit:
            return replace(whole, lean=True)
        for kinds in self._plans(workload):
            best: Plan | None = None
            for plans in kinds:
                best = self._faster(workload, plans, limit, best) or best
            if best is not None:
                return best
        return None

    def _faster(
        self, workload: Workload, plans: list[Plan], limit: int, best: Plan | None
    ) -> Plan | None:
        """Returns the fastest plan of a kind that fits and is faster than ``best``, or None."""
        plans = self._plans_to_try(workload, plans)
        if best is not None:
            slowness = self._slowness(workload, best)
            plans = [plan for plan in plans if self._slowness(workload, plan) < slowness]
        if not self._needs_all(workload, plans):
            plans = plans[: max(self._count_within(workload, plans, limit), FEWEST_LOOKS)]
        by_time = sorted(plans, key=lambda plan: self._slowness(workload, plan))
        return next((plan for plan in by_time if self.memory(workload, plan) <= limit), None)

    def _count_within(self, workload: Workload, plans: list[Plan], limit: int) -> int:
        """Returns how many plans fit. ``plans`` are in order of their tiles, the smallest first.

        Memory grows about linearly with the area of the largest tile, so a few plans tell.
        """
        areas = [self.costs.largest_area(workload, plan) for plan in plans]
        low, high, index = 0, len(plans), len(plans) // 2
        before: tuple[int, int] | None = None
        guesses = 4  # after these, a binary search
        while low < high:
            area, memory = areas[index], self.memory(workload, plans[index])
            low, high = (index + 1, high) if memory <= limit else (low, index)
            index = (low + high) // 2
            if before is not None and memory != before[1] and guesses:
                guesses -= 1
                slope = (area - before[0]) / (memory - before[1])
                index = bisect_right(areas, area + slope * (limit - memory))
            index = min(max(index, low), high - 1)
            before = area, memory
        return low

    def _smallest(self, workload: Workload) -> int:
        """Returns the least memory of all plans that are tried, in bytes."""
        smallest = [self._default_plan(workload)]
        for plans in chain.from_iterable(self._plans(workload)):
            looks = self._plans_to_try(workload, plans)
            smallest += looks if self._needs_all(workload, looks) else looks[:FEWEST_LOOKS]
        return min(self.memory(workload, plan) for plan in smallest)

    def _plans_to_try(self, workload: Workload, plans: list[Plan]) -> list[Plan]:
        """Returns the plans of a kind to try, in order of their tiles, the smallest first."""
        frame = workload.height, workload.width

        def order(plan: Plan) -> tuple[int, int]:
            """Where halos reach the sides of the frame, the tile itself decides."""
            return self.costs.largest_area(workload, plan), math.prod(plan.tile_size or frame)

        plans = sorted(plans, key=order)
        every = math.ceil(len(plans) / STREAM_LOOKS) if self._needs_all(workload, plans) else 1
        return plans[::every]

    def _needs_all(self, workload: Workload, plans: list[Plan]) -> bool:
        """Whether larger tiles may take less memory: in a stream whose states are not offloaded.

        Large tiles take much memory at once. Small tiles overlap more and have larger states.
        """
        return workload.latents is None and not any(plan.offload for plan in plans)

    def _default_plan(self, workload: Workload) -> Plan:
        sides = workload.height, workload.width
        return make_default_plan(self.network, *sides, None, workload.step_pixels)

    def tiles(self, workload: Workload, plan: Plan) -> list[Region | None]:
        """Returns the tiles of a plan."""
        return make_tiles(self.network, workload.height, workload.width, plan)

    def memory(self, workload: Workload, plan: Plan) -> int:
        """Returns the expected peak of ``plan`` in bytes, without model and input."""
        return self._memory(workload, replace(plan, lean=False))

    @torch.no_grad()
    def _find_memory(self, workload: Workload, plan: Plan) -> int:
        largest = self.costs.largest_tile(workload, plan)
        if workload.latents is None:
            return self._overhead + self._stream_memory(workload, plan, largest)

        def peak(latents: int) -> int:
            x = self._input(workload, latents)
            # The second tile runs while the result takes memory. So do later steps of one tile.
            several = len(self.tiles(workload, plan)) > 1 and latents <= plan.latents_at_once + 1
            tiles = [largest] * (2 if several else 1)
            with self._meter(workload, x) as meter:
                coding = self._rehearse(plan, tiles, meter, latents)
                join(coding.push([x]), self.network.count_output_frames(x.shape[2], starts=True))
            return meter.peak

        return self._overhead + extrapolate_cost(peak, workload.latents, plan)

    def _stream_memory(self, workload: Workload, plan: Plan, largest: Region | None) -> int:
        """Returns the peak of a stream of one tile plus the states of all other tiles, in bytes."""
        peak = self._peak_of_tile(workload, replace(plan, offload=False))
        if largest is None or plan.offload:
            return peak
        # Tiles that read and write the same sizes have states of the same size.
        tiles = [tile for tile in self.tiles(workload, plan) if tile is not None]
        kinds = [(self.costs.kind(tile, plan), tile) for tile in tiles]
        numbers = Counter(kind for kind, _ in kinds)
        of_kinds = dict(kinds)
        sizes = dict(
            zip(of_kinds, self._state_sizes(workload, plan, [*of_kinds.values()]), strict=True)
        )
        states = sum(size * numbers[kind] for kind, size in sizes.items())
        return peak + states - sizes[self.costs.kind(largest, plan)]

    @torch.no_grad()
    def _find_peak_of_tile(self, workload: Workload, plan: Plan) -> int:
        """Returns the peak of a stream of the largest tile alone, in bytes."""
        at_once = plan.latents_at_once
        tiles = [self.costs.largest_tile(workload, plan)]
        x = self._input(workload, 1 + 2 * at_once)
        steps = [self.network.first, *[at_once * self.network.group] * 2]
        with self._meter(workload, x) as meter:
            coding = self._rehearse(plan, tiles, meter)
            for piece in x.split(steps, dim=2):
                for _ in coding.push([piece]):
                    pass
        return meter.peak

    def _state_sizes(self, workload: Workload, plan: Plan, tiles: Sequence[Region]) -> list[int]:
        """Returns the bytes of the states that the tiled layers keep for each tile."""
        x = self._input(workload, 1 + 2)
        with self._meter(workload, x) as meter:
            coding = self._rehearse(plan, tiles, meter)
            for _ in coding.push([x]):
                pass
        flows = zip(*(flows for part, flows in coding.parts if not part.whole), strict=True)
        return [
            sum(leaf.nbytes for leaf in tree_leaves([flow.state for _, flow in of_tile]))
            for of_tile in flows
        ]

    @contextmanager
    def _meter(self, workload: Workload, x: Tensor) -> Iterator[MemoryMeter]:
        """Measures the memory of a run on ``x``, without model and input."""
        device = workload.rehearsal if workload.offloads else "cpu"
        with MemoryMeter([x, *self._parameters]) as meter, rehearsing(device):
            yield meter

    def _rehearse(
        self,
        plan: Plan,
        tiles: Sequence[Region | None],
        meter: MemoryMeter,
        latents: int | None = None,
    ) -> Coding:
        """Returns a coding of some tiles that runs inside ``meter``."""
        step = partial(self._rehearsal.step, meter)
        return Coding(self.network, plan, LocalTiles(tiles), latents, step=step)

    def _plans(self, workload: Workload) -> Iterator[list[list[Plan]]]:
        """Yields plans to try, grouped by kind: plans of one kind differ only in their tiles.

        The kinds of one list are about equally fast. Slower kinds come in later lists.
        """
        if unstreamable_layers(nn.ModuleList(self.network.layers)):
            return
        factor = self.network.spatial_factor
        tile_sizes = [
            *product(
                list_tile_sides(workload.height, factor, self._smallest_tile),
                list_tile_sides(workload.width, factor, self._smallest_tile),
            )
        ]
        offloads = (False, True) if workload.offloads and workload.latents is None else (False,)
        for offload, frames in product(offloads, (2, 1)):
            split = [Plan(size, frames, True, True, offload) for size in tile_sizes]
            plain = [replace(plan, split_core=False) for plan in split]
            yield [plain if offload else [Plan(None, frames, lean=True), *plain], split]

    def _slowness(self, workload: Workload, plan: Plan) -> int:
        """Returns a number that orders plans which differ only in their tiles: larger is slower."""
        return self.costs.multiply_adds(
            workload if workload.latents else replace(workload, latents=2), plan
        )

    def _input(self, workload: Workload, latents: int) -> Tensor:
        scale = self.network.pixels_per_input
        shape = (
            workload.batch,
            workload.channels,
            self.network.count_input(latents),
            workload.height // scale,
            workload.width // scale,
        )
        return torch.empty(shape, dtype=workload.dtype, device="meta")


def choose_plan(network: Network, workload: Workload, limits: Limits) -> Plan:
    """Returns the plan that ``limits`` ask for.

    Raises:
        UserError: the tile size is not a multiple of the spatial factor, or the text of the memory
            limit cannot be read.
        TooLittleMemory: every plan takes more than the memory limit.
    """
    if limits.plan is not None:
        return limits.plan
    if limits.max_memory is not None:
        return plan_within(network, workload, parse_memory(limits.max_memory))
    sides = workload.height, workload.width
    return make_default_plan(network, *sides, limits.tile_sides, workload.step_pixels)


@remember_by_architecture
def plan_within(network: Network, workload: Workload, max_memory: int) -> Plan:
    """Returns the fastest plan within ``max_memory`` bytes.

    Raises:
        TooLittleMemory: every plan takes more.
    """
    return Planner(network).plan_for(workload, max_memory)


@remember_by_architecture
def estimate_memory(network: Network, workload: Workload, plan: Plan) -> int:
    """Returns the expected peak of ``plan`` in bytes, without model and input."""
    return Planner(network).memory(workload, plan)


def list_tile_sides(side: int, factor: int, smallest: int) -> list[int]:
    """Returns lengths of tiles to try along a side, in pixels, the longest first."""
    most = max(1, side // smallest)
    counts, count = [most], 1
    while count < most:
        counts.append(count)
        count = max(count + 1, count * 5 // 4)
    return sorted({math.ceil(side / factor / n) * factor for n in counts}, reverse=True)


def extrapolate_cost(cost: Callable[[int], int], latents: int, plan: Plan) -> int:
    """Returns the ``cost`` of a clip of ``latents`` latents, for long clips from shorter clips."""
    at_once = plan.latents_at_once
    # After the second full step, the cost grows evenly.
    short, longer = 1 + 2 * at_once, 1 + 3 * at_once
    if plan.frames is None or latents <= longer:
        return cost(latents)
    of_short = cost(short)
    return of_short + (cost(longer) - of_short) * (latents - short) // at_once


def parse_memory(memory: Memory) -> int:
    """Returns the bytes of a text such as "700MB" or "4.5 GiB"; a number is bytes.

    GB and GiB are the same here: 1024 MB.

    Raises:
        UserError: the text cannot be read.
    """
    if isinstance(memory, int):
        return memory
    text = str(memory).upper()
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?\s*", text)
    if match is None:
        raise UserError(f"cannot read {memory!r} as memory: write a number and KB, MB or GB")
    return int(float(match[1]) * UNITS[f"{match[2]}B"])


def show_memory(size: int) -> str:
    """Returns bytes as text in MB, rounded up, which ``parse_memory`` reads."""
    return f"{-(-size // UNITS['MB'])}MB"
