"""How close a reconstruction is to the original.

SSIM as Wang et al. 2004 define it and scikit-image computes it, over windows that lie in the image;
that of torchmetrics has windows across its edges too, and takes several times as long on a CPU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

# Of the values of images: from -1 to 1.
RANGE = 2.0
# Pixels across a window, which weighs them by a Gaussian of so many.
WINDOW, SIGMA = 11, 1.5
GAUSSIAN = [math.exp(-((place - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for place in range(WINDOW)]
WEIGHTS = [value / sum(GAUSSIAN) for value in GAUSSIAN]
# What keep the quotients of flat windows finite.
LUMINANCE, CONTRAST = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
# Below these a window does not fit: that of SSIM, and that of the coarsest scale of MS-SSIM.
SMALLEST_SSIM_SIZE = WINDOW
SMALLEST_MS_SSIM_SIZE = 16 * WINDOW
# Of the scales of MS-SSIM, each half as large as the one before (Wang et al. 2003).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(images: Tensor, originals: Tensor) -> float:
    """PSNR in dB of images ``(N, C, H, W)`` in [-1, 1], of their mean squared error together."""
    return peak_signal_noise_ratio(images, originals, data_range=RANGE).item()


def ssim(images: Tensor, originals: Tensor) -> float:
    """Mean SSIM of images ``(N, C, H, W)`` in [-1, 1]; NaN if they are too small for it."""
    if min(images.shape[2:]) < SMALLEST_SSIM_SIZE:
        return math.nan
    luminance, contrast = similarities(images, originals)
    return (luminance * contrast).mean().item()


def ms_ssim(images: Tensor, originals: Tensor) -> float:
    """Mean MS-SSIM of images ``(N, C, H, W)`` in [-1, 1]; NaN if they are too small for it."""
    if min(images.shape[2:]) < SMALLEST_MS_SSIM_SIZE:
        return math.nan
    product = images.new_ones(len(images))
    for scale, weight in enumerate(SCALES, 1):
        luminance, similarity = similarities(images, originals)
        if scale == len(SCALES):
            similarity = luminance * similarity
        # Of images that are opposites it is negative, which has no power.
        product = product * similarity.mean((1, 2, 3)).clamp(min=0) ** weight
        images, originals = F.avg_pool2d(images, 2), F.avg_pool2d(originals, 2)
    return product.mean().item()


def similarities(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of SSIM in each window, ``(N, C, H - 10, W - 10)``: luminance, and all else."""
    products = images * images, originals * originals, images * originals
    means = windowed(torch.cat([images, originals, *products])).chunk(5)
    image, original, square, original_square, product = means
    mean_squares, mean_product = image**2 + original**2, image * original
    luminance = (2 * mean_product + LUMINANCE) / (mean_squares + LUMINANCE)
    covariance, variances = product - mean_product, square + original_square - mean_squares
    return luminance, (2 * covariance + CONTRAST) / (variances + CONTRAST)


def windowed(x: Tensor) -> Tensor:
    """The weighted mean of ``(N, C, H, W)`` in each window, ``(N, C, H - 10, W - 10)``.

    No convolution: GPUs round what goes into one, and variances are small differences.
    """
    for axis in (2, 3):
        count = x.shape[axis] - WINDOW + 1
        mean = torch.zeros_like(x.narrow(axis, 0, count))
        for place, weight in enumerate(WEIGHTS):
            mean.add_(x.narrow(axis, place, count), alpha=weight)
        x = mean
    return x
