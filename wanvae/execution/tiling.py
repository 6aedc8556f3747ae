"""Exact tiling: a stream runs tile by tile. The result equals the result of whole frames.

Few layers look across whole frames, all at the smallest resolution. These layers and their
neighbours are the core, which runs on whole frames. The other layers are the shell. They see a
bounded neighbourhood of each pixel and run tile by tile. Each tile has as much around it as its
layers need, and its own stream state. At a border inside the image a layer reads the real
neighbours, and only at the border of the image it pads. So there is no seam and no blending. If
frames are so large that the core takes too much memory, the core is split: then only the layers
that look across frames run on whole frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from wanvae.engine.memory import returning_freed_memory
from wanvae.execution.compilation import Compilation, compiled_step
from wanvae.execution.flow import (
    Flow,
    FlowState,
    PushGuard,
    Stage,
    StepOfLayer,
    first_parameter,
    make_stages,
    run_step,
)
from wanvae.execution.graphs import CUDAGraphs
from wanvae.execution.joining import join
from wanvae.execution.network import Network, Part
from wanvae.execution.plan import Plan, find_regions
from wanvae.nn.kernels.pool import POOL
from wanvae.nn.region import Region, crop, crop_whole, expand_to_whole
from wanvae.nn.sequential import count_output, time_factor

# For each part, the states of its flows.
CodingState: TypeAlias = "tuple[tuple[FlowState, ...], ...]"

HOST = torch.device("cpu")


class Painting:
    """The frames that a tiled part computes in one push, painted tile by tile.

    Args:
        tiles: the region of each tile in the output, and the flow through it.
        pieces: the input of the part.
        is_video: whether the output is the decoded video.
        starts: whether the stream starts with these pieces.
        offload: whether the states of tiles wait in the memory of the host.

    Attributes:
        frames: number of frames of the output.
        whole: the output; None before the first tile is painted.
    """

    def __init__(
        self,
        part: Part,
        tiles: Sequence[tuple[Region, Flow]],
        pieces: Sequence[Tensor],
        *,
        is_video: bool,
        starts: bool,
        offload: bool,
    ) -> None:
        pushed = sum(piece.shape[2] for piece in pieces)
        self.part = part
        self.tiles = tiles
        self.frames = count_output(part.layers, pushed, starts=starts)
        self.is_video = is_video
        self.whole: Tensor | None = None
        self._pieces = pieces
        self._offload = offload

    def paint(self, tile: Region, flow: Flow) -> None:
        """Computes a tile and writes it to its place."""
        start = 0
        for computed in self.compute(flow):
            stop = start + computed.shape[2]
            self.place(tile, computed)[:, :, start:stop].copy_(computed)
            start = stop

    def compute(self, flow: Flow) -> Iterator[Tensor]:
        """Yields the output of a tile. The caller must take all of it."""
        if self._offload:
            flow.move_state(flow.device)
        yield from flow.push(crop_whole(piece, flow.input_region) for piece in self._pieces)
        if self._offload:
            flow.move_state(HOST)

    def place(self, tile: Region, like: Tensor) -> Tensor:
        """Returns the view of a tile in ``whole``, with batch, channels and dtype of ``like``."""
        if self.whole is None:
            rows, columns = tile
            order = torch.contiguous_format if self.is_video else torch.channels_last_3d
            shape = (*like.shape[:2], self.frames, rows.size, columns.size)
            self.whole = torch.empty(
                shape, dtype=like.dtype, device=like.device, memory_format=order
            )
        return crop(self.whole, expand_to_whole(tile), tile)

    def empty(self, batch: int, channels: int) -> Tensor:
        """Returns a tensor without positions, with the dtype and device of the output."""
        return first_parameter(self.part.layers).new_empty(batch, channels, 0, 0, 0)


class Exchange(Protocol):
    """An agreement on which process computes which tiles, and which process gets them."""

    @property
    def tiles(self) -> Sequence[Region | None]:
        """All tiles of a frame in pixels; [None] is the whole frame."""
        ...

    def paint(self, painting: Painting) -> Tensor | None:
        """Returns the painting with all tiles; None in a process that does not get it."""
        ...


class LocalTiles:
    """Tiles that this process computes alone."""

    def __init__(self, tiles: Sequence[Region | None]) -> None:
        self.tiles = tiles

    def paint(self, painting: Painting) -> Tensor | None:
        """Returns the painting with all tiles."""
        for tile, flow in painting.tiles:
            painting.paint(tile, flow)
        return painting.whole


class Coding:
    """A stream through an encoder or a decoder, by a plan.

    Within one push, tiles run one after another, and each tile goes through all pushed frames. So
    a clip that is pushed at once needs the state of only one tile. Between pushes the state of each
    tile is kept.

    Args:
        plan: how to run the network. The tiles come from ``exchange``.
        exchange: which process computes which tiles.
        latents: the length of the stream in latents, if known.
        state: the state of an earlier coding by the same plan, to continue from.
        compilation: how to compile steps of one latent; None does not compile.
        graphs: records and replays steps of whole frames; None runs layer by layer.
        step: runs the step of a layer, layer by layer.

    Attributes:
        parts: the parts of the network, each with its flows and the region of the output that each
            flow computes: one flow of whole frames (region None), or one flow for each tile.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        exchange: Exchange,
        latents: int | None = None,
        state: CodingState | None = None,
        compilation: Compilation | None = None,
        graphs: CUDAGraphs | None = None,
        step: StepOfLayer = run_step,
    ) -> None:
        if compilation is not None:
            stages = [Stage(network.layers, network.group, network.group, network.first)]
            stage_step = compiled_step(compilation)
        else:
            stages = make_stages(network.layers, plan.frames, network.group, network.first)
            stage_step = None if graphs is None else graphs.start()
        self._network = network
        self._plan = plan
        self._exchange = exchange
        self._guard = PushGuard()
        self.parts: list[tuple[Part, list[tuple[Region | None, Flow]]]] = []
        for index, part in enumerate(network.parts(split_core=plan.split_core)):
            of_part, stages = cut_stages(stages, len(part.layers))
            regions = find_regions(part, exchange.tiles)
            states = [None] * len(regions) if state is None else state[index]
            flows = [
                (region, Flow(of_part, region, latents, flow_state, stage_step, step))
                for region, flow_state in zip(regions, states, strict=True)
            ]
            self.parts.append((part, flows))

    @property
    def started(self) -> bool:
        """Whether the stream has started and is not at its end."""
        return any(flow.started for _, flows in self.parts for _, flow in flows)

    @property
    def state(self) -> CodingState:
        """All that is needed to continue later: for each part, the states of its flows.

        Raises:
            UserError: a push was not completed.
        """
        self._guard.check()
        return tuple(tuple(flow.state for _, flow in flows) for _, flows in self.parts)

    def run(self, x: Tensor, *more: Tensor, device: torch.device | None = None) -> Tensor:
        """Processes the next whole groups of frames, and returns the whole result.

        If several processes share a decoder, only the first process gets frames.

        Args:
            x: the next frames.
            more: frames after them. All frames together are whole groups.
            device: of the result; None is the device of the network.

        Raises:
            UserError: an earlier push was not completed.
            ProcessError: another process has ended.
        """
        network = self._network
        pieces = (x, *more)
        pushed = sum(piece.shape[2] for piece in pieces)
        frames = network.count_output_frames(pushed, starts=not self.started)
        with within_limits() if self._plan.lean else nullcontext():
            result = join(self.push(pieces), frames, device)
        if result is not None:
            return result
        height, width = (side * network.spatial_factor for side in x.shape[3:])
        like = first_parameter(network.layers)
        shape = len(x), network.out_channels, 0, height, width
        return torch.empty(shape, dtype=like.dtype, device=device or like.device)

    def push(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Processes the next whole groups of frames, and yields results as they are ready.

        Raises:
            UserError: an earlier push was not completed.
            ProcessError: another process has ended.
        """
        with self._guard.pushing():
            starts = not self.started
            for part, flows in self.parts:
                tiles = [(region, flow) for region, flow in flows if region is not None]
                if tiles:
                    pieces = self._tile_by_tile(part, tiles, pieces, starts)
                else:
                    pieces = flows[0][1].push(pieces)
            yield from pieces

    def _tile_by_tile(
        self,
        part: Part,
        tiles: Sequence[tuple[Region, Flow]],
        pieces: Iterable[Tensor],
        starts: bool,
    ) -> Iterator[Tensor]:
        """Yields the results of all tiles in one piece, if this process gets them."""
        network = self._network
        painting = Painting(
            part,
            tiles,
            list(pieces),
            is_video=network.core_first and part.layers[-1] is network.layers[-1],
            starts=starts,
            offload=self._plan.offload,
        )
        whole = self._exchange.paint(painting)
        if whole is not None:
            yield whole


@contextmanager
def within_limits() -> Iterator[None]:
    """Makes this process keep little free memory inside ``with``, so that limits hold."""
    with POOL.within_limits(), returning_freed_memory():
        yield


def cut_stages(stages: Sequence[Stage], count: int) -> tuple[list[Stage], list[Stage]]:
    """Returns the stages of the first ``count`` layers, and the stages of the other layers."""
    before, after = [], []
    for stage in stages:
        first, second = stage.layers[:count], stage.layers[count:]
        before += [replace(stage, layers=first)] if first else []
        if second:
            # The first layers may double time; then more frames come out of them.
            factor = time_factor(first)
            frames = None if stage.frames is None else int(stage.frames * factor)
            leading = count_output(first, stage.first, starts=True)
            after.append(Stage(second, frames, int(stage.group * factor), leading))
        count = max(0, count - len(stage.layers))
    return before, after
