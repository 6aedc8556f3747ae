"""Encoding motion and decoding tokens as they come, piece by piece in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from motion.config import RVQVAEConfig
from wanvae.engine.evaluating import evaluating
from wanvae.errors import UserError
from wanvae.nn import State, Streaming, unstreamable_layers

# States of the layers; frames (B, T, D) that wait for the rest of their token. None before the
# first piece.
SessionState: TypeAlias = "tuple[State, Tensor | None] | None"
# What an encoder gives for some frames: tokens, or the posterior of continuous latents.
Piece = TypeVar("Piece")
Given = TypeVar("Given", covariant=True)


class Coder(Protocol):
    """What sessions use of a :class:`~motion.RVQVAE` or a :class:`~motion.MotionVAE`."""

    config: RVQVAEConfig
    encoder: Streaming
    decoder: Streaming

    @property
    def device(self) -> torch.device: ...

    def check_motion(self, motion: Tensor) -> None: ...


class Encoding(Coder, Protocol[Given]):
    """A model that encodes streams."""

    def encode_step(self, motion: Tensor, state: State) -> tuple[Given, State]: ...


class Decoding(Coder, Protocol):
    """A model that decodes streams."""

    def decode_step(
        self, indices: Tensor, state: State, /, *, layers: int | None = None
    ) -> tuple[Tensor, State]: ...

    def decode_end(self, state: State) -> Tensor | None: ...


@dataclass(frozen=True)
class EncodeEnd(Generic[Piece]):
    """The end of a stream of motion.

    Attributes:
        indices: tokens ``(B, 1, Q)`` of the frames that were still waiting, or the posterior of
            their latents; None if no frame waited.
        padded_frames: how often the last frame was repeated to complete the last token. Drop this
            number of frames from the end of the decoded motion.
    """

    indices: Piece | None
    padded_frames: int


class StreamEncoder(Generic[Piece]):
    """An encoder of frames as they come. A token is returned with its last frame.

    Args:
        state: the state of an earlier session, to continue its stream.

    Raises:
        UserError: the model cannot stream (the layers are named), or the state belongs to
            something else.
    """

    def __init__(self, model: Encoding[Piece], state: SessionState = None) -> None:
        require_streamable(model.encoder)
        self._model = model
        self._ended = False
        # Set after a piece is complete, so that a failed piece changes nothing.
        self._state = check_session_state(state, model)

    @property
    def state(self) -> SessionState:
        """All that is needed to continue later: nested tuples of tensors, for ``torch.save``.

        Raises:
            UserError: the session has ended.
        """
        self._refuse_if_ended()
        return self._state

    @torch.no_grad()
    def push(self, motion: Tensor) -> Piece | None:
        """Returns the tokens ``(B, n, Q)`` that frames ``(B, T, D)`` complete; None if none.

        Of a :class:`~motion.MotionVAE` it returns the posterior of the latents ``(B, n, C)``.

        An error does not change the session. The same frames can be pushed again.

        Raises:
            UserError: motion is not finite, is not ``(B, T, D)`` or has another B than the pieces
                before, or the session has ended.
        """
        self._refuse_if_ended()
        model, config = self._model, self._model.config
        model.check_motion(motion)
        check_clips(motion, self._state)
        # A copy, because waiting frames must not change when the caller changes its tensor.
        motion = motion.to(model.device, copy=True)
        states, waiting = (None, None) if self._state is None else self._state
        if waiting is not None:
            motion = torch.cat([waiting, motion], dim=1)
        start = 0 if states is not None else config.first_frames
        whole = start + (motion.shape[1] - start) // config.factor * config.factor
        if whole <= 0:
            self._state = states, motion
            return None
        with evaluating(model.encoder):
            indices, states = model.encode_step(motion[:, :whole], states)
        self._state = states, motion[:, whole:].clone() if whole < motion.shape[1] else None
        return indices

    def finish(self) -> EncodeEnd[Piece]:
        """Completes the last token by repeating the last frame, returns it, and ends the session.

        Raises:
            UserError: the session has ended before.
        """
        self._refuse_if_ended()
        states, waiting = (None, None) if self._state is None else self._state
        end: EncodeEnd[Piece] = EncodeEnd(None, 0)
        if waiting is not None:
            config = self._model.config
            frames = config.factor if states is not None else config.first_frames
            padded = frames - waiting.shape[1]
            end = EncodeEnd(self.push(waiting[:, -1:].expand(-1, padded, -1)), padded)
        self._ended = True
        return end

    def _refuse_if_ended(self) -> None:
        if self._ended:
            raise UserError(
                "this session has ended: finish() completed its last token with repeated frames, "
                "and nothing can follow them; start a new session with stream_encode()"
            )


class StreamDecoder:
    """A decoder of tokens as they come.

    A model that smooths its output looks some frames ahead: see ``delay``.

    Args:
        state: the state of an earlier session, to continue its stream.
        layers: number of layers of the quantizer to use, from the first; None is all layers.

    Raises:
        UserError: the model cannot stream (the layers are named), or the state belongs to
            something else.
    """

    def __init__(self, model: Decoding, state: State = None, *, layers: int | None = None) -> None:
        require_streamable(model.decoder)
        self._model = model
        self._layers = layers
        self._ended = False
        self._state = check_layer_states(state, model, model.decoder)

    @property
    def delay(self) -> int:
        """The number of frames that motion comes after its tokens; ``finish`` returns the last."""
        return self._model.config.smoothing.after

    @property
    def state(self) -> State:
        """All that is needed to continue later: nested tuples of tensors, for ``torch.save``.

        Raises:
            UserError: the session has ended.
        """
        self._refuse_if_ended()
        return self._state

    @torch.no_grad()
    def push(self, indices: Tensor) -> Tensor:
        """Returns motion ``(B, T, D)`` of the next tokens ``(B, n, Q)``, or latents ``(B, n, C)``.

        The first pieces have ``delay`` frames less than their tokens, so T can be 0.

        An error does not change the session. The same tokens can be pushed again.

        Raises:
            UserError: indices are out of range, are not ``(B, n, Q)`` or have another B than the
                pieces before, or the session has ended.
        """
        self._refuse_if_ended()
        check_clips(indices, self._state)
        model = self._model
        with evaluating(model.decoder):
            motion, self._state = model.decode_step(indices, self._state, layers=self._layers)
        return motion

    @torch.no_grad()
    def finish(self) -> Tensor | None:
        """Returns the last ``delay`` frames ``(B, n, D)`` and ends the session; None if no frames.

        Raises:
            UserError: the session has ended before.
        """
        self._refuse_if_ended()
        motion = self._model.decode_end(self._state)
        self._ended = True
        return motion

    def _refuse_if_ended(self) -> None:
        if self._ended:
            raise UserError(
                "this session has ended: finish() returned its last frames, and nothing can follow "
                "them; start a new session with stream_decode()"
            )


def require_streamable(network: Streaming) -> None:
    """Raises UserError if some layer of ``network`` needs all frames at once."""
    layers = unstreamable_layers(network)
    if layers:
        raise UserError(
            f"this model cannot stream: {len(layers)} of its layers look at later frames, or "
            f"at all of time, like {layers[0]}. Use a model with causal: true, no group norm, and "
            "an attention_window if it has attention"
        )


def check_session_state(state: SessionState, model: Coder) -> SessionState:
    """Returns the state of an encoding session; raises UserError if it does not fit the model."""
    if state is None:
        return None
    # The state of a decoder can have two entries too, but its second entry is not a tensor.
    pair = isinstance(state, tuple | list) and len(state) == 2
    states, waiting = state if pair else (state, None)
    if pair and (waiting is None or isinstance(waiting, Tensor)):
        channels = model.config.channels
        if waiting is not None and (waiting.dim() != 3 or waiting.shape[2] != channels):
            raise UserError(
                f"the frames that wait in this state are {tuple(waiting.shape)}, not (B, T, "
                f"{channels}): it is the state of another model"
            )
        return check_layer_states(states, model, model.encoder), waiting
    return check_layer_states(state, model, model.encoder), None


def check_layer_states(state: State, model: Coder, network: Streaming) -> State:
    """Returns the states of the layers of ``network``; raises UserError if they do not fit."""
    if state is None or has_form(state, make_example_state(model, network)):
        return state
    names = {model.encoder: "an encoder", model.decoder: "a decoder"}
    (other,) = names.keys() - {network}
    layers = state[0] if isinstance(state, tuple | list) and state else None
    belongs_to_other = any(
        has_form(candidate, make_example_state(model, other)) for candidate in (state, layers)
    )
    found = f"{names[other]} session" if belongs_to_other else "another model"
    raise UserError(
        f"this is the state of {found}, not of {names[network]} session of this model: give the "
        "state that such a session of this model had"
    )


@torch.no_grad()
def make_example_state(model: Coder, network: Streaming) -> State:
    """Returns the states of the layers of ``network`` after a first token, as an example."""
    config = model.config
    channels, length = config.code_dim, 1
    if network is model.encoder:
        channels, length = config.channels, config.first_frames
    parameter = next(network.parameters())
    state = network.step(parameter.new_zeros(1, channels, length), None)[1]
    if network is model.decoder and config.smoothing.smooths:
        return state, (parameter.new_zeros(1, config.channels, 1),)
    return state


def has_form(state: object, expected: State | Tensor) -> bool:
    """Returns whether tensors are nested as expected, with equal channels, in floating point.

    The number of clips (dim 0) and of frames (dim 2) may differ.
    """
    if isinstance(expected, Tensor):
        return (
            isinstance(state, Tensor)
            and state.is_floating_point()
            and [*state.shape[1:2], *state.shape[3:]] == [*expected.shape[1:2], *expected.shape[3:]]
            and state.dim() == expected.dim()
        )
    if expected is None:
        return state is None
    return (
        isinstance(state, tuple | list)
        and len(state) == len(expected)
        and all(has_form(part, wanted) for part, wanted in zip(state, expected, strict=True))
    )


def check_clips(piece: Tensor, state: SessionState | State) -> None:
    """Raises UserError if a piece has another number of clips than its stream."""
    for tensor in iterate_tensors(state):
        if tensor.shape[:1] != piece.shape[:1]:
            raise UserError(
                f"a stream keeps its number of clips, but a piece of {tuple(piece.shape)} follows "
                f"pieces of {len(tensor)} clips"
            )


def iterate_tensors(state: SessionState | State | Tensor) -> Iterator[Tensor]:
    """Yields the tensors of a nested state."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from iterate_tensors(part)
