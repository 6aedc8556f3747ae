"""The model of a training step: the VAE, and what is decoded besides its reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from wanvae.config import Half
from wanvae.engine.training.compiling import no_new_shapes
from wanvae.model import Reconstruction, WanVAE
from wanvae.posterior import Posterior
from wanvae.tiny import TinyVAE
from wanvae.train.distillation import Projections, features_of, widths_of_features
from wanvae.train.lora import last_trained_weight
from wanvae.train.regularizers import draw_kept, draw_turn, drop_channels
from wanvae.train.tiny_student import WithTinyDecoder
from wanvae.train.upscaling import Downscaling, scale_down

if TYPE_CHECKING:
    from wanvae.train.losses import LossConfig

# What is trained.
Trained: TypeAlias = "WanVAE | WithTinyDecoder"


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
        encoded: what was encoded, ``(B, C, T, H, W)``.
        features: what the stages of a student compute, projected to the teacher's channels.
    """

    reconstruction: Reconstruction
    latents: Tensor
    frames_per_latent: int
    decoded: dict[str, Decoded]
    projected: Tensor | None
    encoded: Tensor
    features: list[Tensor]


class Trainee(nn.Module):
    """A VAE and, for the alignment of its latents, a linear projection that learns with it.

    One call computes all that needs gradients from the parameters, so that accelerate may wrap it.

    Args:
        loss: says which latents are decoded besides.
        feature_channels: of the features that latents are projected to; 0 is without.
        half: the half that learns from a teacher; None is no half.
        teacher_widths: channels of the teacher's stages that the student's stages are projected to;
            empty is without.
        downscaling: how the video is scaled down before it is encoded, if the decoder upscales.
        smallest_side: the least height and width of a video that the loss compares, in pixels.
    """

    fill: Tensor

    def __init__(
        self,
        vae: Trained,
        loss: LossConfig,
        *,
        feature_channels: int = 0,
        half: Half | None = None,
        teacher_widths: Sequence[int] = (),
        downscaling: Downscaling = "area",
        smallest_side: int = 1,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.loss = loss
        self.half: Half | None = half
        self.changes = loss.equivariance.weight > 0 or loss.channel_dropout.weight > 0
        self.downscaling: Downscaling = downscaling
        self.smallest_side = smallest_side
        self.projection: nn.Linear | None = None
        if feature_channels:
            self.projection = nn.Linear(vae.config.z_dim, feature_channels, bias=False)
        self.projections: Projections | None = None
        if teacher_widths and half is not None:
            widths = widths_of_features(require_whole(vae), half)
            self.projections = Projections(widths, teacher_widths)
        fill = torch.tensor(vae.config.latents_mean or (0.0,) * vae.config.z_dim)
        self.register_buffer("fill", fill, persistent=False)

    @property
    def companion(self) -> nn.Module | None:
        """What learns with the VAE and is no part of it."""
        return self.projection or self.projections

    def forward(
        self, video: Tensor, target: Tensor | None = None, *, recompute: bool = False
    ) -> TrainingOutput:
        """Encodes and decodes a batch, as ``WanVAE`` does, and what the other terms need.

        Args:
            video, recompute: as for ``WanVAE``. A model whose decoder upscales encodes the video
                scaled down.
            target: what the output will be compared with; None is ``video``.
        """
        target = video if target is None else target
        encoded = scale_down(video, self.vae.config.upscale_factor, self.downscaling)
        latents, posterior, of_encoder = self.encode(encoded, recompute)
        output, of_decoder = self.decode_with_features(latents, recompute)
        features = [*of_encoder, *of_decoder]
        decoded: dict[str, Decoded] = {}
        if self.changes:
            # Each scale is another shape.
            with no_new_shapes():
                decoded = self.decode_changed(latents, target, recompute)
        return TrainingOutput(
            Reconstruction(output, posterior),
            latents,
            self.vae.config.temporal_factor,
            decoded,
            self.project(latents),
            encoded,
            [] if self.projections is None else self.projections(features),
        )

    def encode(self, video: Tensor, recompute: bool) -> tuple[Tensor, Posterior, list[Tensor]]:
        """Returns the latents to decode, their posterior, and the features of a student."""
        if self.projections is None or self.half != "encoder":
            return *self.vae.encode_for_training(video, recompute=recompute), []
        vae = require_whole(self.vae)
        vae.check_clip(video)
        found = features_of(vae, "encoder", video.to(vae.encode_dtype), recompute=recompute)
        posterior = Posterior.from_moments(found.output)
        return posterior.sample().to(vae.decode_dtype), posterior, found.stages

    def decode_with_features(self, latents: Tensor, recompute: bool) -> tuple[Tensor, list[Tensor]]:
        """Returns the video of whole latents, and the features of a student."""
        if self.projections is None or self.half != "decoder":
            return self.decode(latents, recompute), []
        found = features_of(require_whole(self.vae), "decoder", latents, recompute=recompute)
        return found.output, found.stages

    def decode(self, latents: Tensor, recompute: bool) -> Tensor:
        """Returns the video of whole latents."""
        return self.vae.decode_step(latents, None, recompute=recompute)[0]

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


def require_whole(vae: Trained) -> WanVAE:
    """Returns a model whose two halves are the halves of a Wan VAE."""
    if not isinstance(vae, WanVAE):
        raise RuntimeError("the decoder is the one of a tiny autoencoder")
    return vae


def saved(vae: Trained) -> WanVAE | TinyVAE:
    """Returns the model that the files of a run hold: of a tiny student only the decoder."""
    return vae if isinstance(vae, WanVAE) else vae.tiny


def last_trained(vae: Trained) -> Tensor:
    """Returns what is trained of the last layer that is trained."""
    return last_trained_weight(vae) if isinstance(vae, WanVAE) else vae.last_weight
