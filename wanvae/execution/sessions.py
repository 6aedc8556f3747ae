"""Encoding and decoding video as it comes, piece by piece.

A session takes pieces of any length, hands the network whole groups, and holds its state: memory
does not grow with the length of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.execution.tiling import Coding, Network, Plan
from wanvae.nn import State, unstreamable_layers
from wanvae.posterior import Posterior

# Shape of a piece but for T; plan: frames, lean, split_core, offload, tile height and width;
# states of the layers; frames that wait for the rest of their group. None before the first piece.
PlanNumbers: TypeAlias = "tuple[int | None, bool, bool, bool, int | None, int | None]"
SessionState: TypeAlias = "tuple[tuple[int, ...], PlanNumbers, State, Tensor | None] | None"


@dataclass(frozen=True)
class EncodeEnd:
    """What the end of an encoding stream gives.

    Attributes:
        posterior: of the frames that were still waiting, or None if there were none.
        padded_frames: how often the last frame was repeated to complete their group; the decoded
            video has as many frames too many at its end.
    """

    posterior: Posterior | None
    padded_frames: int


@dataclass(frozen=True)
class Rules:
    """What a session needs to know of its model.

    Attributes:
        network: to run.
        check: raises ValueError for a piece of the wrong shape.
        choose: the plan for pieces of a shape.
        start: a coding of frames of a height and width in pixels, by a plan, from a state or none.
    """

    network: Network
    check: Callable[[Tensor], None]
    choose: Callable[[torch.Size], Plan]
    start: Callable[[Plan, int, int, State], Coding]


class Session:
    """What encoding and decoding streams have in common; it starts with the first piece.

    Args:
        state: of an earlier session, to go on from by its plan.
    """

    def __init__(self, rules: Rules, state: SessionState = None) -> None:
        require_streamable(rules.network)
        self._rules = rules
        self._network = rules.network
        self._coding: Coding | None = None
        self._waiting: Tensor | None = None
        if state is not None:
            shape, numbers, states, self._waiting = state
            frames, lean, split_core, offload, height, width = numbers
            tile_size = None if height is None or width is None else (height, width)
            self._start(shape, Plan(tile_size, frames, lean, split_core, offload), states)

    @property
    def state(self) -> SessionState:
        """Everything needed to go on later: ``vae.stream_encode(state=session.state)``.

        Nested tuples of tensors and numbers, for ``torch.save``.
        """
        if self._coding is None:
            return None
        plan = self._plan
        height, width = plan.tile_size or (None, None)
        numbers = plan.frames, plan.lean, plan.split_core, plan.offload, height, width
        return self._shape, numbers, self._coding.state, self._waiting

    @property
    def plan(self) -> Plan | None:
        """How frames are processed; None before the first piece."""
        return None if self._coding is None else self._plan

    def _start(self, shape: tuple[int, ...], plan: Plan, states: State) -> Coding:
        height, width = (side * self._network.pixels_per_input for side in shape[2:])
        self._shape, self._plan = shape, plan
        self._coding = self._rules.start(plan, height, width, states)
        return self._coding

    def _begin_or_check(self, piece: Tensor) -> Coding:
        """Start with the first piece; ValueError if a later one has another shape."""
        self._rules.check(piece)
        shape = (*piece.shape[:2], *piece.shape[3:])
        if self._coding is None:
            return self._start(shape, self._rules.choose(piece.shape), None)
        if shape != self._shape:
            before = (*self._shape[:2], "T", *self._shape[2:])
            raise UserError(
                f"a stream keeps its shape, but a piece of {tuple(piece.shape)} follows one of "
                f"({', '.join(map(str, before))})"
            )
        return self._coding


class StreamEncoder(Session):
    """Encodes a stream of frames; made by ``WanVAE.stream_encode``. No gradients are kept."""

    @torch.no_grad()
    def push(self, frames: Tensor) -> Posterior | None:
        """Add frames ``(B, C, T, H, W)``, T >= 1, in [-1, 1].

        Returns the posterior of the groups that are complete now, or None if there is none. The
        first frame is a group; after it every ``temporal_factor`` frames are one (4 for Wan2.1).

        Raises:
            ValueError: H or W is not a multiple of 8, or not that of the frames before.
        """
        coding = self._begin_or_check(frames)
        if self._waiting is not None:
            frames = torch.cat([self._waiting, frames], dim=2)
        factor = self._network.temporal_factor
        first = 0 if coding.started else 1
        ready = first + (frames.shape[2] - first) // factor * factor
        self._waiting = frames[:, :, ready:].clone() if ready < frames.shape[2] else None
        return Posterior.from_moments(coding.run(frames[:, :, :ready])) if ready else None

    @torch.no_grad()
    def finish(self) -> EncodeEnd:
        """Complete the last group by repeating its last frame and encode it."""
        coding, frames = self._coding, self._waiting
        if coding is None or frames is None:
            return EncodeEnd(None, 0)
        self._waiting = None
        missing = self._network.temporal_factor - frames.shape[2]
        tail = frames[:, :, -1:].expand(-1, -1, missing, -1, -1)
        moments = coding.run(torch.cat([frames, tail], dim=2))
        return EncodeEnd(Posterior.from_moments(moments), missing)


class StreamDecoder(Session):
    """Decodes a stream of latents; made by ``WanVAE.stream_decode``. No gradients are kept.

    Every latent is a group of its own, so nothing ever waits.
    """

    def __init__(self, rules: Rules, state: SessionState = None, *, clamp: bool = True) -> None:
        super().__init__(rules, state)
        self._clamp = clamp

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Decode raw latents ``(B, z_dim, T, H, W)``, T >= 1.

        The first gives one frame, every later one ``temporal_factor`` frames (4 for Wan2.1); of
        several processes that work together only the first gets any.

        Raises:
            ValueError: H or W is not that of the latents before.
        """
        video = self._begin_or_check(latents).run(latents)
        return video.clamp_(-1, 1) if self._clamp else video


def require_streamable(network: Network) -> None:
    """Raise ValueError if ``network`` can only process whole clips."""
    layers = unstreamable_layers(nn.ModuleList(network.layers))
    if layers:
        raise UserError(
            f"this model cannot stream, for {len(layers)} of its layers look across all of time "
            f"(the first: {layers[0]}); use encode and decode on whole clips"
        )
