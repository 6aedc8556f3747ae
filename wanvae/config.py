"""The architecture of a video VAE, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wanvae.engine.config import check, check_option
from wanvae.nn.coder import CoderSpec
from wanvae.nn.norm import NormKind
from wanvae.nn.residual import ActivationKind, BlockKind, BlockSpec


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Architecture of a :class:`~wanvae.WanVAE`; the defaults are the official Wan2.1 model.

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
        dropout: dropout probability inside residual blocks, while training.
        block: body of the residual blocks; official checkpoints need "residual".
        norm: normalisation; official checkpoints need "rms". "group" needs whole clips.
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
    dropout: float = 0.0
    block: BlockKind = "residual"
    norm: NormKind = "rms"
    activation: ActivationKind = "silu"
    ndim: Literal[2, 3] = 3
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dim", "z_dim", "num_res_blocks", "in_channels", "out_channels"):
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

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent along height and width: 8 for the official model."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent after the first: 4 for the official model, 1 for an image model."""
        return 2 ** sum(self.coder.temporal_downsample)

    @property
    def coder(self) -> CoderSpec:
        """The shape of encoder and decoder."""
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
        )
