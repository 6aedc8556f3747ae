"""What tokenizers and VAEs of motion share: features in, networks, features out, files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from motion.checkpoints import formats
from motion.checkpoints.architecture import Untold
from motion.checkpoints.formats import Checkpoint
from motion.config import BottleneckKind, MotionNorm, RVQVAEConfig
from motion.features.channels import check_skeleton
from motion.features.normalizer import Normalizer
from motion.networks.build import make_networks
from motion.networks.smoothing import Smoother
from motion.skeleton.tree import Skeleton
from motion.steering import steer
from wanvae.engine.checkpoint import CheckpointError, load_tensors
from wanvae.engine.evaluating import evaluating
from wanvae.engine.finite import check_computed
from wanvae.engine.hub import upload
from wanvae.engine.tensors import check_is_tensor, parse_given_dtype
from wanvae.errors import UserError
from wanvae.nn import State, Streaming, use_channels_last
from wanvae.nn.kernels.precision import choose_dtypes
from wanvae.nn.masking import make_mask, zero_padding
from wanvae.nn.residual import ActivationKind
from wanvae.nn.streaming import split_state

Model = TypeVar("Model", bound="MotionAutoencoder")
# Frames of each clip of a batch, (B,).
Lengths: TypeAlias = "Tensor | Sequence[int]"


class MotionAutoencoder(nn.Module):
    """A 1D convolutional autoencoder of motion ``(B, T, D)``, float32, in its own units.

    The model normalizes features. A latent stands for ``config.factor`` frames. Subclasses say what
    is between encoder and decoder.

    Args:
        config: the architecture, and what the features are.
        skeleton: the skeleton whose motion the model knows, for features with rotations. Training
            takes it from the data. ``model.skeleton`` can be set later; checkpoints hold it, and
            motion files are matched with it. None is not known.

    Raises:
        UserError: the config is of another kind of model, or the skeleton does not have the joints
            of the features.
    """

    # What the config of these models has between encoder and decoder.
    BOTTLENECK: ClassVar[BottleneckKind]

    def __init__(self, config: RVQVAEConfig, skeleton: Skeleton | None = None) -> None:
        super().__init__()
        require_bottleneck(config, type(self))
        if skeleton is not None:
            check_skeleton(config, skeleton)
        self.config = config
        self.skeleton = skeleton
        self.encoder, self.decoder = make_networks(config)
        self.normalizer = Normalizer(config.channels)
        self.smoother = Smoother(config.smoothing) if config.smoothing.smooths else None

    @classmethod
    def from_pretrained(
        cls: type[Model],
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
    ) -> Model:
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
        the features. Warns, too, if a native file of features with rotations does not tell its
        skeleton, as files of earlier versions do not.

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
        return cls.from_checkpoint(loaded, path, dtype, device)

    @classmethod
    def from_checkpoint(
        cls: type[Model],
        loaded: Checkpoint,
        path: str | PathLike[str],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Model:
        """Returns the model of a checkpoint that was read from ``path``, in evaluation mode.

        Warns and raises as ``from_pretrained``.
        """
        try:
            with torch.device("meta"):
                model = cls(loaded.config, loaded.skeleton)
        except UserError as error:
            raise CheckpointError(f"{path}: {error}") from error
        load_tensors(model, loaded.tensors, path)
        if loaded.layout is not formats.Layout.NATIVE:
            warn_of_missing_normalizer(path)
        if formats.WITHOUT_SKELETON in loaded.notes:
            warn_of_missing_skeleton(path)
        use_channels_last(model)
        model.to(device)
        (dtype,) = choose_dtypes(path, [(model.dtype, dtype)], model.device)
        if dtype is not None:
            for network in (model.encoder, model.decoder):
                network.to(dtype)
            for name, part in model.named_children():
                if name not in ("encoder", "decoder"):
                    part.to(torch.promote_types(dtype, torch.float32))
        return model.eval()

    def save_pretrained(self, path: str | PathLike[str], *, push_to_hub: str | None = None) -> None:
        """Writes a native checkpoint: one ``.safetensors`` with config, normalizer and skeleton.

        An existing file is replaced only when the new file is complete.

        Args:
            push_to_hub: the ``"org/name"`` of a repository on the Hugging Face Hub. The file is
                uploaded there too; a missing repository is created.

        Raises:
            CheckpointError: the file cannot be written or uploaded.
        """
        formats.save_native(path, self.config, self.state_dict(), self.skeleton)
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

    def _reconstruct(self, motion: Tensor) -> Tensor:
        """Returns motion ``(B, T, D)`` after encoding it once and decoding it."""
        raise NotImplementedError

    def _steer(self, motion: Tensor, lengths: Lengths | None) -> Tensor:
        """Returns the motion ``(B, T, D)`` to encode, which ``config.path_rounds`` may change.

        Each clip is steered alone, so that it gets the tokens that it gets alone.
        """
        config, spec = self.config, self.config.features
        if spec is None or not config.path_rounds:
            return motion
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        counts = [motion.shape[1]] * len(motion) if lengths is None else lengths.tolist()
        motion = motion.to(self.normalizer.mean, copy=True)
        for clip, count in zip(motion, counts, strict=True):
            clip[:count] = steer(
                clip[:count],
                spec,
                config.fps,
                self.normalizer.std,
                lambda features: self._reconstruct(features[None])[0],
                config.path_rounds,
            )
        return motion

    def _encode(self, motion: Tensor, lengths: Lengths | None) -> tuple[Tensor, Tensor | None]:
        """Returns the encoder's output ``(B, C, n)`` for clips, and its lengths; None is all.

        Raises:
            UserError: motion has another shape or is not finite, or lengths do not fit.
            NotFiniteError: the encoder overflows.
        """
        self.check_motion(motion)
        lengths = self._padded_lengths(lengths, motion.shape[:2])
        with evaluating(self.encoder):
            latents, counts = self._latents(self.normalize(motion), lengths)
        valid = latents if counts is None else zero_padding(latents, counts)
        check_computed(valid, self.dtype, "encode")
        return latents, counts

    def _encode_step(self, motion: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the encoder's output ``(B, C, n)`` for the next frames, and the next state."""
        latents, state = self.encoder.step(self.normalize(motion).to(self.dtype).mT, state)
        check_computed(latents, self.dtype, "encode")
        return latents, state

    def _decode_step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns motion ``(B, T, D)`` of the next latents ``(B, C, n)``, and the next state."""
        of_decoder, of_smoother = self.split_decoder_state(state)
        features, of_decoder = self.decoder.step(latents, of_decoder)
        features, state = features.mT, of_decoder
        if self.smoother is not None:
            check_computed(features, self.dtype, "decode")
            features, of_smoother = self.smoother.step(
                features.to(self.smoother.weights), of_smoother
            )
            state = (of_decoder, of_smoother)
        motion = self.denormalize(features)
        check_computed(motion, self.dtype, "decode")
        return motion, state

    def decode_end(self, state: State) -> Tensor | None:
        """Returns the motion ``(B, n, D)`` that is still to come at the end of a stream.

        None if there is none: the model does not look ahead, or no token or latent came.
        """
        of_smoother = self.split_decoder_state(state)[1]
        if self.smoother is None or of_smoother is None or not self.smoother.after:
            return None
        return self.denormalize(self.smoother.finish(of_smoother))

    def split_decoder_state(self, state: State) -> tuple[State, State]:
        """Returns the states of decoder and smoother, from the state of a stream."""
        if self.smoother is None:
            return state, None
        of_decoder, of_smoother = split_state(state, 2)
        return of_decoder, of_smoother

    def _decode_latents(self, latents: Tensor, counts: Tensor | None) -> Tensor:
        """Returns normalized features ``(B, T, D)`` of latents; ``counts`` is None for all."""
        return decode_latents(self.decoder, self.smoother, latents, counts)

    def _decode_features(
        self, latents: Tensor, counts: Tensor | None, target: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns features ``(B, T, D)`` of latents and their target, 0 after ``lengths``."""
        frames = target.shape[1]
        output = self._decode_latents(latents, counts)[:, :frames]
        if lengths is not None:
            mask = make_mask(lengths, frames)[:, :, None]
            output, target = output * mask, target * mask
        return output, target

    def _decode(self, latents: Tensor, length: int | Lengths) -> Tensor:
        """Returns motion ``(B, T, D)`` of latents ``(B, C, n)`` in the dtype of the decoder.

        Args:
            length: number of frames of the motion, or ``(B,)``, number of frames of each clip.
        """
        batch, _, count = latents.shape
        if isinstance(length, int):
            length = torch.full((batch,), length)
        lengths = self._check_lengths(length, (batch, self.config.frames_of(count)))
        longest = int(lengths.max())
        latents = latents[:, :, : self.config.tokens_of(longest)]
        needed = self._tokens_of(lengths) if (lengths < longest).any() else None
        with evaluating(self.decoder):
            features = self._decode_latents(latents, needed)[:, :longest]
        motion = self.denormalize(features)
        if needed is not None:
            motion = zero_padding(motion.mT, lengths).mT
        check_computed(motion, self.dtype, "decode")
        return motion

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
        return run(self.encoder, complete(features, lengths, self.config).to(self.dtype).mT, frames)


