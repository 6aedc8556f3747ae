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
from wanvae.engine.hub import upload
from wanvae.errors import UserError
from wanvae.nn import State, Streaming, use_channels_last
from wanvae.nn.kernels.precision import default_dtype, tell_of_emulation
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
    Parameter names of encoder and decoder come from the published models.
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
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        *,
        subfolder: str | None = None,
        activation: ActivationKind | None = None,
        norm: MotionNorm | None = None,
        dilation_growth_rate: int | Sequence[int] | None = None,
        reverse_dilation: bool | None = None,
    ) -> RVQVAE:
        """Load a checkpoint of any known layout, in evaluation mode.

        Args:
            path: a native ``.safetensors``; a file of MoMask, T2M-GPT, MotionGPT or GestureLSM; or,
                if there is no such path, the ``"org/name"`` of a repository of the Hugging Face
                Hub. Layout, widths, depths, stages and codebooks are found out.
            dtype: dtype of encoder and decoder; None keeps the file's, except that a CPU computes
                in float32 what it only emulates, and logs that. The normalizer and the codebooks
                stay in float32, or in float64 with encoder and decoder.
            device: where to put the model; None is the CPU.
            subfolder: the folder of the repository that holds the checkpoint.
            activation, norm, dilation_growth_rate, reverse_dilation: what leaves no trace in the
                tensors of published models; None is as published (see
                :class:`~motion.checkpoints.architecture.Untold`).

        Raises:
            CheckpointError: the file cannot be read or downloaded, is no such model (the keys are
                named), or does not fit what was given.
        """
        untold = Untold(
            activation=activation,
            norm=norm,
            dilation_growth_rate=dilation_growth_rate,
            reverse_dilation=reverse_dilation,
        )
        loaded = formats.load(path, untold, subfolder=subfolder)
        with torch.device("meta"):
            model = cls(loaded.config)
        load_tensors(model, loaded.tensors, path)
        use_channels_last(model)
        model.to(device)
        parameter = next(model.encoder.parameters())
        if dtype is None and default_dtype(parameter.dtype, parameter.device) != parameter.dtype:
            tell_of_emulation(path, parameter.dtype)
            dtype = default_dtype(parameter.dtype, parameter.device)
        if dtype is not None:
            for network in (model.encoder, model.decoder):
                network.to(dtype)
            for exact in (model.normalizer, model.quantizer):
                exact.to(torch.promote_types(dtype, torch.float32))
        return model.eval()

    def save_pretrained(self, path: str | PathLike[str], *, push_to_hub: str | None = None) -> None:
        """Write a native checkpoint: one ``.safetensors``, with config and normalizer in it.

        A file of that name is replaced only once the new one is complete.

        Args:
            push_to_hub: the ``"org/name"`` of a repository of the Hugging Face Hub that gets the
                file too; a missing repository is created.

        Raises:
            CheckpointError: the file cannot be written or uploaded.
        """
        formats.save_native(path, self.config, self.state_dict())
        if push_to_hub is not None:
            upload(path, push_to_hub, formats.MOTION_TOKENIZER)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of encoder and decoder; features and latents are converted to it."""
        return next(self.encoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the model; inputs are moved to it."""
        return self.normalizer.mean.device

    def normalize(self, motion: Tensor) -> Tensor:
        """Motion ``(..., D)`` in its own units to the features that the networks see.

        They are ``(motion - mean) / std`` for each channel, on the device of the model.
        """
        return self.normalizer.normalize(motion.to(self.normalizer.mean))

    def denormalize(self, features: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        return self.normalizer.denormalize(features.to(self.normalizer.mean))

    def forward(self, motion: Tensor, lengths: Lengths | None = None) -> Reconstruction:
        """Encode, quantize and decode clips ``(B, T, D)`` in their own units, for training.

        In training mode the quantizer learns from them. After the ``lengths`` ``(B,)`` frames of
        each clip the result is 0.
        """
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        target = self.normalize(motion)
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
            UserError: motion has another shape, or is not finite; lengths do not fit.
        """
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        latents, tokens = self._latents(self.normalize(motion), lengths)
        return self.quantizer.encode(latents, tokens)

    @torch.no_grad()
    def decode(
        self, indices: Tensor, length: int | Lengths | None = None, *, layers: int | None = None
    ) -> Tensor:
        """Motion ``(B, T, D)`` of tokens ``(B, tokens, Q)``; no gradients are kept.

        Args:
            indices: as ``encode`` gives them, or of the first few layers.
            length: frames of the motion, or ``(B,)``, frames of each clip: zeros follow them, and
                the tokens after them are ignored. None: as many frames as the tokens have.
            layers: use the first so many layers only.

        Raises:
            UserError: indices are out of range or of another shape; there are fewer frames or
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
        motion = self.denormalize(features)
        return motion if needed is None else motion * mask_of(lengths, longest)[:, :, None]

    def stream_encode(self, state: SessionState = None) -> StreamEncoder:
        """A session that encodes frames as they come; ``state`` continues an earlier one."""
        return StreamEncoder(self, state)

    def stream_decode(self, state: State = None, *, layers: int | None = None) -> StreamDecoder:
        """A session that decodes tokens as they come; ``state`` continues an earlier one."""
        return StreamDecoder(self, state, layers=layers)

    def encode_step(self, motion: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens of the next frames of a stream, whole tokens of them; ``None`` starts one.

        Gradients stay in the state alone: tokens are whole numbers and have none.
        """
        latents, state = self.encoder.step(self.normalize(motion).to(self.dtype).mT, state)
        return self.quantizer.encode(latents), state

    def decode_step(
        self, indices: Tensor, state: State, *, layers: int | None = None
    ) -> tuple[Tensor, State]:
        """Motion of the next tokens of a stream, any number of them; ``None`` starts one.

        Motion and state keep the gradients of the decoder; ``stream_decode`` keeps none.
        """
        features, state = self.decoder.step(self._look_up(indices, layers), state)
        return self.denormalize(features.mT), state

    def check_motion(self, motion: Tensor) -> None:
        """Raise UserError if ``motion`` is no finite ``(B, T, D)`` of this model."""
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
        return self.quantizer.decode(indices, layers).to(self.dtype)

    def _padded_lengths(self, lengths: Lengths | None, shape: Sequence[int]) -> Tensor | None:
        """Lengths on the device of the model; None where no clip has padding."""
        if lengths is None:
            return None
        lengths = self._check_lengths(lengths, shape)
        return lengths if (lengths < shape[1]).any() else None

    def _check_lengths(self, lengths: Lengths, shape: Sequence[int]) -> Tensor:
        """Lengths on the device of the model; UserError if they do not fit ``(clips, frames)``."""
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
        return run(self.encoder, self._complete(features, lengths).to(self.dtype).mT, frames)

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
    """The output for clips ``(B, C, T)`` of ``lengths`` ``(B,)``, and its lengths; None is T."""
    return (network(x), None) if lengths is None else network.forward_masked(x, lengths)
