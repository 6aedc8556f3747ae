"""Encoding and decoding video as it comes, piece by piece.

A session takes pieces of any length, gives the network whole groups of frames, and holds the state
of the network. Memory does not grow with the length of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from wanvae.engine.finite import check_input, check_result
from wanvae.errors import UserError
from wanvae.execution.flow import PushGuard
from wanvae.execution.plan import Plan, PlanNumbers
from wanvae.execution.run import Identity, Runner
from wanvae.execution.tiling import Coding, CodingState
from wanvae.posterior import Posterior

# Identity of the runner; shape (B, C, H, W) of a piece; the plan; states of the layers; frames that
# wait for the rest of their group. None before the first piece.
SessionState: TypeAlias = (
    "tuple[Identity, tuple[int, ...], PlanNumbers, CodingState, Tensor | None] | None"
)


@dataclass(frozen=True)
class EncodeEnd:
    """The end of an encoding stream.

    Attributes:
        posterior: the posterior of the frames that were still waiting; None if no frame waited.
        padded_frames: how often the last frame was repeated to complete the last group. Drop this
            number of frames from the end of the decoded video.
    """

    posterior: Posterior | None
    padded_frames: int


class Session:
    """The base of encoding and decoding sessions. The stream starts with the first piece.

    Args:
        runner: the network and its limits.
        check: raises UserError for a piece that the model cannot take.
        state: the state of an earlier session, to continue from with the same plan.

    Raises:
        UserError: the network needs whole clips, or ``state`` belongs to another network.
    """

    def __init__(
        self, runner: Runner, check: Callable[[Tensor], None], state: SessionState = None
    ) -> None:
        runner.network.require_streamable()
        self._runner = runner
        self._check = check
        self._guard = PushGuard()
        self._coding: Coding | None = None
        self._waiting: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        self._plan: Plan | None = None
        if state is not None:
            check_identity(state, runner.identity)
            _, shape, numbers, states, self._waiting = state
            self._start(shape, Plan.from_numbers(numbers), states)

    @property
    def state(self) -> SessionState:
        """All that is needed to continue later: ``vae.stream_encode(state=session.state)``.

        The state is nested tuples of tensors, numbers and text. ``torch.save`` can save it.

        Raises:
            UserError: a piece was not processed to its end.
        """
        self._guard.check()
        if self._coding is None or self._plan is None:
            return None
        identity, numbers = self._runner.identity, self._plan.numbers
        return identity, self._shape, numbers, self._coding.state, self._waiting

    @property
    def plan(self) -> Plan | None:
        """The plan that frames are processed by; None before the first piece."""
        return self._plan

    def _start(self, shape: tuple[int, ...], plan: Plan, states: CodingState | None) -> Coding:
        self._coding = self._runner.start(shape, plan, state=states)
        self._shape, self._plan = shape, plan
        return self._coding

    def _begin_or_check(self, piece: Tensor) -> Coding:
        """Returns the coding of the stream; the first piece starts it.

        Raises:
            UserError: the stream is broken, or a later piece has another shape.
        """
        self._guard.check()
        self._check(piece)
        shape = (*piece.shape[:2], *piece.shape[3:])
        if self._coding is None:
            return self._start(shape, self._runner.choose_plan(piece.shape, None), None)
        if shape != self._shape:
            before = (*self._shape[:2], "T", *self._shape[2:])
            raise UserError(
                f"a stream keeps its shape, but a piece of {tuple(piece.shape)} follows one of "
                f"({', '.join(map(str, before))})"
            )
        return self._coding


class StreamEncoder(Session):
    """An encoder of a stream of frames, from ``WanVAE.stream_encode``. No gradients are kept."""

    def __init__(
        self, runner: Runner, check: Callable[[Tensor], None], state: SessionState = None
    ) -> None:
        super().__init__(runner, check, state)
        self._finished = False

    @property
    def state(self) -> SessionState:
        """All that is needed to continue later: ``vae.stream_encode(state=session.state)``.

        The state is nested tuples of tensors, numbers and text. ``torch.save`` can save it.

        Raises:
            UserError: a piece was not processed to its end, or the stream is finished.
        """
        self._require_unfinished()
        return super().state

    @torch.no_grad()
    def push(self, frames: Tensor) -> Posterior | None:
        """Returns the posterior of the groups of frames that are complete now, or None.

        The first frame is a group. After it every ``temporal_factor`` frames are a group (4 for
        Wan2.1). A network that looks ahead also waits for the frames that it reads ahead, and for
        one more.

        Args:
            frames: ``(B, C, T, H, W)``, T >= 1, in [-1, 1].

        Raises:
            UserError: H or W is not a multiple of 8, or differs from the frames before; the stream
                is finished; or an earlier piece was not processed to its end.
            NotFiniteError: the frames, or what the model gives in this dtype, is not finite.
        """
        self._require_unfinished()
        coding = self._begin_or_check(frames)
        with self._guard.pushing():
            if self._waiting is not None:
                frames = torch.cat([self._waiting, frames], dim=2)
            ready = self._count_ready(coding, frames.shape[2])
            self._waiting = frames[:, :, ready:].clone() if ready < frames.shape[2] else None
            return self._encode(coding, frames[:, :, :ready]) if ready else None

    def _count_ready(self, coding: Coding, waiting: int) -> int:
        """Returns how many of the waiting frames are whole groups that can be encoded now."""
        network = self._runner.network
        first = 0 if coding.started else network.first
        # The last frame of a network that looks ahead waits, because it is needed at the end.
        waiting -= min(network.lookahead, 1)
        if waiting < first:
            return 0
        return first + (waiting - first) // network.group * network.group

    @torch.no_grad()
    def finish(self) -> EncodeEnd:
        """Completes the last group by repeating its last frame, encodes it, and ends the stream.

        A second call returns the end of an empty stream.

        Raises:
            UserError: an earlier piece was not processed to its end.
        """
        self._guard.check()
        self._finished = True
        coding, frames = self._coding, self._waiting
        if coding is None or frames is None:
            return EncodeEnd(None, 0)
        with self._guard.pushing():
            self._waiting = None
            network = self._runner.network
            # Without its first frame, and with those that were read ahead, a clip is whole groups.
            begun = frames.shape[2] + (network.lookahead if coding.started else -1)
            missing = -begun % network.group
            tail = frames[:, :, -1:].expand(-1, -1, missing + network.lookahead, -1, -1)
            return EncodeEnd(self._encode(coding, torch.cat([frames, tail], dim=2)), missing)

    def _encode(self, coding: Coding, frames: Tensor) -> Posterior:
        """The posterior of the next whole groups of frames."""
        moments = coding.run(frames)
        check_result(moments, frames, decoding=False)
        return Posterior.from_moments(moments)

    def _require_unfinished(self) -> None:
        if self._finished:
            raise UserError(
                "this stream is finished, and its last frame may have been repeated to complete a "
                "group: start a new one"
            )


class StreamDecoder(Session):
    """A decoder of a stream of latents, from ``WanVAE.stream_decode``. No gradients are kept.

    Every latent is a group of its own. So no latent ever waits, and there is no ``finish``.
    """

    def __init__(
        self,
        runner: Runner,
        check: Callable[[Tensor], None],
        state: SessionState = None,
        *,
        clamp: bool = True,
    ) -> None:
        super().__init__(runner, check, state)
        self._clamp = clamp

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Returns the video of raw latents ``(B, z_dim, T, H, W)``, T >= 1.

        The first latent of a stream gives one frame, every later latent ``temporal_factor`` frames
        (4 for Wan2.1). If several processes share the work, only the first process gets frames.

        Raises:
            UserError: H or W differs from the latents before, or an earlier piece was not
                processed to its end.
            NotFiniteError: the latents, or what the model gives in this dtype, is not finite.
        """
        coding = self._begin_or_check(latents)
        check_input(latents, "latents")
        with self._guard.pushing():
            video = coding.run(latents)
            check_result(video, latents, decoding=True)
            return video.clamp_(-1, 1) if self._clamp else video


def check_identity(state: object, expected: Identity) -> None:
    """Raises UserError if ``state`` is not the state of a session with identity ``expected``."""
    if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[0], tuple)):
        raise UserError(
            f"this {type(state).__name__} is not the state of a session: give the "
            f"{expected[0]} the value of session.state, unchanged"
        )
    found = state[0]
    if found != expected:
        raise UserError(
            f"the state belongs to {describe(*found)}, but this session is {describe(*expected)}: "
            "start a new stream, or give the state to the model that it comes from"
        )


def describe(role: str, model: str, dtype: str, rank: int, processes: int) -> str:
    """Returns in words what a state belongs to."""
    share = f", process {rank} of {processes}" if processes > 1 else ""
    return f"the {role} of model {model} in {dtype}{share}"
