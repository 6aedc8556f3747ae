"""The architecture of a video VAE, and which videos such a model takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

from wanvae.engine.config import check, check_option
from wanvae.errors import UserError
from wanvae.nn.coder import CoderSpec
from wanvae.nn.norm import NormKind
from wanvae.nn.patch import Unpatchify
from wanvae.nn.residual import ActivationKind, BlockKind, BlockSpec

Half: TypeAlias = Literal["encoder", "decoder"]

# Channels of a video without alpha, and with alpha.
RGB, RGBA = 3, 4
# Fields that are at least 1.
COUNTS = (
    *("dim", "z_dim", "num_res_blocks", "in_channels", "out_channels"),
    *("patch_size", "upscale_factor"),
)


class VideoConfig(Protocol):
    """What the config of every video autoencoder tells of its videos and latents.

    The names mean the same as in ``WanVAEConfig``.
    """

    @property
    def z_dim(self) -> int: ...

    @property
    def half(self) -> Half | None: ...

    @property
    def in_channels(self) -> int: ...

    @property
    def out_channels(self) -> int: ...

    @property
    def temporal_factor(self) -> int: ...

    @property
    def spatial_factor(self) -> int: ...

    @property
    def decoded_spatial_factor(self) -> int: ...

    @property
    def upscale_factor(self) -> int: ...

    @property
    def latents_mean(self) -> tuple[float, ...]: ...

    @property
    def latents_std(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Architecture of a :class:`~wanvae.WanVAE`. The defaults are the official Wan2.1 model.

    ``WAN22`` is the config of Wan2.2, ``QWEN_IMAGE_21`` the config of Qwen-Image 2.1.

    Attributes:
        dim: channels at full resolution.
        z_dim: channels of the latents.
        dim_mult: channels of each stage, in multiples of dim. Height and width halve from one
            stage to the next.
        num_res_blocks: residual blocks per stage of the encoder.
        attn_scales: scales at which attention follows each residual block, counted as in the
            official code (see wanvae.nn.coder.CoderSpec).
        temporal_downsample: for each step from one stage to the next, whether time halves too.
        in_channels: channels of the video to encode.
        out_channels: channels of the decoded video.
        decoder_dim: channels of the decoder at full resolution; None means dim.
        decoder_res_blocks: residual blocks per stage of the decoder; None means one more than in
            the encoder, as in all published models.
        alpha_decoder: whether a second decoder of the same layers decodes alpha, the last of the
            out_channels, from the same latents, as in Wan-Alpha. Alpha is not premultiplied.
        stage_shortcuts: whether each stage has a shortcut, without parameters, across all of its
            layers, as in Wan2.2. Needs no attn_scales.
        patch_size: side of the squares of pixels that become the channels of one position; 2 in
            Wan2.2.
        upscale_factor: how many times larger the decoded video is along height and width; 2 for
            decoders that were trained to upscale.
        dropout: dropout probability inside residual blocks, in training.
        block: body of the residual blocks. Official checkpoints need "residual".
        norm: normalization. Official checkpoints need "rms". "group" needs whole clips.
        activation: nonlinearity. Official checkpoints need "silu".
        ndim: 3 for a video model, 2 for an image model. An image model has the same layers, but
            its kernels have no extent in time and nothing resamples time, so each frame stands
            alone (unless norm is "group"). Its temporal_downsample describes the video model that
            it can be inflated to. With stage_shortcuts each frame is processed as that video model
            processes the first frame of a video, as in Qwen-Image 2.1.
        half: "encoder" or "decoder" for a model that has only this half; None is a whole model.
        latents_mean: mean of each latent channel, for normalize; empty means 0.
        latents_std: standard deviation of each latent channel, for normalize; empty means 1.

    >>> config = WanVAEConfig(dim=32)
    >>> config.temporal_factor, config.spatial_factor
    (4, 8)
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    in_channels: int = 3
    out_channels: int = 3
    decoder_dim: int | None = None
    decoder_res_blocks: int | None = None
    alpha_decoder: bool = False
    stage_shortcuts: bool = False
    patch_size: int = 1
    upscale_factor: int = 1
    dropout: float = 0.0
    block: BlockKind = "residual"
    norm: NormKind = "rms"
    activation: ActivationKind = "silu"
    ndim: Literal[2, 3] = 3
    half: Half | None = None
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in COUNTS:
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        stages = len(self.dim_mult)
        positive = stages > 0 and min(self.dim_mult) >= 1
        check(positive, "dim_mult", self.dim_mult, "one positive whole number per stage")
        steps = self.temporal_downsample
        expected = f"one true or false per step between stages, {stages - 1} here"
        check(len(steps) == stages - 1, "temporal_downsample", steps, expected)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        for name, kinds in (
            ("block", BlockKind),
            ("norm", NormKind),
            ("activation", ActivationKind),
        ):
            check_option(name, getattr(self, name), kinds)
        check(self.ndim in (2, 3), "ndim", self.ndim, "2 (images) or 3 (video)")
        check(self.half in (None, "encoder", "decoder"), "half", self.half, "encoder or decoder")
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            check(len(values) in (0, self.z_dim), name, values, f"{self.z_dim} numbers (z_dim)")
            check(all(map(math.isfinite, values)), name, values, "finite")
        check(all(s > 0 for s in self.latents_std), "latents_std", self.latents_std, "positive")
        self._check_family()

    def only(self, half: Half) -> WanVAEConfig:
        """Returns the config of one half of this model. The other half leaves no trace in it."""
        if half == "encoder":
            return replace(
                self,
                half=half,
                decoder_dim=None,
                decoder_res_blocks=None,
                alpha_decoder=False,
                out_channels=self.in_channels,
                upscale_factor=1,
            )
        blocks = self.blocks_of_decoder
        return replace(
            self,
            half=half,
            dim=self.decoder_dim or self.dim,
            decoder_dim=None,
            # An encoder has one block less, and no fewer than one.
            num_res_blocks=max(1, blocks - 1),
            decoder_res_blocks=None if blocks > 1 else blocks,
            in_channels=self.out_channels,
        )

    def simplest(self) -> WanVAEConfig:
        """Returns the same architecture, without fields of the decoder that the encoder tells."""
        blocks, told = self.decoder_res_blocks, self.num_res_blocks + 1
        return replace(
            self,
            decoder_dim=None if self.decoder_dim == self.dim else self.decoder_dim,
            decoder_res_blocks=None if blocks == told else blocks,
        )

    def _check_family(self) -> None:
        """Checks the fields in which other models differ from Wan2.1."""
        for name in ("decoder_dim", "decoder_res_blocks"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, value, "at least 1")
        if self.stage_shortcuts:
            check(not self.attn_scales, "attn_scales", self.attn_scales, "() with stage_shortcuts")
        if self.alpha_decoder:
            expected = "2 or more with alpha_decoder: colour and alpha"
            check(self.out_channels > 1, "out_channels", self.out_channels, expected)
        if self.patch_size > 1:
            check(self.upscale_factor == 1, "upscale_factor", self.upscale_factor, "1 with patches")

    @property
    def spatial_factor(self) -> int:
        """Encoded pixels per latent along height and width: 8 for Wan2.1, 16 for Wan2.2."""
        return 2 ** (len(self.dim_mult) - 1) * self.patch_size

    @property
    def decoded_spatial_factor(self) -> int:
        """Decoded pixels per latent along height and width."""
        return self.spatial_factor * self.upscale_factor

    @property
    def temporal_factor(self) -> int:
        """Frames per latent after the first: 4 for the official model, 1 for an image model."""
        return 2 ** sum(self.temporal_downsample) if self.ndim == 3 else 1

    @property
    def coder(self) -> CoderSpec:
        """The layers of the encoder. The decoder may differ in its width and depth."""
        block = BlockSpec(
            kind=self.block,
            norm=self.norm,
            activation=self.activation,
            dropout=self.dropout,
            time_kernel=3 if self.ndim == 3 else 1,
        )
        steps = self.temporal_downsample
        if self.ndim == 2 and not self.stage_shortcuts:
            steps = (False,) * len(steps)
        return CoderSpec(
            ndim=3,
            dim=self.dim,
            dim_mult=self.dim_mult,
            num_res_blocks=self.num_res_blocks,
            temporal_downsample=steps,
            frames_alone=self.ndim == 2,
            attn_scales=self.attn_scales,
            block=block,
            stage_shortcuts=self.stage_shortcuts,
        )

    @property
    def blocks_of_decoder(self) -> int:
        """Residual blocks per stage of the decoder."""
        return self.decoder_res_blocks or self.num_res_blocks + 1

    @property
    def decoder(self) -> CoderSpec:
        """The layers of the decoder."""
        width = self.decoder_dim or self.dim
        return replace(self.coder, dim=width, num_res_blocks=self.blocks_of_decoder - 1)

    @property
    def unpatchify(self) -> Unpatchify | None:
        """The last layer of a decoder whose head returns squares of pixels, else None."""
        if self.upscale_factor > 1:
            return Unpatchify(self.upscale_factor, rows_first=True)
        return Unpatchify(self.patch_size) if self.patch_size > 1 else None


WAN22 = WanVAEConfig(dim=160, decoder_dim=256, z_dim=48, stage_shortcuts=True, patch_size=2)
QWEN_IMAGE_21 = WanVAEConfig(
    decoder_dim=144,
    z_dim=64,
    dim_mult=(1, 2, 4, 8, 8),
    temporal_downsample=(False, True, True, True),
    in_channels=RGBA,
    out_channels=RGBA,
    stage_shortcuts=True,
    ndim=2,
)


def encodes_alpha(config: VideoConfig) -> bool:
    """Returns whether videos to encode are RGBA."""
    return config.in_channels == RGBA


def decodes_alpha(config: VideoConfig) -> bool:
    """Returns whether decoded videos are RGBA."""
    return config.out_channels == RGBA


def check_size(config: VideoConfig, height: int, width: int) -> None:
    """Raises UserError if a model cannot encode frames of this size in pixels."""
    factor = config.spatial_factor
    if height < 1 or width < 1 or height % factor or width % factor:
        below = [n // factor * factor for n in (height, width)]
        above = [-(-n // factor) * factor for n in (height, width)]
        raise UserError(
            f"height and width must be multiples of {factor}, not {height}x{width}: "
            f"crop to {below[0]}x{below[1]} or pad to {above[0]}x{above[1]}"
        )


def check_length(config: VideoConfig, frames: int) -> None:
    """Raises UserError if a model cannot encode a clip of so many frames."""
    factor = config.temporal_factor
    if frames < 1 or (frames - 1) % factor:
        below = (frames - 1) // factor * factor + 1
        advice = (
            f"drop frames to {below}, or repeat the last one to {below + factor} (stream_encode "
            "does this by itself)"
        )
        raise UserError(
            f"a clip must have 1 + {factor}n frames, not {frames}: "
            f"{'one is the least' if frames < 1 else advice}"
        )


def check_has(config: VideoConfig, half: Half) -> None:
    """Raises UserError if a model has only the other half."""
    if config.half not in (None, half):
        verbs = {"encoder": "encode", "decoder": "decode"}
        raise UserError(
            f"this model is {'an' if config.half == 'encoder' else 'a'} {config.half} alone, so it "
            f"cannot {verbs[half]}: load a checkpoint that has the {half} too"
        )


def check_reconstructs(config: VideoConfig) -> None:
    """Raises UserError if a model does not return videos in the form that it takes."""
    check_has(config, "encoder")
    check_has(config, "decoder")
    if config.upscale_factor > 1 or config.in_channels != config.out_channels:
        raise UserError(
            f"this model encodes videos of {config.in_channels} channels, but decodes videos of "
            f"{config.out_channels} channels and {config.upscale_factor} times the size, so there "
            "is no original to compare with; encode and decode instead"
        )
