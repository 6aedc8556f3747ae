"""The motion tokenizer: encoder, quantizer, decoder, and what people call on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TypeAlias

import torch
from torch import Tensor, nn

from motion.checkpoints import formats
from motion.checkpoints.architecture import Untold
from motion.config import MotionNorm, RVQVAEConfig
from motion.features.normalizer import Normalizer
from motion.networks.build import make_networks
from motion.quantizer.residual_vq import Quantized, ResidualVQ
from motion.sessions import SessionState, StreamDecoder, StreamEncoder
from wanvae.engine.checkpoint import load_tensors
from wanvae.errors import UserError
from wanvae.nn import State, Streaming, use_channels_last
from wanvae.nn.masking import mask_of
from wanvae.nn.residual import ActivationKind

# Frames of each clip of a batch, (B,).
Lengths: TypeAlias = "Tensor | Sequence[int]"


@dataclass(frozen=True)
class Reconstruction:
    """What a training step needs.

    Attributes:
        output: ``(B, T, D)``, the decoded features, normalized.
        target: ``(B, T, D)``, the features to be reconstructed, normalized.
        quantized: what the quantizer found in between.
    """

    output: Tensor
    target: Tensor
    quantized: Quantized


class RVQVAE(nn.Module):
    """Turns motion into tokens and back: a 1D convolutional autoencoder around a residual VQ.

    Motion is ``(B, T, D)``, float32, features in their own units; the model normalizes them.
    Tokens are indices ``(B, ceil(T / 4), Q)`` where time is halved twice: one for each layer of the
    quantizer, -1 where a layer or a clip has none. (Wan's network has 1 + ceil((T - 1) / 4).)
    Parameter names of encoder and decoder are those of the published models.
    """

    def __init__(self, config: RVQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = make_networks(config)
        self.quantizer = ResidualVQ(config.quantizer, config.code_dim)
        self.normalizer = Normalizer(config.channels)

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        *,
        activation: ActivationKind | None = None,
        norm: MotionNorm | None = None,
        dilation_growth_rate: int | Sequence[int] | None = None,
        reverse_dilation: bool | None = None,
        device: torch.device | str | None = None,
    ) -> RVQVAE:
        """Load a checkpoint of any known layout, in evaluation mode.

        Args:
            path: a native ``.safetensors``, or a file of MoMask, T2M-GPT, MotionGPT or GestureLSM.
                Layout, widths, depths, stages and codebooks are found out.
            activation, norm, dilation_growth_rate, reverse_dilation: what leaves no trace in the
                tensors of the latter; None is as published (see
                :class:`~motion.checkpoints.architecture.Untold`).
            device: where to put it; None is the CPU.

        Raises:
            CheckpointError: the file cannot be read or is no such model (the keys are named), or
                what was given does not fit it.
        """
        untold = Untold(
            activation=activation,
            norm=norm,
            dilation_growth_rate=dilation_growth_rate,
            reverse_dilation=reverse_dilation,
        )
        loaded = formats.load(path, untold)
        with torch.device("meta"):
            model = cls(loaded.config)
        load_tensors(model, loaded.tensors, path)
        use_channels_last(model)
        return model.to(device).eval()

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write a native checkpoint: one ``.safetensors``, with config and normalizer in it.

        A file of that name is replaced only once the new one is complete.
        """
        formats.save_native(path, self.config, self.state_dict())

    @property
    def device(self) -> torch.device:
        """The device of the model; inputs are moved to it."""
        return self.normalizer.mean.device

    def forward(self, motion: Tensor, lengths: Lengths | None = None) -> Reconstruction:
        """Encode, quantize and decode, for training: of clips ``(B, T, D)`` in their own units.

        In training mode the quantizer learns from them. What the result holds from ``lengths``
        ``(B,)`` on is 0.
        """
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        target = self.normalizer.normalize(motion.to(self.normalizer.mean))
        latents, tokens = self._latents(target, lengths)
        quantized = self.quantizer(latents, tokens)
        output = run(self.decoder, quantized.latents, tokens)[0].mT[:, : motion.shape[1]]
        if lengths is not None:
            mask = mask_of(lengths, motion.shape[1])[:, :, None]
            output, target = output * mask, target * mask
        return Reconstruction(output, target, quantized)

    @torch.no_grad()
    def encode(self, motion: Tensor, lengths: Lengths | None = None) -> Tensor:
        """Tokens ``(B, tokens, Q)``, int64, of motion ``(B, T, D)``; no gradients are kept.

        Where T is no whole number of tokens, the last frame of a clip is repeated.

        Args:
            lengths: ``(B,)``, how many frames of each clip there are; the rest is padding. Each
                clip gets the tokens that it gets alone, and -1 after them.

        Raises:
            ValueError: motion has another shape, or is not finite; lengths do not fit.
        """
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        features = self.normalizer.normalize(motion.to(self.normalizer.mean))
        latents, tokens = self._latents(features, lengths)
        return self.quantizer.encode(latents, tokens)

    @torch.no_grad()
    def decode(
        self, indices: Tensor, length: int | Lengths | None = None, *, layers: int | None = None
    ) -> Tensor:
        """Motion ``(B, T, D)`` of tokens ``(B, tokens, Q)``; no gradients are kept.

        Args:
            indices: as ``encode`` gives them, or of the first few layers.
            length: frames of the motion, or ``(B,)`` of each clip, which ends in zeros then; the
                tokens of a clip after those of its frames are not looked at. None: as many frames
                as the tokens have.
            layers: use the first so many layers only.

        Raises:
            ValueError: indices are out of range or of another shape; there are fewer frames or
                layers.
        """
        latents = self._look_up(indices, layers)
        batch, _, tokens = latents.shape
        most = self.config.frames_of(tokens)
        if length is None or isinstance(length, int):
            length = torch.full((batch,), most if length is None else length)
        lengths = self._check_lengths(length, (batch, most))
        longest = int(lengths.max())
        latents = latents[:, :, : self.config.tokens_of(longest)]
        needed = self._tokens_of(lengths) if (lengths < longest).any() else None
        features = run(self.decoder, latents, needed)[0].mT[:, :longest]
        motion = self.normalizer.denormalize(features)
        return motion if needed is None else motion * mask_of(lengths, longest)[:, :, None]

    def stream_encode(self, state: SessionState = None) -> StreamEncoder:
        """A session that encodes frames as they come; ``state`` continues an earlier one."""
        return StreamEncoder(self, state)

    def stream_decode(self, state: State = None, *, layers: int | None = None) -> StreamDecoder:
        """A session that decodes tokens as they come; ``state`` continues an earlier one."""
        return StreamDecoder(self, state, layers=layers)

    @torch.no_grad()
    def encode_step(self, motion: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens of the next frames of a stream, whole tokens of them; ``None`` starts one."""
        features = self.normalizer.normalize(motion.to(self.normalizer.mean))
        latents, state = self.encoder.step(features.mT, state)
        return self.quantizer.encode(latents), state

    @torch.no_grad()
    def decode_step(
        self, indices: Tensor, state: State, *, layers: int | None = None
    ) -> tuple[Tensor, State]:
        """Motion of the next tokens of a stream, any number of them; ``None`` starts one."""
        features, state = self.decoder.step(self._look_up(indices, layers), state)
        return self.normalizer.denormalize(features.mT), state

    def check_motion(self, motion: Tensor) -> None:
        """Raise ValueError if ``motion`` is no finite ``(B, T, D)`` of this model."""
        channels = self.config.channels
        if motion.dim() != 3 or motion.shape[2] != channels or motion.numel() == 0:
            raise UserError(
                f"motion must be (B, T, {channels}), none of them 0, not {tuple(motion.shape)}"
            )
        if not motion.is_floating_point():
            raise UserError(f"motion must be floating point, not {motion.dtype}")
        if not motion.isfinite().all():
            clip, frame, channel = (~motion.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f"motion must be finite, but is {float(motion[clip, frame, channel])} in clip "
                f"{clip}, frame {frame}, channel {channel}"
            )

    def _look_up(self, indices: Tensor, layers: int | None) -> Tensor:
        """The latents of indices, in the dtype of the decoder."""
        return self.quantizer.decode(indices, layers).to(self.normalizer.mean.dtype)

    def _padded_lengths(self, lengths: Lengths | None, shape: Sequence[int]) -> Tensor | None:
        """Lengths on the device of the model; None where no clip has padding."""
        if lengths is None:
            return None
        lengths = self._check_lengths(lengths, shape)
        return lengths if (lengths < shape[1]).any() else None

    def _check_lengths(self, lengths: Lengths, shape: Sequence[int]) -> Tensor:
        """Lengths on the device of the model; ValueError if they do not fit (clips, frames)."""
        batch, frames = shape
        lengths = torch.as_tensor(lengths)
        if lengths.shape != (batch,) or lengths.is_floating_point():
            raise UserError(
                f"lengths must be {batch} whole numbers, one a clip, not {lengths.dtype} "
                f"{tuple(lengths.shape)}"
            )
        if lengths.min() < 1 or lengths.max() > frames:
            raise UserError(f"lengths must be from 1 to {frames} frames, not {lengths.tolist()}")
        return lengths.to(self.device)

    def _tokens_of(self, lengths: Tensor) -> Tensor:
        tokens = [self.config.tokens_of(frames) for frames in lengths.tolist()]
        return torch.tensor(tokens, device=self.device)

    def _latents(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Latents of normalized features, and how many each clip has; None is all of them."""
        frames = None
        if lengths is not None:
            counts = self._tokens_of(lengths).tolist()
            frames = torch.tensor([self.config.frames_of(n) for n in counts], device=self.device)
        return run(self.encoder, self._complete(features, lengths).mT, frames)

    def _complete(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        """``(B, T, D)`` with the last frame of each clip repeated up to the end of a token."""
        length = features.shape[1]
        whole = self.config.frames_of(self.config.tokens_of(length))
        if lengths is None and whole == length:
            return features
        if lengths is None:
            lengths = torch.full((len(features),), length, device=self.device)
        frames = torch.arange(whole, device=self.device)
        frames = torch.minimum(frames, lengths[:, None] - 1)
        return features.gather(1, frames[:, :, None].expand(-1, -1, features.shape[2]))


def run(network: Streaming, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A network on clips ``(B, C, T)``, of which ``lengths`` ``(B,)`` count; None is all."""
    return (network(x), None) if lengths is None else network.forward_masked(x, lengths)
