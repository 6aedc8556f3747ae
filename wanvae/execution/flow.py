"""Running layers on a stream without gradients: how much of it at once, and in what order.

A network is cut into stages at its changes of resolution. Each stage takes pieces of the length
that suits its resolution, and each piece goes all the way before the next one starts, so what is in
memory at once is a few frames of each resolution and the states of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wanvae.nn import State, Streaming
from wanvae.nn.region import Region
from wanvae.nn.sequential import regions_between, space_factor, step_through, time_factor

# Pixels at full resolution that keep a small machine busy; more of them only cost memory.
STEP_PIXELS = 2**18
# Two frames at once take a third fewer multiply-adds than one and one (see nn/convolve.py).
FEWEST_FRAMES = 2


@dataclass(frozen=True)
class Stage:
    """Layers of one resolution, with the resampling before them (decoder) or after (encoder).

    Attributes:
        layers: in the order they run.
        frames: how many to take at once, after the first frame of a stream; None is all.
        group: how many of its frames make one latent, after the first.
    """

    layers: tuple[nn.Module, ...]
    frames: int | None
    group: int


def default_frames(height: int, width: int) -> int:
    """How many frames of this size, at full resolution, to process at once."""
    return max(FEWEST_FRAMES, STEP_PIXELS // (height * width) // 2 * 2)


def latents_at_once(frames: int) -> int:
    """Most latents to process at once with so many frames at full resolution."""
    return max(min(frames, 4), frames // 4)


def make_stages(layers: Sequence[nn.Module], frames: int | None, group: int) -> list[Stage]:
    """Cut the layers of an encoder or a decoder into stages.

    Args:
        layers: all of them; the decoder's start at its smallest resolution.
        frames: to process at once at full resolution, 1 or an even number; smaller resolutions have
            more at once. None is all.
        group: frames of the first layer's input that make one latent: 1 in a decoder.
    """
    if frames is None:
        return [Stage(tuple(layers), None, group)]
    latents = latents_at_once(frames)
    runs: list[list[nn.Module]] = [[]]
    for layer in layers:
        doubles, halves = resampling_of(layer)
        if doubles:
            runs.append([])
        runs[-1].append(layer)
        if halves:
            runs.append([])
    # Full resolution is one pixel of the video for each position: a decoder starts far from it.
    scale = max(Fraction(1), space_factor(layers))
    stages = []
    for run in runs:
        before, scale = scale, scale / space_factor(run)
        at_once = min(frames * int(min(before, scale)), latents * group)
        factor = time_factor(run)
        # Half as many before time is doubled, and whole pairs where it is halved.
        taken = max(factor.denominator, at_once // factor.numerator)
        stages.append(Stage(tuple(run), taken, group))
        group = int(group * factor)
    return stages


def resampling_of(layer: Streaming) -> tuple[bool, bool]:
    """Whether a layer raises the resolution of time or space, and whether it lowers one."""
    factors = (layer.time_factor(), layer.space_factor()) if layer.resamples() else ()
    return any(factor > 1 for factor in factors), any(factor < 1 for factor in factors)


def first_parameter(layers: Iterable[nn.Module]) -> nn.Parameter:
    """The first parameter of some layers: it tells their dtype and device."""
    return next(chain.from_iterable(layer.parameters() for layer in layers))


class Flow:
    """A stream through some stages: pieces in, pieces out, the states of the layers in between.

    Args:
        region: the part of each output frame to make; None is all. Pieces are then the part
            ``input_region`` of each input frame.
        latents: how many the stream has in all, if that is known: states are dropped at its end.
        state: of an earlier flow, to go on from.
        compiled: whether to run each stage as one compiled step; those of regions are not.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        region: Region | None = None,
        latents: int | None = None,
        state: State = None,
        *,
        compiled: bool = False,
    ) -> None:
        self._stages = stages
        self._compiled = compiled and region is None
        self._latents = latents
        self._processed = [0] * len(stages)
        layers = [layer for stage in stages for layer in stage.layers]
        self.input_region, *wanted = regions_between(layers, region)
        self._wanted = dict(zip(layers, wanted, strict=True))
        states = [None] * len(layers) if state is None else state
        self._states = dict(zip(layers, states, strict=True))

    @property
    def started(self) -> bool:
        """Whether something has been processed, of which more is to come."""
        return any(state is not None for state in self._states.values())

    @property
    def state(self) -> State:
        """The states of the layers."""
        return tuple(self._states.values())

    @property
    def device(self) -> torch.device:
        """Where the layers are; between steps the states may be elsewhere."""
        return first_parameter(self._stages[0].layers).device

    def move_state(self, device: torch.device) -> None:
        """Move the states of the layers."""
        self._states = tree_map(lambda x: x if x is None else x.to(device), self._states)

    def push(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Process the next whole groups of frames; the results come as they are ready."""
        for index in range(len(self._stages)):
            pieces = self._through(index, pieces)
        return iter(pieces)

    def _through(self, index: int, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        stage = self._stages[index]
        if stage.frames is not None:
            starts = self._states[stage.layers[0]] is None
            pieces = regroup(pieces, stage.frames, starts=starts)
        for piece in pieces:
            self._processed[index] += piece.shape[2]
            # Only here, so that a long video need not fit on the device of the model.
            like = first_parameter(stage.layers)
            yield self._run(stage, piece.to(like.device, like.dtype), ends=self._ends(index))

    def _ends(self, index: int) -> bool:
        if self._latents is None:
            return False
        return self._processed[index] == 1 + (self._latents - 1) * self._stages[index].group

    def _run(self, stage: Stage, x: Tensor, *, ends: bool) -> Tensor:
        if self._compiled:
            return self._compiled_step(stage, x, ends=ends)
        for layer in stage.layers:
            # No longer held here, so that it is freed as soon as the layer has its next state.
            state, self._states[layer] = self._states[layer], None
            x, state = layer.step(x, state, self._wanted[layer])
            self._states[layer] = None if ends else state
        return x

    def _compiled_step(self, stage: Stage, x: Tensor, *, ends: bool) -> Tensor:
        states = tuple(self._states[layer] for layer in stage.layers)
        started = any(state is not None for state in states)
        x, states = compiled_step()(stage.layers, x, states if started else None)
        for layer, state in zip(stage.layers, states, strict=True):
            self._states[layer] = None if ends else state
        return x


@cache
def compiled_step() -> Callable[..., tuple[Tensor, State]]:
    """``step_through``, compiled for each new shape."""
    return torch.compile(step_through, dynamic=False)


def regroup(pieces: Iterable[Tensor], frames: int, *, starts: bool) -> Iterator[Tensor]:
    """Cut and join pieces to ``frames`` of them; the first is one frame if the stream ``starts``.

    The last piece may be shorter.
    """
    wanted = 1 if starts else frames
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


def join(pieces: Iterable[Tensor], frames: int) -> Tensor:
    """Pieces of ``frames`` in all one after another, each put in its place as it comes."""
    joined, start = None, 0
    for piece in pieces:
        if piece.shape[2] == frames:
            return piece.contiguous()
        if joined is None:
            joined = piece.new_empty((*piece.shape[:2], frames, *piece.shape[3:]))
        joined[:, :, start : start + piece.shape[2]] = piece
        start += piece.shape[2]
    return joined
