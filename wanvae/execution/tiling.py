"""Exact tiling: an encoder or a decoder in parts of each frame, with the result of the whole.

Few layers look across whole frames, all of them at the smallest resolution: those and their
neighbours are the core, which runs on whole frames. The rest, the shell, sees a bounded
neighbourhood of each pixel and runs tile by tile, each with as much around it as its layers need
and a stream state of its own. Where a tile ends inside the image a layer reads what lies there, and
where the image ends it pads: no seam, no blending. For frames so large that the core is too much,
it is split: only the layers that really look across frames run on whole ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby, pairwise, product

import torch
from torch import Tensor, nn

from wanvae.engine.memory import returning_freed_memory
from wanvae.errors import UserError
from wanvae.execution.flow import (
    Flow,
    Stage,
    default_frames,
    join,
    make_stages,
)
from wanvae.nn import State, needs_whole_frames, unstreamable_layers
from wanvae.nn.kernels.pool import KEPT, KEPT_WITHIN_LIMITS, POOL
from wanvae.nn.region import Region, Span, crop, whole_of
from wanvae.nn.sequential import resampled, space_factor, time_factor

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """How to run a network.

    Attributes:
        tile_size: height and width in pixels of the largest tile; None is the whole frame.
        frames: how many to process at once at full resolution; None is the whole clip.
        lean: return memory to the system as soon as it is free; slower, but budgets hold.
        split_core: run the core's convolutions on tiles too; they overlap more.
        offload: keep the states of tiles in the memory of the host while other tiles run.
    """

    tile_size: tuple[int, int] | None
    frames: int | None
    lean: bool = False
    split_core: bool = False
    offload: bool = False


@dataclass(frozen=True)
class Part:
    """Layers in a row that run alike.

    Attributes:
        layers: in the order they run.
        whole: whether they run on whole frames, and not on tiles.
        scale: pixels of the video along each side per position of their output.
    """

    layers: tuple[nn.Module, ...]
    whole: bool
    scale: int


@dataclass(frozen=True)
class Network:
    """The layers of an encoder or a decoder.

    Attributes:
        core: layers that run on whole frames where they are not split.
        shell: layers that can run on tiles.
        core_first: True in a decoder.
        out_channels: of what they make.
        spatial_factor: pixels per latent along height and width.
        temporal_factor: frames per latent after the first.
    """

    core: tuple[nn.Module, ...]
    shell: tuple[nn.Module, ...]
    core_first: bool
    out_channels: int
    spatial_factor: int
    temporal_factor: int

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """All layers in the order they run."""
        return self.core + self.shell if self.core_first else self.shell + self.core

    @property
    def group(self) -> int:
        """Inputs that make one latent, after the first."""
        return 1 if self.core_first else self.temporal_factor

    @property
    def pixels_per_input(self) -> int:
        """Pixels of the video along each side per position of the input."""
        return self.spatial_factor if self.core_first else 1

    def parts(self, *, split_core: bool) -> list[Part]:
        """The layers, cut where whole frames and tiles meet."""
        whole = needs_whole_frames if split_core else self.core.__contains__
        parts, scale = [], self.pixels_per_input
        for on_whole_frames, run in groupby(self.layers, whole):
            layers = tuple(run)
            scale = int(scale / space_factor(layers))
            parts.append(Part(layers, on_whole_frames, scale))
        return parts

    def frames_made(self, pushed: int, *, starts: bool) -> int:
        """How many frames (latents) come of so many latents (frames), whole groups of them."""
        factor = Fraction(self.temporal_factor)
        return resampled(pushed, factor if self.core_first else 1 / factor, starts=starts)


def make_network(
    core: Sequence[nn.Module],
    shell: Sequence[nn.Module],
    *,
    core_first: bool,
    out_channels: int,
    spatial_factor: int,
    temporal_factor: int,
) -> Network:
    """A network whose shell layers that look across whole frames belong to the core."""
    across = [index for index, layer in enumerate(shell) if needs_whole_frames(layer)]
    core, shell = tuple(core), tuple(shell)
    if across and core_first:
        cut = across[-1] + 1
        core, shell = core + shell[:cut], shell[cut:]
    elif across:
        cut = across[0]
        core, shell = shell[cut:] + core, shell[:cut]
    return Network(core, shell, core_first, out_channels, spatial_factor, temporal_factor)


def default_plan(
    network: Network, height: int, width: int, tile_size: tuple[int, int] | None
) -> Plan:
    """The fastest plan for frames of this size in pixels.

    Raises:
        ValueError: ``tile_size`` is no multiple of the spatial factor, or the network needs whole
            clips.
    """
    if unstreamable_layers(nn.ModuleList(network.layers)):
        if tile_size is not None:
            raise UserError("a model with layers that look across all of time cannot be tiled")
        return Plan(None, None)
    if tile_size is None:
        return Plan(None, default_frames(height, width))
    factor = network.spatial_factor
    if min(tile_size) < 1 or any(side % factor for side in tile_size):
        raise UserError(f"tile_size must be a positive multiple of {factor}, not {tile_size}")
    sides = [min(side, tile) for side, tile in zip((height, width), tile_size, strict=True)]
    return Plan(tile_size, default_frames(*sides))


class Coding:
    """A stream through an encoder or a decoder, by a plan.

    Within one push the tiles take turns, each through all of the pushed time: what a clip pushed at
    once needs is the state of one tile. From push to push, the state of each tile is kept.

    Args:
        plan: how to run, but for its tiles.
        tiles: those, as ``make_tiles`` gives them.
        latents: how many the stream has in all, if that is known.
        state: of an earlier coding by the same plan, to go on from.
        compiled: whether to run compiled steps, one latent at a time.

    Attributes:
        parts: each with the streams through it and what they make: one of whole frames (None), or
            one for each tile.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        tiles: Sequence[Region | None],
        latents: int | None = None,
        state: State = None,
        *,
        compiled: bool = False,
    ) -> None:
        if compiled:
            stages = [Stage(network.layers, network.group, network.group)]
        else:
            stages = make_stages(network.layers, plan.frames, network.group)
        self._network = network
        self._plan = plan
        self.parts: list[tuple[Part, list[tuple[Region | None, Flow]]]] = []
        for index, part in enumerate(network.parts(split_core=plan.split_core)):
            of_part, stages = cut(stages, len(part.layers))
            made = regions_of(part, tiles)
            states = [None] * len(made) if state is None else state[index]
            flows = [
                (region, Flow(of_part, region, latents, flow_state, compiled=compiled))
                for region, flow_state in zip(made, states, strict=True)
            ]
            self.parts.append((part, flows))

    @property
    def started(self) -> bool:
        """Whether something has been processed, of which more is to come."""
        return any(flow.started for _, flows in self.parts for _, flow in flows)

    @property
    def state(self) -> State:
        """What is needed to go on later: for each part, the states of its streams."""
        return tuple(tuple(flow.state for _, flow in flows) for _, flows in self.parts)

    def run(self, x: Tensor) -> Tensor:
        """Process the next whole groups of frames, and return all of the result."""
        frames = self._network.frames_made(x.shape[2], starts=not self.started)
        with within_limits() if self._plan.lean else nullcontext():
            return join(self.push([x]), frames)

    def push(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Process the next whole groups of frames; the results come as they are ready."""
        starts = not self.started
        for part, flows in self.parts:
            region, flow = flows[0]
            if region is None:
                pieces = flow.push(pieces)
            else:
                pieces = self._tile_by_tile(part, flows, pieces, starts)
        return iter(pieces)

    def _tile_by_tile(
        self,
        part: Part,
        flows: Sequence[tuple[Region, Flow]],
        pieces: Iterable[Tensor],
        starts: bool,
    ) -> Iterator[Tensor]:
        """Lay the results of all tiles side by side."""
        pieces = list(pieces)
        frames = self._frames_of(part, pieces, starts=starts)
        whole = None
        for tile, flow in flows:
            whole = self._paint(whole, part, frames, tile, flow, pieces)
        yield whole

    def _frames_of(self, part: Part, pieces: Sequence[Tensor], *, starts: bool) -> int:
        """How many frames ``part`` makes of some pieces."""
        pushed = sum(piece.shape[2] for piece in pieces)
        return resampled(pushed, time_factor(part.layers), starts=starts)

    def _paint(
        self,
        whole: Tensor | None,
        part: Part,
        frames: int,
        tile: Region,
        flow: Flow,
        pieces: Sequence[Tensor],
    ) -> Tensor:
        """Write what a tile makes to its place in ``whole``, which the first one makes."""
        start = 0
        for made in self._through_tile(flow, pieces):
            if whole is None:
                whole = self._empty(made, frames, tile, part)
            crop(whole[:, :, start : start + made.shape[2]], whole_of(tile), tile).copy_(made)
            start += made.shape[2]
        return whole

    def _through_tile(self, flow: Flow, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """What a tile makes of its part of some pieces."""
        if self._plan.offload:
            flow.move_state(flow.device)
        region = flow.input_region
        yield from flow.push(crop(piece, whole_of(region), region) for piece in pieces)
        if self._plan.offload:
            flow.move_state(HOST)

    def _empty(self, made: Tensor, frames: int, tile: Region, part: Part) -> Tensor:
        rows, columns = tile
        is_video = self._network.core_first and part.layers[-1] is self._network.layers[-1]
        memory_format = torch.contiguous_format if is_video else torch.channels_last_3d
        shape = (*made.shape[:2], frames, rows.size, columns.size)
        return torch.empty(shape, dtype=made.dtype, device=made.device, memory_format=memory_format)


@contextmanager
def within_limits() -> Iterator[None]:
    """Keep little memory that is free, though it could be used again."""
    POOL.most_free = KEPT_WITHIN_LIMITS
    try:
        with returning_freed_memory():
            yield
    finally:
        POOL.most_free = KEPT
        POOL.clear()


def cut(stages: Sequence[Stage], count: int) -> tuple[list[Stage], list[Stage]]:
    """Stages of the first ``count`` layers, and of the others."""
    before, after = [], []
    for stage in stages:
        first, second = stage.layers[:count], stage.layers[count:]
        before += [replace(stage, layers=first)] if first else []
        if second:
            # More frames come out of the first ones if those double time.
            factor = time_factor(first)
            frames = None if stage.frames is None else int(stage.frames * factor)
            after.append(Stage(second, frames, int(stage.group * factor)))
        count = max(0, count - len(stage.layers))
    return before, after


def make_tiles(network: Network, height: int, width: int, plan: Plan) -> list[Region | None]:
    """The parts of each frame, in pixels, that ``plan`` makes one by one; [None] is all of it.

    Tiles are of about equal size, none larger than planned.

    Args:
        height, width: of the frames in pixels.
    """
    if plan.tile_size is None:
        return [None]
    sides = zip((height, width), plan.tile_size, strict=True)
    return list(product(*(spans(side, tile, network.spatial_factor) for side, tile in sides)))


def regions_of(part: Part, tiles: Sequence[Region | None]) -> list[Region | None]:
    """What ``part`` makes for each of some tiles."""
    if part.whole or tiles[0] is None:
        return [None]
    return [shrunk(tile, part.scale) for tile in tiles]


def spans(size: int, largest: int, factor: int) -> list[Span]:
    """As few spans as cover ``size``, of about equal length, multiples of ``factor``."""
    count = math.ceil(size / largest)
    ends = [size // factor * index // count * factor for index in range(count + 1)]
    return [Span(start, stop, size) for start, stop in pairwise(ends)]


def shrunk(region: Region, factor: int) -> Region:
    """``region`` of an image as one of the image ``factor`` times smaller."""
    rows, columns = (Span(s.start // factor, s.stop // factor, s.size // factor) for s in region)
    return rows, columns
