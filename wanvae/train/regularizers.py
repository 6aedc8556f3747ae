"""Regularizers of latents: what makes latents easier to model, or to do without in part.

Two of them decode changed latents besides the latents of the clip, and compare the result with the
video that it should be. The third compares latents with the features of a frozen network. All that
is random is drawn on the CPU with PyTorch's default generator, which the training loop seeds for
each batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from wanvae.engine.config import check, check_option
from wanvae.errors import UserError
from wanvae.nn.kernels.precision import wide_dtype

DropoutOrder = Literal["any", "last"]


@dataclass(frozen=True, kw_only=True)
class EquivarianceConfig:
    """Equivariance of the decoder to scale and rotation (EQ-VAE, arXiv 2502.09509).

    Each step scales the latents of a batch down, turns them by quarters, and decodes them once
    more. The result is compared with the video, scaled and turned alike, by the terms of pixels and
    LPIPS. The paper does so in half of the steps, instead of the usual comparison.

    Attributes:
        weight: of the term, relative to these terms of the reconstruction; 1 suits. 0 is without.
            It costs the decoder once more, on 44 % of the pixels by default.
        smallest_scale: latents are scaled by a factor between this and 1, drawn for each batch and
            rounded so that height and width are whole latents. 1 does not scale.
        rotate: turn by 0, 90, 180 or 270 degrees, drawn for each batch.
    """

    weight: float = 0.0
    smallest_scale: float = 0.25
    rotate: bool = True

    def __post_init__(self) -> None:
        check(self.weight >= 0, "equivariance.weight", self.weight, "at least 0")
        scale = self.smallest_scale
        check(0 < scale <= 1, "equivariance.smallest_scale", scale, "above 0 and at most 1")
        if self.weight > 0 and self.smallest_scale == 1 and not self.rotate:
            raise UserError(
                "equivariance neither scales nor rotates: set smallest_scale below 1, or weight to "
                "0"
            )


@dataclass(frozen=True, kw_only=True)
class ChannelDropoutConfig:
    """Dropout of whole channels of latents, for decoders that can do without some.

    Each step decodes the latents once more with channels missing, and compares the result with the
    video by the terms of pixels and LPIPS. A missing channel is ``latents_mean`` everywhere, 0 if
    the model has no statistics.

    Attributes:
        weight: of the term, relative to these terms of the reconstruction. 0 is without. It costs
            the decoder once more.
        probability: with "any", how likely a channel is missing; with "last", how likely a clip
            lacks channels.
        order: "any" drops each channel of a clip alone, as Tompson et al. (arXiv 1411.4280) do.
            "last" keeps the first channels of a clip, at least one; how many is drawn. So channels
            come to be ordered by importance (nested dropout, Rippel et al., arXiv 1402.0915).
    """

    weight: float = 0.0
    probability: float = 0.25
    order: DropoutOrder = "any"

    def __post_init__(self) -> None:
        check(self.weight >= 0, "channel_dropout.weight", self.weight, "at least 0")
        name, value = "channel_dropout.probability", self.probability
        check(0 < value <= 1, name, value, "above 0 and at most 1")
        check_option("channel_dropout.order", self.order, DropoutOrder)
        if self.order == "any":
            check(value < 1, name, value, "below 1 with order any")


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Alignment of latents to features of a frozen image network (VA-VAE, arXiv 2501.01423).

    Attributes:
        weight: of the term. 0 is without; the paper has 0.1, and 0.5 first. It costs the network on
            one frame for each latent, and memory that grows with the square of the positions of a
            frame of latents.
        network: folder of a vision transformer for the library transformers, such as DINOv2:
            config.json and model.safetensors, perhaps preprocessor_config.json. No code in it is
            run, and no pickle is read.
        adaptive: multiply the weight by the ratio of the gradients of the reconstruction and of the
            term at the last layer of the encoder, as the paper does. It costs one more backward
            pass through the decoder.
        cosine_margin: cosine distances between a projected latent and its feature up to this cost
            nothing. The projection is linear and learnt; only the checkpoints of a run keep it.
        distance_margin: differences up to this cost nothing between the cosine similarity of two
            latents of a frame and the cosine similarity of their features.
    """

    weight: float = 0.0
    network: str | None = None
    adaptive: bool = True
    cosine_margin: float = 0.5
    distance_margin: float = 0.25

    def __post_init__(self) -> None:
        for name in ("weight", "cosine_margin", "distance_margin"):
            check(getattr(self, name) >= 0, f"alignment.{name}", getattr(self, name), "at least 0")
        if self.weight > 0 and self.network is None:
            raise UserError(
                f"alignment.weight is {self.weight} and there is no network: name a folder of one "
                "as alignment.network, or set the weight to 0"
            )


