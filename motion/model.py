"""The motion tokenizer: encoder, quantizer, decoder, and the methods that people call."""

from __future__ import annotations

import warnings
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
from motion.quantizer.residual_vq import ResidualVQ
from motion.quantizer.results import Quantized
from motion.sessions import SessionState, StreamDecoder, StreamEncoder
from wanvae.engine.checkpoint import load_tensors
from wanvae.engine.evaluating import evaluating
from wanvae.engine.finite import check_computed
from wanvae.engine.hub import upload
from wanvae.engine.tensors import check_is_tensor, parse_given_dtype
from wanvae.errors import UserError
from wanvae.nn import State, Streaming, use_channels_last
from wanvae.nn.kernels.precision import choose_dtypes
from wanvae.nn.masking import make_mask, zero_padding
from wanvae.nn.residual import ActivationKind

# Frames of each clip of a batch, (B,).
Lengths: TypeAlias = "Tensor | Sequence[int]"


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


class RVQVAE(nn.Module):
    """A motion tokenizer: a 1D convolutional autoencoder around a residual vector quantizer.

    Motion is ``(B, T, D)``, float32: features in their own units, which the model normalizes.
    Tokens are indices ``(B, ceil(T / 4), Q)`` if time is halved twice: one index for each layer of
    the quantizer, -1 where a layer or a clip has no code. (Wan's network has 1 + ceil((T - 1) / 4)
    tokens.) Parameter names of encoder and decoder come from the published models.
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
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        *,
        subfolder: str | None = None,
        activation: ActivationKind | None = None,
        norm: MotionNorm | None = None,
        dilation_growth_rate: int | Sequence[int] | None = None,
        reverse_dilation: bool | None = None,
        torch_dtype: torch.dtype | str | None = None,
    ) -> RVQVAE:
        """Loads a checkpoint of any known layout. The model is in evaluation mode.

        Args:
            path: a native ``.safetensors``; a file of MoMask, T2M-GPT, MotionGPT or GestureLSM; or,
                if this path does not exist, the ``"org/name"`` of a repository on the Hugging Face
                Hub. Layout, widths, depths, stages and codebooks are detected.
            dtype: dtype of encoder and decoder, also as text like "bfloat16"; None keeps the dtype
                of the file, or takes float32 if the CPU only emulates that dtype, and logs so. The
                normalizer and the codebooks are float64 if this is float64, else float32.
            device: where to put the model; None is the CPU.
            subfolder: the folder of the repository that holds the checkpoint.
            activation, norm, dilation_growth_rate, reverse_dilation: options that the tensors of
                published models do not show; None is the published value (see
                :class:`~motion.checkpoints.architecture.Untold`).
            torch_dtype: the name of diffusers for ``dtype``; give one of them.

        Warns if the file is published: such files do not hold the mean and standard deviation of
        the features.

        Raises:
            UserError: a dtype is unknown, or both ``dtype`` and ``torch_dtype`` are given.
            CheckpointError: the file cannot be read or downloaded, holds another model (the message
                names the keys), or does not fit these options.
        """
        dtype = parse_given_dtype(dtype, torch_dtype)
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
        if loaded.layout is not formats.Layout.NATIVE:
            warn_of_missing_normalizer(path)
        use_channels_last(model)
        model.to(device)
        (dtype,) = choose_dtypes(path, [(model.dtype, dtype)], model.device)
        if dtype is not None:
            for network in (model.encoder, model.decoder):
                network.to(dtype)
            for exact in (model.normalizer, model.quantizer):
                exact.to(torch.promote_types(dtype, torch.float32))
        return model.eval()

    def save_pretrained(self, path: str | PathLike[str], *, push_to_hub: str | None = None) -> None:
        """Writes a native checkpoint: one ``.safetensors`` with config and normalizer.

        An existing file is replaced only when the new file is complete.

        Args:
            push_to_hub: the ``"org/name"`` of a repository on the Hugging Face Hub. The file is
                uploaded there too; a missing repository is created.

        Raises:
            CheckpointError: the file cannot be written or uploaded.
        """
        formats.save_native(path, self.config, self.state_dict())
        if push_to_hub is not None:
            upload(path, push_to_hub, formats.MOTION_TOKENIZER)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of encoder and decoder; features and latents are converted to this dtype."""
        return next(self.encoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the model; inputs are moved to this device."""
        return self.normalizer.mean.device

    def normalize(self, motion: Tensor) -> Tensor:
        """Returns motion ``(..., D)`` in its own units as normalized features for the networks.

        The features are ``(motion - mean) / std`` for each channel, on the device of the model.
        """
        return self.normalizer.normalize(motion.to(self.normalizer.mean))

    def denormalize(self, features: Tensor) -> Tensor:
        """Returns motion of normalized features: the inverse of ``normalize``."""
        return self.normalizer.denormalize(features.to(self.normalizer.mean))

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
        output = run(self.decoder, quantized.latents, tokens)[0].mT[:, : motion.shape[1]]
        if lengths is not None:
            mask = make_mask(lengths, motion.shape[1])[:, :, None]
            output, target = output * mask, target * mask
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
        The encoder works as in evaluation mode, also in training mode: without dropout.

        Args:
            lengths: ``(B,)``, the number of frames of each clip; later frames are padding. The
                tokens of a clip equal the tokens of this clip alone, and -1 follows them.

        Raises:
            UserError: motion has another shape or is not finite, or lengths do not fit.
            NotFiniteError: the encoder overflows, as some do in float16.
        """
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        with evaluating(self.encoder):
            latents, tokens = self._latents(self.normalize(motion), lengths)
        valid = latents if tokens is None else zero_padding(latents, tokens)
        check_computed(valid, self.dtype, "encode")
        return self.quantizer.encode(latents, tokens)

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
        batch, _, tokens = latents.shape
        most = self.config.frames_of(tokens)
        if length is None:
            length = [self.config.frames_of(count) for count in count_tokens(indices)]
        elif isinstance(length, int):
            length = torch.full((batch,), length)
        lengths = self._check_lengths(length, (batch, most))
        longest = int(lengths.max())
        latents = latents[:, :, : self.config.tokens_of(longest)]
        needed = self._tokens_of(lengths) if (lengths < longest).any() else None
        with evaluating(self.decoder):
            features = run(self.decoder, latents, needed)[0].mT[:, :longest]
        motion = self.denormalize(features)
        if needed is not None:
            motion = zero_padding(motion.mT, lengths).mT
        check_computed(motion, self.dtype, "decode")
        return motion

    def stream_encode(self, state: SessionState = None) -> StreamEncoder:
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
        latents, state = self.encoder.step(self.normalize(motion).to(self.dtype).mT, state)
        check_computed(latents, self.dtype, "encode")
        return self.quantizer.encode(latents), state

    def decode_step(
        self, indices: Tensor, state: State, *, layers: int | None = None
    ) -> tuple[Tensor, State]:
        """Returns motion of the next tokens of a stream, and the next state.

        State ``None`` starts a stream. Motion and state keep the gradients of the decoder, but
        ``stream_decode`` keeps no gradients.

        Raises:
            NotFiniteError: the decoder overflows.
        """
        features, state = self.decoder.step(self._look_up(indices, layers), state)
        motion = self.denormalize(features.mT)
        check_computed(motion, self.dtype, "decode")
        return motion, state

    def check_motion(self, motion: Tensor) -> None:
        """Raises UserError if ``motion`` is not a finite ``(B, T, D)`` of this model."""
        check_is_tensor(motion, "motion")
        channels = self.config.channels
        if motion.dim() != 3 or motion.shape[2] != channels or motion.numel() == 0:
            raise UserError(
                f"motion must be (B, T, {channels}), none of them 0, not {tuple(motion.shape)}"
            )
        if not motion.isfinite().all():
            clip, frame, channel = (~motion.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f"motion must be finite, but is {float(motion[clip, frame, channel])} in clip "
                f"{clip}, frame {frame}, channel {channel}"
            )

    def _look_up(self, indices: Tensor, layers: int | None) -> Tensor:
        """Returns the latents of indices, in the dtype of the decoder."""
        return self.quantizer.decode(indices, layers).to(self.dtype)

    def _padded_lengths(self, lengths: Lengths | None, shape: Sequence[int]) -> Tensor | None:
        """Returns lengths on the device of the model; None if no clip has padding."""
        if lengths is None:
            return None
        lengths = self._check_lengths(lengths, shape)
        return lengths if (lengths < shape[1]).any() else None

    def _check_lengths(self, lengths: Lengths, shape: Sequence[int]) -> Tensor:
        """Returns lengths on the device of the model; checks them against ``(clips, frames)``."""
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
        """Returns latents of normalized features, and their number for each clip; None is all."""
        frames = None
        if lengths is not None:
            counts = self._tokens_of(lengths).tolist()
            frames = torch.tensor([self.config.frames_of(n) for n in counts], device=self.device)
        return run(self.encoder, self._complete(features, lengths).to(self.dtype).mT, frames)

    def _complete(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        """Returns features with the last frame of each clip repeated to fill its last token."""
        length = features.shape[1]
        whole = self.config.frames_of(self.config.tokens_of(length))
        if lengths is None and whole == length:
            return features
        if lengths is None:
            lengths = torch.full((len(features),), length, device=self.device)
        frames = torch.arange(whole, device=self.device)
        frames = torch.minimum(frames, lengths[:, None] - 1)
        return features.gather(1, frames[:, :, None].expand(-1, -1, features.shape[2]))


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


def warn_of_missing_normalizer(path: str | PathLike[str]) -> None:
    """Warns that a published checkpoint does not say how to normalize features."""
    warnings.warn(
        f"{path} has no mean and standard deviation, so the model takes and gives normalized "
        "features. Put both into the checkpoint: "
        f"python -m motion convert {path} model.safetensors --to native --mean Mean.npy "
        "--std Std.npy",
        stacklevel=3,
    )


def run(network: Streaming, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns the output for clips ``(B, C, T)`` of ``lengths`` ``(B,)``, and its lengths."""
    return (network(x), None) if lengths is None else network.forward_masked(x, lengths)
