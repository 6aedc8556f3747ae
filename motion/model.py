"""The motion tokenizer: encoder, quantizer, decoder, and the methods that people call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from motion.autoencoder import Lengths, MotionAutoencoder
from motion.config import RVQVAEConfig
from motion.quantizer.residual_vq import ResidualVQ
from motion.quantizer.results import Quantized
from motion.sessions import SessionState, StreamDecoder, StreamEncoder
from motion.skeleton.tree import Skeleton
from wanvae.engine.finite import check_computed
from wanvae.errors import UserError
from wanvae.nn import State


@dataclass(frozen=True)
class Reconstruction:
    """Decoded features, their targets and the result of the quantizer, for a training step.

    Attributes:
        output: ``(B, T, D)``, the decoded features, normalized.
        target: ``(B, T, D)``, the features to reconstruct, normalized.
        quantized: the result of the quantizer.
    """

    output: Tensor
    target: Tensor
    quantized: Quantized


class RVQVAE(MotionAutoencoder):
    """A motion tokenizer: a 1D convolutional autoencoder around a residual vector quantizer.

    Motion is ``(B, T, D)``, float32: features in their own units, which the model normalizes.
    Tokens are indices ``(B, ceil(T / 4), Q)`` if time is halved twice: one index for each layer of
    the quantizer, -1 where a layer or a clip has no code. (Wan's network has 1 + ceil((T - 1) / 4)
    tokens.) Parameter names of encoder and decoder come from the published models.
    """

    BOTTLENECK = "quantizer"

    def __init__(self, config: RVQVAEConfig, skeleton: Skeleton | None = None) -> None:
        super().__init__(config, skeleton)
        self.quantizer = ResidualVQ(config.quantizer, config.code_dim)

    def forward(
        self, motion: Tensor, lengths: Lengths | None = None, *, learn: bool = True
    ) -> Reconstruction:
        """Encodes, quantizes and decodes clips ``(B, T, D)`` in their own units, for training.

        In training mode the quantizer learns from the clips. After the ``lengths`` ``(B,)`` frames
        of each clip, output and target are 0.

        Args:
            learn: see :meth:`~motion.quantizer.residual_vq.ResidualVQ.forward`.
        """
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        target = self.normalize(motion)
        latents, tokens = self._latents(target, lengths)
        quantized = self.quantizer(latents, tokens, learn=learn)
        output, target = self._decode_features(quantized.latents, tokens, target, lengths)
        return Reconstruction(output, target, quantized)

    @torch.no_grad()
    def initialize_codebooks(self, batches: Sequence[Tensor]) -> None:
        """Makes the codebooks from batches of clips ``(B, T, D)``, unless they are made already.

        Nothing else of the model changes, such as running statistics of batches.

        Raises:
            NotFiniteError: the encoder overflows.
        """
        if self.quantizer.books.ready():
            return
        before = [buffer.clone() for buffer in self.encoder.buffers()]
        latents = [self._latents(self.normalize(motion), None)[0] for motion in batches]
        for of_batch in latents:
            check_computed(of_batch, self.dtype, "encode")
        for buffer, value in zip(self.encoder.buffers(), before, strict=True):
            buffer.copy_(value)
        self.quantizer.initialize(latents)

    @torch.no_grad()
    def encode(self, motion: Tensor, lengths: Lengths | None = None) -> Tensor:
        """Returns tokens ``(B, tokens, Q)``, int64, of motion ``(B, T, D)``.

        If the last token is not full, the last frame of a clip is repeated. No gradients are kept.
        The encoder works as in evaluation mode, also in training mode: without dropout. With
        ``config.path_rounds`` the errors of path and heading are fed back so many times.

        Args:
            lengths: ``(B,)``, the number of frames of each clip; later frames are padding. The
                tokens of a clip equal the tokens of this clip alone, and -1 follows them.

        Raises:
            UserError: motion has another shape or is not finite, or lengths do not fit.
            NotFiniteError: the encoder overflows, as some do in float16.
        """
        return self._encode_once(self._steer(motion, lengths), lengths)

    def _encode_once(self, motion: Tensor, lengths: Lengths | None = None) -> Tensor:
        return self.quantizer.encode(*self._encode(motion, lengths))

    def _reconstruct(self, motion: Tensor) -> Tensor:
        return self.decode(self._encode_once(motion), motion.shape[1])

    @torch.no_grad()
    def decode(
        self, indices: Tensor, length: int | Lengths | None = None, *, layers: int | None = None
    ) -> Tensor:
        """Returns motion ``(B, T, D)`` of tokens ``(B, tokens, Q)``; no gradients are kept.

        The decoder works as in evaluation mode, also in training mode: without dropout.

        Args:
            indices: indices as ``encode`` returns them, or indices of the first few layers.
            length: number of frames of the motion, or ``(B,)``, number of frames of each clip.
                Tokens after these frames are ignored, and zeros follow the frames. None is as many
                frames as the tokens have; tokens of -1 in all layers at the end of a clip are no
                tokens.
            layers: number of layers to use, from the first; None is all layers.

        Raises:
            UserError: indices are out of range or have another shape, or ``length`` or ``layers``
                is larger than the indices allow, or a clip has no tokens.
            NotFiniteError: the decoder overflows, as some do in float16.
        """
        latents = self._look_up(indices, layers)
        if length is None:
            length = [self.config.frames_of(count) for count in count_tokens(indices)]
        return self._decode(latents, length)

    def stream_encode(self, state: SessionState = None) -> StreamEncoder[Tensor]:
        """Returns a session that encodes frames as they come; ``state`` continues a stream."""
        return StreamEncoder(self, state)

    def stream_decode(self, state: State = None, *, layers: int | None = None) -> StreamDecoder:
        """Returns a session that decodes tokens as they come; ``state`` continues a stream."""
        return StreamDecoder(self, state, layers=layers)

    def encode_step(self, motion: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns tokens of the next frames of a stream, and the next state.

        The frames must fill whole tokens; state ``None`` starts a stream. Only the state keeps
        gradients, because tokens are whole numbers.

        Raises:
            NotFiniteError: the encoder overflows.
        """
        latents, state = self._encode_step(motion, state)
        return self.quantizer.encode(latents), state

    def decode_step(
        self, indices: Tensor, state: State, *, layers: int | None = None
    ) -> tuple[Tensor, State]:
        """Returns motion of the next tokens of a stream, and the next state.

        A model that smooths its output returns the motion of each token ``config.smoothing.after``
        frames later. State ``None`` starts a stream. Motion and state keep the gradients of the
        decoder, but ``stream_decode`` keeps no gradients.

        Raises:
            NotFiniteError: the decoder overflows.
        """
        return self._decode_step(self._look_up(indices, layers), state)

    def _look_up(self, indices: Tensor, layers: int | None) -> Tensor:
        """Returns the latents of indices, in the dtype of the decoder."""
        return self.quantizer.decode(indices, layers).to(self.dtype)


def count_tokens(indices: Tensor) -> list[int]:
    """Returns the number of tokens of each clip of ``(B, tokens, Q)``, without -1 at its end.

    Raises:
        UserError: a clip has no tokens.
    """
    places = torch.arange(1, indices.shape[1] + 1, device=indices.device)
    counts = (places * (indices >= 0).any(dim=2)).amax(dim=1).tolist()
    if 0 in counts:
        raise UserError(f"clip {counts.index(0)} has no tokens, all indices are -1; leave it out")
    return counts