@dataclass(frozen=True)
class Turn:
    """A scale and a rotation that latents and videos can take.

    Attributes:
        height, width: in latents, after the scale and before the rotation.
        quarters: how many quarter turns, against the clock.
    """

    height: int
    width: int
    quarters: int

    def apply(self, x: Tensor, positions: int = 1) -> Tensor:
        """Returns ``x``, ``(B, C, T, H, W)``, scaled and turned, in at least float32.

        Args:
            positions: positions of ``x`` for each latent, along height and width.
        """
        size = self.height * positions, self.width * positions
        frames = rearrange(x.to(wide_dtype(x)), "b c t h w -> (b t) c h w")
        if frames.shape[2:] != size:
            frames = F.interpolate(
                frames, size, mode="bilinear", antialias=True, align_corners=False
            )
        turned = torch.rot90(frames, self.quarters, (2, 3))
        return rearrange(turned, "(b t) c h w -> b c t h w", b=len(x))


def draw_turn(config: EquivarianceConfig, height: int, width: int, smallest: int = 1) -> Turn:
    """Draws a scale and a rotation.

    Args:
        height, width: of the latents.
        smallest: the least height and width after the scale, where the latents have as much.
    """
    scale = 1 - (1 - config.smallest_scale) * float(torch.rand(()))
    quarters = int(torch.randint(4, ())) if config.rotate else 0
    height, width = (min(side, max(smallest, round(scale * side))) for side in (height, width))
    return Turn(height, width, quarters)


def draw_kept(config: ChannelDropoutConfig, batch: int, channels: int) -> Tensor:
    """Draws which channels each clip keeps: booleans ``(batch, channels)``."""
    if config.order == "any":
        return torch.rand(batch, channels) >= config.probability
    count = torch.randint(1, channels + 1, (batch, 1))
    whole = torch.rand(batch, 1) >= config.probability
    return whole | (torch.arange(channels) < count)


def drop_channels(latents: Tensor, kept: Tensor, fill: Tensor) -> Tensor:
    """Returns latents ``(B, z_dim, T, H, W)`` without some channels.

    Args:
        kept: booleans ``(B, z_dim)``.
        fill: the value of each missing channel, ``(z_dim,)``.
    """
    kept, fill = kept.to(latents.device)[..., None, None, None], fill.to(latents)
    return torch.where(kept, latents, fill[:, None, None, None])


def similarity(projected: Tensor, features: Tensor) -> Tensor:
    """Returns the cosine similarity at each position, ``(B, T, H, W)``.

    Args:
        projected, features: ``(B, D, T, H, W)``, in float32.
    """
    return F.cosine_similarity(projected, features, dim=1)


def alignment_loss(
    latents: Tensor, projected: Tensor, features: Tensor, config: AlignmentConfig
) -> Tensor:
    """The loss of VA-VAE, a scalar: two means over positions, frames and clips.

    The first is how far the cosine distance between projected latents and features is above its
    margin. The second is how far the similarity of each two latents of a frame differs from the
    similarity of their features, above its margin.

    Args:
        latents: ``(B, z_dim, T, H, W)``.
        projected: ``(B, D, T, H, W)``, from the latents.
        features: ``(B, D, T, H, W)``.
    """
    far = F.relu(1 - config.cosine_margin - similarity(projected.float(), features.float()))
    difference = (similarities(latents) - similarities(features)).abs()
    return far.mean() + F.relu(difference - config.distance_margin).mean()


def similarities(x: Tensor) -> Tensor:
    """Cosine similarities of each two positions of a frame of ``(B, C, T, H, W)``, in float32."""
    vectors = F.normalize(rearrange(x.float(), "b c t h w -> (b t) (h w) c"), dim=2)
    return vectors @ vectors.mT
