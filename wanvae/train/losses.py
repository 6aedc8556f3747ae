"""The losses that the video VAE and its discriminator minimize.

All terms are means over clips. So the mean of the gradients of several processes, each with as many
clips, is the gradient of all clips. All terms are computed in float32, in whatever dtype the model
computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wanvae.engine.config import check, check_option
from wanvae.errors import UserError
from wanvae.metrics.lpips import Lpips, LpipsNetwork
from wanvae.model import Reconstruction
from wanvae.train.adversarial import (
    GanConfig,
    adaptive_weight,
    generator_loss,
    hinge_loss,
    lecam_penalty,
    r1_penalty,
)
from wanvae.train.frozen_features import FrozenFeatures
from wanvae.train.regularizers import (
    AlignmentConfig,
    ChannelDropoutConfig,
    EquivarianceConfig,
    alignment_loss,
    similarity,
)
from wanvae.train.trainee import TrainingOutput

PixelError = Literal["l1", "charbonnier"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms, and what they are summed over.

    Attributes:
        l1: weight of the error of each pixel and channel, of the kind ``pixel_error``.
        l1_reduction: "sum" adds the error over C, T, H and W and averages over clips, as kl does;
            "mean" averages over all of them, so that the same weights suit any clip size.
        pixel_error: "l1" is the absolute error; "charbonnier", sqrt(error**2 + epsilon**2), is
            nearly that and smooth at 0.
        charbonnier_epsilon: the error, in units of a video in [-1, 1], below which "charbonnier"
            is about a square.
        kl: weight of the KL divergence, always summed over C, T, H and W and averaged over clips.
        lpips: weight of LPIPS, averaged over frames and clips. Its network needs torchvision and is
            downloaded.
        lpips_network: the network that LPIPS compares features of.
        lpips_weights: file of torchvision's weights of that network, for use without internet.
        gan: the discriminator.
        equivariance: latents that are scaled or turned as the video is.
        channel_dropout: latents with channels missing.
        alignment: latents that are alike where the features of a frozen network are.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"lpips_weights"})

    l1: float = 1.0
    l1_reduction: Reduction = "sum"
    pixel_error: PixelError = "l1"
    charbonnier_epsilon: float = 1e-3
    kl: float = 1e-6
    lpips: float = 0.0
    lpips_network: LpipsNetwork = "vgg"
    lpips_weights: str | None = None
    gan: GanConfig = field(default_factory=GanConfig)
    equivariance: EquivarianceConfig = field(default_factory=EquivarianceConfig)
    channel_dropout: ChannelDropoutConfig = field(default_factory=ChannelDropoutConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    def __post_init__(self) -> None:
        for name in ("l1", "kl", "lpips"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        epsilon = self.charbonnier_epsilon
        check(epsilon > 0, "charbonnier_epsilon", epsilon, "above 0")
        for name, kinds in (
            ("l1_reduction", Reduction),
            ("pixel_error", PixelError),
            ("lpips_network", LpipsNetwork),
        ):
            check_option(name, getattr(self, name), kinds)

    @property
    def compares(self) -> bool:
        """Whether a term says how the output should be. An adaptive "gan" is relative to others."""
        alone = self.gan.weight > 0 and not self.gan.adaptive
        return self.l1 > 0 or self.lpips > 0 or alone


class VideoLosses:
    """The loss terms that a config asks for, of the VAE and of its discriminator.

    Args:
        device: where the networks of LPIPS and of the alignment compute, if these have a weight.

    Attributes:
        lpips: the network of LPIPS; None without a weight.
        features: the network of the alignment; None without a weight.

    Raises:
        UserError: the weights of a network are not there, or cannot be downloaded.
    """

    def __init__(self, config: LossConfig, device: torch.device | str) -> None:
        self.config = config
        self.lpips = None
        if config.lpips > 0:
            self.lpips = Lpips(config.lpips_network, config.lpips_weights).to(device)
        self.features = None
        if config.alignment.weight > 0 and config.alignment.network is not None:
            self.features = FrozenFeatures(config.alignment.network).to(device)

    def generator(
        self,
        output: Reconstruction,
        video: Tensor,
        *,
        discriminator: nn.Module | None,
        last_layer: Tensor,
        step: int,
    ) -> dict[str, Tensor]:
        """The weighted terms of the VAE by name, float32 scalars; their sum is its loss.

        "l1" or "charbonnier", and "kl"; "lpips" and "gan" if they have a weight, "gan" from its
        first step on.

        Args:
            output: of the model for ``video``.
            video: ``(B, C, T, H, W)`` in [-1, 1].
            discriminator: as PatchDiscriminator3D, perhaps wrapped; None is for steps without. Its
                parameters get no gradients.
            last_layer: what is trained of the last layer, for an adaptive weight of "gan".
            step: steps done before this one.

        Raises:
            UserError: there is no discriminator for "gan", or frames are too small for "lpips".
        """
        config = self.config
        terms = self.compare(output.video, video)
        terms["kl"] = config.kl * output.posterior.kl().float().mean()
        if config.gan.plays(step):
            if discriminator is None:
                raise UserError(
                    f"gan.weight is {config.gan.weight} and there is no discriminator: set it to 0"
                )
            adversarial = generator_loss(discriminator, output.video)
            if config.gan.adaptive:
                adversarial = adaptive_weight(total(terms), adversarial, last_layer) * adversarial
            terms["gan"] = config.gan.weight * adversarial
        return terms

    def compare(self, output: Tensor, video: Tensor) -> dict[str, Tensor]:
        """The weighted terms by name, float32 scalars, that compare a video with what it should be.

        "l1" or "charbonnier"; and "lpips" if it has a weight.
        """
        config = self.config
        errors = pixel_errors(output, video, config).flatten(1)
        error = errors.sum(1) if config.l1_reduction == "sum" else errors.mean(1)
        terms = {config.pixel_error: config.l1 * error.mean()}
        if self.lpips is not None:
            terms["lpips"] = config.lpips * self.lpips(output, video).mean()
        return terms

    def regularizers(
        self, output: TrainingOutput, video: Tensor, *, last_layer: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms of the regularizers by name, float32 scalars, and figures to report.

        "equivariance", "channel_dropout" and "alignment", each if it has a weight. The figure is
        the mean cosine "similarity" of projected latents and features, with "alignment".

        Args:
            output: of the model for ``video``.
            video: ``(B, C, T, H, W)`` in [-1, 1].
            last_layer: the weight of the encoder's last layer, for an adaptive weight of
                "alignment".
        """
        weights = {
            "equivariance": self.config.equivariance.weight,
            "channel_dropout": self.config.channel_dropout.weight,
        }
        terms = {
            name: weights[name] * total(self.compare(decoded.video, decoded.target))
            for name, decoded in output.decoded.items()
        }
        if self.features is None or output.projected is None:
            return terms, {}
        config = self.config.alignment
        frames = video[:, :, :: output.frames_per_latent]
        height, width = output.latents.shape[3:]
        features = self.features(frames, height, width)
        alignment = alignment_loss(output.latents, output.projected, features, config)
        if config.adaptive:
            reconstruction = total(self.compare(output.reconstruction.video, video))
            alignment = adaptive_weight(reconstruction, alignment, last_layer) * alignment
        terms["alignment"] = config.weight * alignment
        mean = similarity(output.projected.detach(), features).mean()
        return terms, {"similarity": mean}

    def discriminator(
        self, discriminator: nn.Module, fake: Tensor, video: Tensor, step: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms of the discriminator, float32 scalars to sum, and figures to report.

        The terms are "hinge", and "r1" and "lecam" if they have a weight. The figures are the mean
        logits "real_logit" and "fake_logit". Before the first step of the discriminator both are
        empty.

        Args:
            discriminator: as PatchDiscriminator3D, perhaps wrapped; called once.
            fake: the output for ``video``; no gradients reach it.
            video: ``(B, C, T, H, W)`` in [-1, 1].
            step: steps done before this one.
        """
        config = self.config.gan
        if not config.plays(step):
            return {}, {}
        real = video.detach().float().requires_grad_(config.r1 > 0)
        verdict = discriminator(fake.detach().float(), real)
        terms = {"hinge": hinge_loss(verdict)}
        if config.r1 > 0:
            terms["r1"] = config.r1 * r1_penalty(verdict, real)
        if config.lecam > 0:
            terms["lecam"] = config.lecam * lecam_penalty(verdict)
        figures = {
            "real_logit": verdict.real.detach().float().mean(),
            "fake_logit": verdict.fake.detach().float().mean(),
        }
        return terms, figures


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of terms, a scalar."""
    return torch.stack([*terms.values()]).sum()


def pixel_errors(output: Tensor, video: Tensor, config: LossConfig) -> Tensor:
    """The error of each pixel and channel, in float32, in the shape of both videos."""
    error = output.float() - video.float()
    if config.pixel_error == "l1":
        return error.abs()
    return (error.square() + config.charbonnier_epsilon**2).sqrt()


def peak_signal_to_noise(output: Tensor, video: Tensor) -> Tensor:
    """PSNR in dB of clips ``(B, C, T, H, W)`` in [-1, 1] against the originals; a scalar.

    It is the mean over the clips, so that it does not depend on how clips are put into batches.
    """
    error = (output.clamp(-1, 1).float() - video.float()).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error)).mean()
