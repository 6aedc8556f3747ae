"""Tokens of motion as it comes, and motion of tokens, piece by piece in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn import State, unstreamable_layers

if TYPE_CHECKING:
    from motion.model import RVQVAE

# States of the layers; frames that wait for the rest of their token. None before the first piece.
SessionState: TypeAlias = "tuple[State, Tensor | None] | None"


@dataclass(frozen=True)
class EncodeEnd:
    """What the end of a stream of motion gives.

    Attributes:
        indices: of the frames that were still waiting, or None if there were none.
        padded_frames: how often the last frame was repeated to complete their token; decoded motion
            has as many frames too many at its end.
    """

    indices: Tensor | None
    padded_frames: int


class StreamEncoder:
    """Encodes frames as they come: a token is given with the last of its frames.

    Args:
        state: of an earlier session, to go on from.

    Raises:
        ValueError: the model cannot stream; the layers are named.
    """

    def __init__(self, model: RVQVAE, state: SessionState = None) -> None:
        require_streamable(model.encoder)
        self._model = model
        self._state, self._waiting = (None, None) if state is None else state

    @property
    def state(self) -> SessionState:
        """All that is needed to go on later: nested tuples of tensors, for ``torch.save``."""
        return self._state, self._waiting

    def push(self, motion: Tensor) -> Tensor | None:
        """Tokens ``(B, n, Q)`` that frames ``(B, T, D)`` complete; None if there are none.

        Raises:
            ValueError: motion has another shape, also than the pieces before, or is not finite.
        """
        model, config = self._model, self._model.config
        model.check_motion(motion)
        check_clips(motion, self.state)
        # A copy, for what waits must not change with the tensor that was given.
        motion = motion.detach().to(model.normalizer.mean, copy=True)
        if self._waiting is not None:
            motion = torch.cat([self._waiting, motion], dim=1)
        start = 0 if self._state is not None else config.first_frames
        whole = start + (motion.shape[1] - start) // config.factor * config.factor
        if whole <= 0:
            self._waiting = motion
            return None
        indices, self._state = model.encode_step(motion[:, :whole], self._state)
        self._waiting = motion[:, whole:].clone() if whole < motion.shape[1] else None
        return indices

    def finish(self) -> EncodeEnd:
        """The last token, its frames completed by repeating the last one; ends the session."""
        if self._waiting is None:
            return EncodeEnd(None, 0)
        config = self._model.config
        frames = config.factor if self._state is not None else config.first_frames
        padded = frames - self._waiting.shape[1]
        return EncodeEnd(self.push(self._waiting[:, -1:].expand(-1, padded, -1)), padded)


class StreamDecoder:
    """Decodes tokens as they come.

    Args:
        state: of an earlier session, to go on from.
        layers: use the first so many layers of the quantizer only.

    Raises:
        ValueError: the model cannot stream; the layers are named.
    """

    def __init__(self, model: RVQVAE, state: State = None, *, layers: int | None = None) -> None:
        require_streamable(model.decoder)
        self._model = model
        self._layers = layers
        self.state = state

    def push(self, indices: Tensor) -> Tensor:
        """Motion ``(B, T, D)`` of the next tokens ``(B, n, Q)``.

        Raises:
            ValueError: indices are out of range or of another shape.
        """
        check_clips(indices, self.state)
        motion, self.state = self._model.decode_step(indices, self.state, layers=self._layers)
        return motion


def require_streamable(network: nn.Module) -> None:
    """Raise ValueError if some layer of ``network`` needs all of time at once."""
    layers = unstreamable_layers(network)
    if layers:
        raise UserError(
            f"this model cannot stream, for {len(layers)} of its layers look at what comes later, "
            f"or at all of time, like {layers[0]}: take one with causal: true, no group norm, and "
            "an attention_window if it has attention"
        )


def check_clips(piece: Tensor, state: SessionState | State) -> None:
    """Raise ValueError if a piece has another number of clips than the stream it continues."""
    for tensor in tensors_of(state):
        if tensor.shape[:1] != piece.shape[:1]:
            raise UserError(
                f"a stream keeps its number of clips, but a piece of {tuple(piece.shape)} follows "
                f"those of {len(tensor)}"
            )


def tensors_of(state: SessionState | State | Tensor) -> Iterator[Tensor]:
    """The tensors of a nested state."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from tensors_of(part)