def complete(features: Tensor, lengths: Tensor | None, config: RVQVAEConfig) -> Tensor:
    """Returns features with the last frame of each clip repeated to fill its last token.

    Args:
        features: ``(B, T, D)``.
        lengths: ``(B,)``, the number of frames of each clip; None is all frames.
    """
    length = features.shape[1]
    whole = config.frames_of(config.tokens_of(length))
    frames = torch.arange(whole, device=features.device)
    if lengths is None:
        # While a compiler traces, the length is a symbol, and the last token may be full or not.
        if not torch.compiler.is_compiling() and whole == length:
            return features
        return features.index_select(1, frames.clamp(max=length - 1))
    frames = torch.minimum(frames, lengths[:, None] - 1)
    return features.gather(1, frames[:, :, None].expand(-1, -1, features.shape[2]))


def decode_latents(
    decoder: Streaming, smoother: Smoother | None, latents: Tensor, tokens: Tensor | None
) -> Tensor:
    """Returns normalized features ``(B, T, D)`` of latents ``(B, C, tokens)``.

    Args:
        tokens: ``(B,)``, the number of tokens of each clip; None is all tokens.
    """
    features, frames = run(decoder, latents, tokens)
    if smoother is None:
        return features.mT
    return smoother(features.mT.to(smoother.weights), frames)


