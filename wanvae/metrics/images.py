"""PSNR, SSIM and MS-SSIM of images.

SSIM follows Wang et al. 2004 and scikit-image: its windows lie inside the image. The SSIM of
torchmetrics also has windows across the edges, and takes several times as long on a CPU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Images have values from -1 to 1.
RANGE = 2.0
# Side of a window in pixels, and the standard deviation of its Gaussian weights.
WINDOW, SIGMA = 11, 1.5
GAUSSIAN = [math.exp(-((place - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for place in range(WINDOW)]
WEIGHTS = [value / sum(GAUSSIAN) for value in GAUSSIAN]
# Rows of windows that a CPU compares at a time, so that they stay in its cache.
ROWS = 16
# Constants that keep the quotients of flat windows finite.
LUMINANCE, CONTRAST = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
# The smallest sides that hold a window: of SSIM, and of the coarsest scale of MS-SSIM.
SMALLEST_SSIM_SIZE = WINDOW
SMALLEST_MS_SSIM_SIZE = 16 * WINDOW
# Weights of the scales of MS-SSIM, each half as large as the one before (Wang et al. 2003).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(images: Tensor, originals: Tensor) -> float:
    """Returns PSNR in dB of images ``(N, C, H, W)`` in [-1, 1], from their common squared error."""
    return (10 * torch.log10(RANGE**2 / F.mse_loss(images, originals))).item()


def ssim(images: Tensor, originals: Tensor) -> float:
    """Returns mean SSIM of images ``(N, C, H, W)`` in [-1, 1]; NaN for sides under 11."""
    if min(images.shape[2:]) < SMALLEST_SSIM_SIZE:
        return math.nan
    height = images.shape[2] - WINDOW + 1
    rows = ROWS if images.device.type == "cpu" else height
    total = images.new_zeros((), dtype=torch.float64)
    for row in range(0, height, rows):
        part = slice(row, min(row + rows, height) + WINDOW - 1)
        luminance, contrast = compare_windows(images[:, :, part], originals[:, :, part])
        total += (luminance * contrast).sum(dtype=torch.float64)
    return (total / images[:, :, WINDOW - 1 :, WINDOW - 1 :].numel()).item()


def ms_ssim(images: Tensor, originals: Tensor) -> float:
    """Returns mean MS-SSIM of images ``(N, C, H, W)`` in [-1, 1]; NaN for sides under 176."""
    if min(images.shape[2:]) < SMALLEST_MS_SSIM_SIZE:
        return math.nan
    product = images.new_ones(len(images))
    for scale, weight in enumerate(SCALES, 1):
        luminance, similarity = compare_windows(images, originals)
        if scale == len(SCALES):
            similarity = luminance * similarity
        # It is negative for opposite images, and a negative number has no real power.
        product = product * similarity.mean((1, 2, 3)).clamp(min=0) ** weight
        images, originals = F.avg_pool2d(images, 2), F.avg_pool2d(originals, 2)
    return product.mean().item()


def compare_windows(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two factors of SSIM in each window, ``(N, C, H - 10, W - 10)``.

    The first factor compares luminance, the second contrast and structure.
    """
    products = images * images, originals * originals, images * originals
    means = average_windows(torch.cat([images, originals, *products])).chunk(5)
    image, original, square, original_square, product = means
    mean_squares, mean_product = image**2 + original**2, image * original
    luminance = (2 * mean_product + LUMINANCE) / (mean_squares + LUMINANCE)
    covariance, variances = product - mean_product, square + original_square - mean_squares
    return luminance, (2 * covariance + CONTRAST) / (variances + CONTRAST)


def average_windows(x: Tensor) -> Tensor:
    """Returns the weighted mean of ``(N, C, H, W)`` in each window, ``(N, C, H - 10, W - 10)``.

    This is not a convolution, because GPUs round the inputs of convolutions, and variances are
    small differences of large numbers.
    """
    for axis in (2, 3):
        count = x.shape[axis] - WINDOW + 1
        mean = torch.zeros_like(x.narrow(axis, 0, count))
        for place, weight in enumerate(WEIGHTS):
            mean.add_(x.narrow(axis, place, count), alpha=weight)
        x = mean
    return x
