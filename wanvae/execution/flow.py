"""A stream through layers, without gradients: how many frames at once, and in which order.

A network is cut into stages where its resolution changes. Each stage takes pieces of a length that
suits its resolution. Each piece goes through all stages before the next piece starts. So memory
holds only a few frames of each resolution and the states of the layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wanvae.errors import UserError
from wanvae.execution.compilation import StepOfStage
from wanvae.nn import State, Streaming
from wanvae.nn.region import Region
from wanvae.nn.sequential import count_output, find_regions_between, space_factor, time_factor
from wanvae.nn.streaming import give_away

# Pixels at full resolution that keep a CPU busy, or a GPU; more pixels only cost memory.
STEP_PIXELS = 2**18
STEP_PIXELS_OF_GPU = 2**20
# Two frames at once take a third fewer multiply-adds than one and one (see
# nn/kernels/winograd.py).
FEWEST_FRAMES = 2
# The states of layers, in the order they run.
FlowState: TypeAlias = "tuple[State, ...]"
# Runs a step of a layer for an input, a state and a region.
StepOfLayer: TypeAlias = "Callable[[Streaming, Tensor, State, Region | None], tuple[Tensor, State]]"


@dataclass(frozen=True)
class Stage:
    """Layers of one resolution, with the resampling before them (decoder) or after (encoder).

    Attributes:
        layers: in the order they run.
        frames: frames to take at once, after the first latent of a stream; None is all frames.
        group: frames of the input of the stage that become one latent, after the first latent.
        first: frames of the input of the stage that become the first latent.
    """

    layers: tuple[Streaming, ...]
    frames: int | None
    group: int
    first: int = 1


def choose_frames(height: int, width: int, step_pixels: int = STEP_PIXELS) -> int:
    """Returns how many frames of this size in pixels to process at once."""
    return max(FEWEST_FRAMES, step_pixels // (height * width) // 2 * 2)


def count_latents_at_once(frames: int) -> int:
    """Returns the most latents to process at once, for this many frames at full resolution."""
    return max(min(frames, 4), frames // 4)


def make_stages(
    layers: Sequence[Streaming], frames: int | None, group: int, first: int = 1
) -> list[Stage]:
    """Cuts the layers of an encoder or a decoder into stages.

    Args:
        layers: all layers. A decoder starts at the smallest resolution.
        frames: frames to process at once at full resolution, 1 or an even number. Smaller
            resolutions process more frames at once. None is all frames.
        group: frames of the input of the first layer that become one latent: 1 in a decoder.
        first: frames of this input that become the first latent.
    """
    if frames is None:
        return [Stage(tuple(layers), None, group, first)]
    latents = count_latents_at_once(frames)
    runs: list[list[Streaming]] = [[]]
    for layer in layers:
        raises, lowers = find_resampling(layer)
        if raises:
            runs.append([])
        runs[-1].append(layer)
        if lowers:
            runs.append([])
    # At full resolution each position is one pixel of the video. A decoder starts far below it.
    scale = max(Fraction(1), space_factor(layers))
    stages = []
    for run in runs:
        before, scale = scale, scale / space_factor(run)
        at_once = min(frames * int(min(before, scale)), latents * group)
        factor = time_factor(run)
        # Half as many frames before time is doubled, and whole pairs before time is halved.
        taken = max(factor.denominator, at_once // factor.numerator)
        stages.append(Stage(tuple(run), taken, group, first))
        group = int(group * factor)
        first = count_output(run, first, starts=True)
    return stages


def find_resampling(layer: Streaming) -> tuple[bool, bool]:
    """Returns whether a layer raises the resolution of time or space, and whether it lowers one."""
    factors = (layer.time_factor(), layer.space_factor()) if layer.resamples() else ()
    return any(factor > 1 for factor in factors), any(factor < 1 for factor in factors)


def first_parameter(layers: Iterable[nn.Module]) -> nn.Parameter:
    """Returns the first parameter of some layers, which has their dtype and device."""
    return next(chain.from_iterable(layer.parameters() for layer in layers))


def run_step(
    layer: Streaming, x: Tensor, state: State, region: Region | None
) -> tuple[Tensor, State]:
    """Runs a step of a layer."""
    return layer.step(x, state, region)


class PushGuard:
    """A guard that refuses to continue a stream after a push that was not completed.

    After an error or an interrupt, some layers are one piece ahead of the others, and the layer
    that was running has lost its state.
    """

    def __init__(self) -> None:
        self._broken = False

    def check(self) -> None:
        """Raises UserError if the stream cannot continue."""
        if self._broken:
            raise UserError(
                "this stream is broken because an earlier piece was not processed to its end: "
                "start a new stream, or continue from a state that was saved before that piece"
            )

    @contextmanager
    def pushing(self) -> Iterator[None]:
        """Marks the stream as broken, unless the push inside ``with`` is completed."""
        self.check()
        self._broken = True
        yield
        self._broken = False


class Flow:
    """A stream through some stages: pieces in, pieces out, and the states of the layers.

    Args:
        region: the part of each output frame to compute; None is the whole frame. With a region,
            pieces are the part ``input_region`` of each input frame.
        latents: the length of the stream in latents, if known. States are dropped at its end.
        state: the state of an earlier flow, to continue from.
        stage_step: runs the step of a whole stage; None runs layer by layer. Regions always run
            layer by layer.
        step: runs the step of a layer, layer by layer.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        region: Region | None = None,
        latents: int | None = None,
        state: FlowState | None = None,
        stage_step: StepOfStage | None = None,
        step: StepOfLayer = run_step,
    ) -> None:
        self._stages = stages
        self._step = step
        self._stage_step = stage_step if region is None else None
        self._latents = latents
        self._processed = [0] * len(stages)
        self._guard = PushGuard()
        layers = [layer for stage in stages for layer in stage.layers]
        self.input_region, *wanted = find_regions_between(layers, region)
        self._wanted = dict(zip(layers, wanted, strict=True))
        states = (None,) * len(layers) if state is None else state
        self._states = dict(zip(layers, states, strict=True))

    @property
    def started(self) -> bool:
        """Whether the stream has started and is not at its end."""
        return any(state is not None for state in self._states.values())

    @property
    def state(self) -> FlowState:
        """The states of the layers."""
        return tuple(self._states.values())

    @property
    def device(self) -> torch.device:
        """The device of the layers; between pushes the states may be elsewhere."""
        return first_parameter(self._stages[0].layers).device

    def move_state(self, device: torch.device) -> None:
        """Moves the states of the layers to a device."""
        self._states = tree_map(lambda x: x if x is None else x.to(device), self._states)

    def push(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Processes the next whole groups of frames, and yields results as they are ready.

        Raises:
            UserError: an earlier push was not completed.
        """
        with self._guard.pushing():
            for index in range(len(self._stages)):
                pieces = self._through(index, pieces)
            yield from pieces

    def _through(self, index: int, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        stage = self._stages[index]
        starts = self._states[stage.layers[0]] is None
        frames = sys.maxsize if stage.frames is None else stage.frames
        first = stage.first if starts and stage.frames is not None else frames
        pieces = regroup(pieces, frames, first)
        for piece in pieces:
            self._processed[index] += piece.shape[2]
            # Pieces move to the device here, so that a long video need not fit on the device.
            like = first_parameter(stage.layers)
            yield self._run(stage, piece.to(like.device, like.dtype), ends=self._ends(index))

    def _ends(self, index: int) -> bool:
        if self._latents is None:
            return False
        stage = self._stages[index]
        return self._processed[index] == stage.first + (self._latents - 1) * stage.group

    def _run(self, stage: Stage, x: Tensor, *, ends: bool) -> Tensor:
        if self._stage_step is not None:
            return self._step_at_once(self._stage_step, stage, x, ends=ends)
        for layer in stage.layers:
            # Not held here, so that the old state is freed while the layer runs.
            state, self._states[layer] = give_away(self._states[layer]), None
            x, state = self._step(layer, x, state, self._wanted[layer])
            self._states[layer] = None if ends else state
        return x

    def _step_at_once(self, step: StepOfStage, stage: Stage, x: Tensor, *, ends: bool) -> Tensor:
        states = tuple(self._states[layer] for layer in stage.layers)
        started = any(state is not None for state in states)
        x, states = step(stage.layers, x, states if started else None)
        for layer, state in zip(stage.layers, states, strict=True):
            self._states[layer] = None if ends else state
        return x


def regroup(pieces: Iterable[Tensor], frames: int, first: int) -> Iterator[Tensor]:
    """Yields the frames of pieces: a piece of ``first`` frames, then pieces of ``frames`` frames.

    The last piece may be shorter.
    """
    wanted = first
    waiting = None
    for piece in pieces:
        waiting = piece if waiting is None else torch.cat([waiting, piece], dim=2)
        while waiting is not None and waiting.shape[2] >= wanted:
            ready = waiting[:, :, :wanted]
            waiting = waiting[:, :, wanted:] if waiting.shape[2] > wanted else None
            wanted = frames
            yield ready
    if waiting is not None:
        yield waiting
