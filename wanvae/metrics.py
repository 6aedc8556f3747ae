"""How close a reconstruction is to the original."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

# Below this, SSIM's 11 pixel window does not fit.
SMALLEST_SSIM_SIZE = 11
# The same, where MS-SSIM has halved the sides four times.
SMALLEST_MS_SSIM_SIZE = 16 * SMALLEST_SSIM_SIZE


def psnr(images: Tensor, originals: Tensor) -> float:
    """PSNR in dB of images ``(N, C, H, W)`` in [-1, 1], of their mean squared error together."""
    return peak_signal_noise_ratio(images, originals, data_range=2.0).item()


def ssim(images: Tensor, originals: Tensor) -> float:
    """Mean SSIM of images ``(N, C, H, W)`` in [-1, 1]; NaN if they are too small for it."""
    if min(images.shape[2:]) < SMALLEST_SSIM_SIZE:
        return float("nan")
    return structural_similarity_index_measure(images, originals, data_range=2.0).item()


def ms_ssim(images: Tensor, originals: Tensor) -> float:
    """Mean MS-SSIM of images ``(N, C, H, W)`` in [-1, 1]; NaN if they are too small for it."""
    if min(images.shape[2:]) < SMALLEST_MS_SSIM_SIZE:
        return float("nan")
    return multiscale_structural_similarity_index_measure(images, originals, data_range=2.0).item()