def require_bottleneck(config: RVQVAEConfig, model: type[MotionAutoencoder]) -> None:
    """Raises UserError if a config is not of a kind of model."""
    if config.bottleneck != model.BOTTLENECK:
        names = {"quantizer": "a tokenizer, an RVQVAE", "gaussian": "a VAE, a MotionVAE"}
        raise UserError(
            f"this is {names[config.bottleneck]} (bottleneck: {config.bottleneck}), not "
            f"{names[model.BOTTLENECK]}"
        )


def warn_of_missing_normalizer(path: str | PathLike[str]) -> None:
    """Warns that a published checkpoint does not say how to normalize features."""
    warnings.warn(
        f"{path} has no mean and standard deviation, so the model takes and gives normalized "
        "features. Put both into the checkpoint: "
        f"python -m motion convert {path} model.safetensors --to native --mean Mean.npy "
        "--std Std.npy",
        stacklevel=4,
    )


def warn_of_missing_skeleton(path: str | PathLike[str]) -> None:
    """Warns that a checkpoint does not say which skeleton its motion is of."""
    warnings.warn(
        f"{path} does not tell its skeleton, so nothing checks that motion files have its joints. "
        f"Put it into the checkpoint: python -m motion convert {path} model.safetensors --to "
        "native --skeleton FILE, where FILE is motion that the model was trained on",
        stacklevel=4,
    )


def run(network: Streaming, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns the output for clips ``(B, C, T)`` of ``lengths`` ``(B,)``, and its lengths."""
    return (network(x), None) if lengths is None else network.forward_masked(x, lengths)
