"""The losses of a video VAE and of a discriminator that play against each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanvae.engine.config import check
from wanvae.engine.processes import mean_over_processes
from wanvae.train.discriminator import Verdict

# Of Esser et al.: against a division by 0, and the largest weight.
SMALLEST_NORM = 1e-4
LARGEST_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """The discriminator and the weights of the losses from its verdict.

    Attributes:
        weight: weight of the verdict in the loss of the VAE: minus the mean of the logits over
            patches and clips. 0 trains without a discriminator.
        adaptive: multiply the weight by the ratio of the gradients of the other terms and of the
            verdict at the last layer of the decoder (VQGAN), so that it fits any reduction.
        start_step: first step with a discriminator. It does not learn before.
        r1: weight of the R1 penalty, half the squared gradient of the logits of originals: summed
            over C, T, H and W, divided by the number of patches, averaged over clips.
        lecam: weight of the LeCam penalty: the squared distances of the logits of originals from
            the moving average of the logits of reconstructions, and the other way round, each
            averaged over patches and clips.
        dim: channels of the discriminator's first layer.
        layers: layers of the discriminator that halve space; a logit sees 12, 26 or 54 pixels a
            side with 1, 2 or 3 of them.
        learning_rate: of the discriminator.
    """

    weight: float = 0.0
    adaptive: bool = True
    start_step: int = 0
    r1: float = 0.0
    lecam: float = 0.0
    dim: int = 64
    layers: int = 3
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("weight", "start_step", "r1", "lecam"):
            check(getattr(self, name) >= 0, f"gan.{name}", getattr(self, name), "at least 0")
        for name in ("dim", "layers"):
            check(getattr(self, name) >= 1, f"gan.{name}", getattr(self, name), "at least 1")
        check(self.learning_rate > 0, "gan.learning_rate", self.learning_rate, "above 0")

    def plays(self, step: int) -> bool:
        """Whether there is a discriminator in this step, counted from 0."""
        return self.weight > 0 and step >= self.start_step


def generator_loss(discriminator: nn.Module, video: Tensor) -> Tensor:
    """Minus the mean logit of a reconstruction ``(B, C, T, H, W)``, over patches and clips.

    The discriminator gets no gradients. The gradient of the video is computed at once and stands
    for the discriminator. So the memory of the discriminator is free again before the backward pass
    of the VAE, and several processes do not wait for gradients that nobody needs.
    """
    fake = video.detach().float().requires_grad_()
    loss = -discriminator(fake).fake.float().mean()
    (gradient,) = torch.autograd.grad(loss, fake)
    stand_in = (video.float() * gradient).sum()
    return loss.detach() + (stand_in - stand_in.detach())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The norm of the gradient of one loss over the norm of the other's, at ``last_layer``.

    From VQGAN (Esser et al., arXiv 2012.09841): a constant, at most 1e4. The gradients are averaged
    over the batches of all processes.
    """
    reconstruction_norm, adversarial_norm = (
        mean_over_processes(
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()
        ).norm()
        for loss in (reconstruction, adversarial)
    )
    return (reconstruction_norm / (adversarial_norm + SMALLEST_NORM)).clamp(max=LARGEST_WEIGHT)


def hinge_loss(verdict: Verdict) -> Tensor:
    """Half of how far logits of originals are below 1, and logits of reconstructions above -1.

    Each is averaged over patches and clips.
    """
    real, fake = verdict.real.float(), verdict.fake.float()
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def r1_penalty(verdict: Verdict, real: Tensor) -> Tensor:
    """Half the squared gradient of the logits of originals (Mescheder et al., arXiv 1801.04406).

    The paper has one logit for each clip. With several, the gradient of their sum is divided by
    their number. For patches that do not overlap this is the mean of their penalties, and it does
    not grow with the size of the clip.

    Args:
        real: the originals that were judged, which must require gradients.
    """
    logits = verdict.real.float()
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean() / logits[0].numel()


def lecam_penalty(verdict: Verdict) -> Tensor:
    """Squared distances of the logits of each side from the average logit of the other side.

    From Tseng et al., arXiv 2104.03310; each is averaged over patches and clips.
    """
    real = (verdict.real.float() - verdict.fake_average).square().mean()
    return real + (verdict.fake.float() - verdict.real_average).square().mean()
