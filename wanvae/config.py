"""The architecture of a video VAE, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from wanvae.engine.config import check, check_option
from wanvae.nn.coder import CoderSpec
from wanvae.nn.norm import NormKind
from wanvae.nn.patch import Unpatchify
from wanvae.nn.residual import ActivationKind, BlockKind, BlockSpec

# Fields that are at least 1.
COUNTS = (
    *("dim", "z_dim", "num_res_blocks", "in_channels", "out_channels"),
    *("patch_size", "upscale_factor"),
)


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Architecture of a :class:`~wanvae.WanVAE`; the defaults are the official Wan2.1 model.

    ``WAN22`` is that of Wan2.2.

    Attributes:
        dim: channels at full resolution.
        z_dim: channels of the latents.
        dim_mult: channels of each stage, in multiples of dim; space halves from stage to stage.
        num_res_blocks: residual blocks per stage of the encoder; the decoder has one more.
        attn_scales: scales at which attention follows each residual block, as the official code
            counts them (see wanvae.nn.coder.CoderSpec).
        temporal_downsample: for each step from one stage to the next, whether time halves too.
        in_channels: channels of the video to encode.
        out_channels: channels of the decoded video.
        decoder_dim: channels of the decoder at full resolution; None: dim.
        stage_shortcuts: whether stages have a shortcut across all of their layers, without
            parameters, as in Wan2.2; needs video and no attn_scales.
        patch_size: sides of the squares of pixels that are the channels of one position for all
            layers; 2 in Wan2.2.
        upscale_factor: how many times as large along each side the decoder makes the video; 2 for
            decoders that were trained to upscale.
        dropout: dropout probability inside residual blocks, while training.
        block: body of the residual blocks; official checkpoints need "residual".
        norm: normalization; official checkpoints need "rms". "group" needs whole clips.
        activation: nonlinearity; official checkpoints need "silu".
        ndim: 3 for a video model, 2 for an image model: the same layers, but kernels have no extent
            in time and nothing resamples it, so that each frame stands alone (unless norm is
            "group"). Its temporal_downsample is that of the video model it can be inflated to.
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
    stage_shortcuts: bool = False
    patch_size: int = 1
    upscale_factor: int = 1
    dropout: float = 0.0
    block: BlockKind = "residual"
    norm: NormKind = "rms"
    activation: ActivationKind = "silu"
    ndim: Literal[2, 3] = 3
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
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            check(len(values) in (0, self.z_dim), name, values, f"{self.z_dim} numbers (z_dim)")
        check(all(s > 0 for s in self.latents_std), "latents_std", self.latents_std, "positive")
        self._check_family()

    def _check_family(self) -> None:
        """Check the fields that set other models apart from Wan2.1."""
        width = self.decoder_dim
        check(width is None or width >= 1, "decoder_dim", width, "at least 1")
        if self.stage_shortcuts:
            check(not self.attn_scales, "attn_scales", self.attn_scales, "() with stage_shortcuts")
            check(self.ndim == 3, "ndim", self.ndim, "3 with stage_shortcuts")
        if self.patch_size > 1:
            check(self.upscale_factor == 1, "upscale_factor", self.upscale_factor, "1 with patches")

    @property
    def spatial_factor(self) -> int:
        """Pixels to encode per latent along height and width: 8 for Wan2.1, 16 for Wan2.2."""
        return 2 ** (len(self.dim_mult) - 1) * self.patch_size

    @property
    def decoded_spatial_factor(self) -> int:
        """Decoded pixels per latent along height and width."""
        return self.spatial_factor * self.upscale_factor

    @property
    def temporal_factor(self) -> int:
        """Frames per latent after the first: 4 for the official model, 1 for an image model."""
        return 2 ** sum(self.coder.temporal_downsample)

    @property
    def coder(self) -> CoderSpec:
        """The shape of the encoder; the decoder's differs in its width."""
        block = BlockSpec(
            kind=self.block,
            norm=self.norm,
            activation=self.activation,
            dropout=self.dropout,
            time_kernel=3 if self.ndim == 3 else 1,
        )
        steps = self.temporal_downsample
        return CoderSpec(
            ndim=3,
            dim=self.dim,
            dim_mult=self.dim_mult,
            num_res_blocks=self.num_res_blocks,
            temporal_downsample=steps if self.ndim == 3 else (False,) * len(steps),
            attn_scales=self.attn_scales,
            block=block,
            stage_shortcuts=self.stage_shortcuts,
        )

    @property
    def decoder(self) -> CoderSpec:
        """The shape of the decoder."""
        return replace(self.coder, dim=self.decoder_dim or self.dim)

    @property
    def unpatchify(self) -> Unpatchify | None:
        """What the decoder ends with, if its head makes squares of pixels."""
        if self.upscale_factor > 1:
            return Unpatchify(self.upscale_factor, rows_first=True)
        return Unpatchify(self.patch_size) if self.patch_size > 1 else None


WAN22 = WanVAEConfig(dim=160, decoder_dim=256, z_dim=48, stage_shortcuts=True, patch_size=2)
