"""A causal VAE of motion: continuous latents, for models such as diffusion over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from motion.autoencoder import Lengths, MotionAutoencoder
from motion.config import RVQVAEConfig
from motion.sessions import SessionState, StreamDecoder, StreamEncoder
from motion.skeleton.tree import Skeleton
from wanvae.engine.tensors import check_is_tensor
from wanvae.errors import UserError
from wanvae.nn import CausalConv, State
from wanvae.nn.masking import zero_padding
from wanvae.posterior import Posterior

# The log-variance of latents before training: a standard deviation of 0.05.
FIRST_LOGVAR = -6.0


@dataclass(frozen=True)
class VAEReconstruction:
    """Decoded features, their targets and the distribution of latents, for a training step.

    Attributes:
        output: ``(B, T, D)``, the decoded features, normalized.
        target: ``(B, T, D)``, the features to reconstruct, normalized.
        posterior: of latents ``(B, n, C)``; mean and log-variance are 0 after a clip.
        kl: scalar, the KL divergence of the posterior from N(0, 1), in nats for each number of a
            latent, averaged over the latents of all clips.
    """

    output: Tensor
    target: Tensor
    posterior: Posterior
    kl: Tensor


class MotionVAE(MotionAutoencoder):
    """A VAE of motion: the networks of the tokenizer, and a Gaussian instead of a quantizer.

    Motion is ``(B, T, D)``, float32: features in their own units, which the model normalizes.
    Latents are ``(B, n, C)`` with as many n as a tokenizer with the same networks has tokens, and
    ``config.code_dim`` channels. With causal networks it streams, as the causal temporal
    autoencoder of MotionStreamer (Xiao et al., arXiv 2503.15451) does.
    """

    BOTTLENECK = "gaussian"

    def __init__(self, config: RVQVAEConfig, skeleton: Skeleton | None = None) -> None:
        super().__init__(config, skeleton)
        last = [layer for layer in self.encoder.modules() if isinstance(layer, CausalConv)][-1]
        assert last.bias is not None
        # Latents begin with little noise, or the decoder learns nothing at first.
        nn.init.constant_(last.bias[config.code_dim :], FIRST_LOGVAR)

    def forward(self, motion: Tensor, lengths: Lengths | None = None) -> VAEReconstruction:
        """Encodes clips ``(B, T, D)`` in their own units, decodes random latents, for training.

        In evaluation mode the means are decoded. After the ``lengths`` ``(B,)`` frames of each
        clip, output and target are 0.
        """
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        target = self.normalize(motion)
        moments, counts = self._latents(target, lengths)
        posterior = make_posterior(moments, counts)
        latents = posterior.sample() if self.training else posterior.mode()
        if counts is not None:
            latents = zero_padding(latents.mT, counts).mT
        output, target = self._decode_features(latents.mT, counts, target, lengths)
        batch, most, channels = latents.shape
        numbers = channels * (batch * most if counts is None else counts.sum())
        return VAEReconstruction(output, target, posterior, posterior.kl().sum() / numbers)

    @torch.no_grad()
    def encode(self, motion: Tensor, lengths: Lengths | None = None) -> Posterior:
        """Returns the distribution of the latents ``(B, n, C)`` of motion ``(B, T, D)``.

        ``mode()`` of it is the means, ``sample()`` random latents. If the last latent has too few
        frames, the last frame of a clip is repeated. No gradients are kept. The encoder works as in
        evaluation mode, also in training mode: without dropout. With ``config.path_rounds`` the
        errors of path and heading are fed back so many times.

        Args:
            lengths: ``(B,)``, the number of frames of each clip; later frames are padding. The
                latents of a clip equal the latents of this clip alone; mean and log-variance are 0
                after them.

        Raises:
            UserError: motion has another shape or is not finite, or lengths do not fit.
            NotFiniteError: the encoder overflows, as some do in float16.
        """
        return self._encode_once(self._steer(motion, lengths), lengths)

    def _encode_once(self, motion: Tensor, lengths: Lengths | None = None) -> Posterior:
        return make_posterior(*self._encode(motion, lengths))

    def _reconstruct(self, motion: Tensor) -> Tensor:
        return self.decode(self._encode_once(motion).mode(), motion.shape[1])

    @torch.no_grad()
    def decode(self, latents: Tensor, length: int | Lengths | None = None) -> Tensor:
        """Returns motion ``(B, T, D)`` of latents ``(B, n, C)``; no gradients are kept.

        The decoder works as in evaluation mode, also in training mode: without dropout.

        Args:
            length: number of frames of the motion, or ``(B,)``, number of frames of each clip.
                Latents after these frames are ignored, and zeros follow the frames. None is as many
                frames as the latents have.

        Raises:
            UserError: latents have another shape or are not finite, or ``length`` is larger than
                they allow.
            NotFiniteError: the decoder overflows, as some do in float16.
        """
        self.check_latents(latents)
        if length is None:
            length = self.config.frames_of(latents.shape[1])
        return self._decode(self._as_input(latents), length)

    def stream_encode(self, state: SessionState = None) -> StreamEncoder[Posterior]:
        """Returns a session that encodes frames as they come; ``state`` continues a stream."""
        return StreamEncoder(self, state)

    def stream_decode(self, state: State = None) -> StreamDecoder:
        """Returns a session that decodes latents as they come; ``state`` continues a stream."""
        return StreamDecoder(self, state)

    def encode_step(self, motion: Tensor, state: State) -> tuple[Posterior, State]:
        """Returns the posterior of the next frames of a stream, and the next state.

        The frames must fill whole latents; state ``None`` starts a stream. Both keep gradients.

        Raises:
            NotFiniteError: the encoder overflows.
        """
        moments, state = self._encode_step(motion, state)
        return make_posterior(moments, None), state

    def decode_step(
        self, latents: Tensor, state: State, /, *, layers: int | None = None
    ) -> tuple[Tensor, State]:
        """Returns motion of the next latents of a stream, and the next state.

        A model that smooths its output returns the motion of each latent ``config.smoothing.after``
        frames later. State ``None`` starts a stream. Motion and state keep gradients, but
        ``stream_decode`` keeps no gradients.

        Args:
            layers: None; it is for tokenizers, which have several layers.

        Raises:
            UserError: latents have another shape or are not finite, or ``layers`` is given.
            NotFiniteError: the decoder overflows.
        """
        if layers is not None:
            raise UserError(f"layers is {layers}, but continuous latents have no layers")
        self.check_latents(latents)
        return self._decode_step(self._as_input(latents), state)

    def check_latents(self, latents: Tensor) -> None:
        """Raises UserError if ``latents`` is not a finite ``(B, n, C)`` of this model."""
        check_is_tensor(latents, "latents")
        channels = self.config.code_dim
        if latents.dim() != 3 or latents.shape[2] != channels or latents.numel() == 0:
            raise UserError(
                f"latents must be (B, n, {channels}), none of them 0, not {tuple(latents.shape)}"
            )
        if not latents.isfinite().all():
            raise UserError("latents must be finite, but some are not a number or infinite")

    def _as_input(self, latents: Tensor) -> Tensor:
        """Returns latents ``(B, n, C)`` as the decoder takes them."""
        return latents.to(self.device, self.dtype).mT


def make_posterior(moments: Tensor, counts: Tensor | None) -> Posterior:
    """Returns the posterior of latents ``(B, n, C)``, from moments ``(B, 2 C, n)``.

    Args:
        counts: the latents of each clip, ``(B,)``; None is all.
    """
    if counts is not None:
        moments = zero_padding(moments, counts)
    mean, logvar = moments.mT.chunk(2, dim=2)
    return Posterior(mean, logvar)
