"""What the video VAE is trained to minimise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wanvae.model import Reconstruction


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms, and what they are summed over.

    Attributes:
        l1: weight of the absolute error of the reconstruction.
        l1_reduction: "sum" adds the error over C, T, H and W and averages over clips, as kl does;
            "mean" averages over all of them, so that the same weights suit any clip size.
        kl: weight of the KL divergence, always summed over C, T, H and W and averaged over clips.
    """

    l1: float = 1.0
    l1_reduction: Literal["sum", "mean"] = "sum"
    kl: float = 1e-6


def reconstruction_losses(
    output: Reconstruction, video: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """The weighted loss terms by name, float32 scalars; their sum is the loss.

    Args:
        output: of the model for ``video``.
        video: ``(B, C, T, H, W)`` in [-1, 1].
    """
    error = (output.video.float() - video.float()).abs().flatten(1)
    l1 = error.sum(1) if config.l1_reduction == "sum" else error.mean(1)
    return {"l1": config.l1 * l1.mean(), "kl": config.kl * output.posterior.kl().mean()}


def peak_signal_to_noise(output: Tensor, video: Tensor) -> Tensor:
    """PSNR in dB of a video against the original, both in [-1, 1]; a scalar."""
    error = (output.clamp(-1, 1).float() - video.float()).square().mean()
    return 10 * torch.log10(4 / error)
