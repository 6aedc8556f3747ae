"""The model of a training step: the VAE, and what is decoded besides its reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from wanvae.model import Reconstruction, WanVAE
from wanvae.train.regularizers import draw_kept, draw_turn, drop_channels

if TYPE_CHECKING:
    from wanvae.train.losses import LossConfig

Method = TypeVar("Method")


@dataclass(frozen=True)
class Decoded:
    """What changed latents decode to.

    Attributes:
        video: ``(B, C, T, H, W)``, not clamped.
        target: what it should be, of the same shape.
    """

    video: Tensor
    target: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """What a training step computes of a batch.

    Attributes:
        reconstruction: as ``WanVAE`` returns it.
        latents: what was decoded, ``(B, z_dim, T, H, W)``.
        frames_per_latent: latent t has seen frames up to this times t.
        decoded: what latents decode to that a regularizer has changed, by the name of its term.
        projected: the latents projected to the features of a frozen network, in float32; or None.
    """

    reconstruction: Reconstruction
    latents: Tensor
    frames_per_latent: int
    decoded: dict[str, Decoded]
    projected: Tensor | None


def uncompiled(method: Method) -> Method:
    """Leaves a method out of torch.compile, which would compile it anew for each scale."""
    return cast(Method, torch.compiler.disable(method))


class Trainee(nn.Module):
    """A VAE and, for the alignment of its latents, a linear projection that learns with it.

    One call computes all that needs gradients from the parameters, so that accelerate may wrap it.

    Args:
        loss: says which latents are decoded besides.
        feature_channels: of the features that latents are projected to; 0 is without.
        smallest_side: the least height and width of a video that the loss compares, in pixels.
    """

    fill: Tensor

    def __init__(
        self, vae: WanVAE, loss: LossConfig, *, feature_channels: int = 0, smallest_side: int = 1
    ) -> None:
        super().__init__()
        self.vae = vae
        self.loss = loss
        self.changes = loss.equivariance.weight > 0 or loss.channel_dropout.weight > 0
        self.smallest_side = smallest_side
        self.projection: nn.Linear | None = None
        if feature_channels:
            self.projection = nn.Linear(vae.config.z_dim, feature_channels, bias=False)
        fill = torch.tensor(vae.config.latents_mean or (0.0,) * vae.config.z_dim)
        self.register_buffer("fill", fill, persistent=False)

    def forward(
        self, video: Tensor, target: Tensor | None = None, *, recompute: bool = False
    ) -> TrainingOutput:
        """Encodes and decodes a batch, as ``WanVAE`` does, and what the regularizers need.

        Args:
            video, recompute: as for ``WanVAE``.
            target: what the output will be compared with; None is ``video``.
        """
        target = video if target is None else target
        latents, posterior = self.vae.encode_for_training(video, recompute=recompute)
        return TrainingOutput(
            Reconstruction(self.decode(latents, recompute), posterior),
            latents,
            self.vae.config.temporal_factor,
            self.decode_changed(latents, target, recompute) if self.changes else {},
            self.project(latents),
        )

    def decode(self, latents: Tensor, recompute: bool) -> Tensor:
        """Returns the video of whole latents."""
        return self.vae.decode_step(latents, None, recompute=recompute)[0]

    @uncompiled
    def decode_changed(
        self, latents: Tensor, target: Tensor, recompute: bool
    ) -> dict[str, Decoded]:
        """Returns what changed latents decode to, by the name of the term that changes them."""
        decoded = {}
        if self.loss.equivariance.weight > 0:
            factor = self.vae.config.decoded_spatial_factor
            smallest = -(-self.smallest_side // factor)
            height, width = latents.shape[3:]
            turn = draw_turn(self.loss.equivariance, height, width, smallest)
            turned = self.decode(turn.apply(latents).to(latents.dtype), recompute)
            decoded["equivariance"] = Decoded(turned, turn.apply(target, factor))
        if self.loss.channel_dropout.weight > 0:
            kept = draw_kept(self.loss.channel_dropout, len(latents), self.vae.config.z_dim)
            lacking = drop_channels(latents, kept, self.fill)
            decoded["channel_dropout"] = Decoded(self.decode(lacking, recompute), target)
        return decoded

    def project(self, latents: Tensor) -> Tensor | None:
        """Returns the projection of latents, ``(B, D, T, H, W)`` in float32, if there is one."""
        if self.projection is None:
            return None
        with torch.autocast(latents.device.type, enabled=False):
            return self.projection(latents.float().movedim(1, -1)).movedim(-1, 1)
