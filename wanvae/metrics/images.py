"""PSNR, SSIM and MS-SSIM of images.

The SSIM of torchmetrics also has windows across the edges, and takes several times as long on a
CPU. On a CPU, PSNR and SSIM are computed in the thread that calls, without the threads of PyTorch:
threads of several callers that wait for each other actively take the cores of a model beside them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.metrics.windows import RANGE, WINDOW, similarity

# The smallest sides that hold a window: of SSIM, and of the coarsest scale of MS-SSIM.
SMALLEST_SSIM_SIZE = WINDOW
SMALLEST_MS_SSIM_SIZE = 16 * WINDOW
# Weights of the scales of MS-SSIM, each half as large as the one before (Wang et al. 2003).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# The values that a CPU compares at a time, so that they stay in its cache.
_BLOCK = 2**16


def psnr(images: Tensor, originals: Tensor) -> float:
    """Returns PSNR in dB of images or clips ``(..., H, W)`` in [-1, 1], from their common error."""
    return (10 * torch.log10(RANGE**2 / _squared_error(images, originals))).item()


def ssim(images: Tensor, originals: Tensor) -> float:
    """Returns mean SSIM of images ``(N, C, H, W)`` in [-1, 1]; NaN for sides under 11."""
    if min(images.shape[2:]) < SMALLEST_SSIM_SIZE:
        return math.nan
    return similarity(images, originals)[0].mean().item()


def ms_ssim(images: Tensor, originals: Tensor) -> float:
    """Returns mean MS-SSIM of images ``(N, C, H, W)`` in [-1, 1]; NaN for sides under 176."""
    if min(images.shape[2:]) < SMALLEST_MS_SSIM_SIZE:
        return math.nan
    product = torch.ones(len(images), dtype=torch.float64)
    for scale, weight in enumerate(SCALES, 1):
        whole, contrast = similarity(images, originals)
        # It is negative for opposite images, and a negative number has no real power.
        product *= (whole if scale == len(SCALES) else contrast).clamp(min=0) ** weight
        images, originals = F.avg_pool2d(images, 2), F.avg_pool2d(originals, 2)
    return product.mean().item()


def _squared_error(images: Tensor, originals: Tensor) -> Tensor:
    """Returns the mean squared error of images or clips ``(..., H, W)``, a number."""
    if images.device.type != "cpu":
        return F.mse_loss(images, originals)
    arrays = [x.detach().float().numpy() for x in (images, originals)]
    *others, height, width = images.shape
    step = max(1, _BLOCK // width)
    error = np.empty((min(step, height), width), np.float32)
    total = 0.0
    for place in np.ndindex(*others):
        for row in range(0, height, step):
            image, original = (array[place][row : row + step] for array in arrays)
            part = np.subtract(image, original, out=error[: len(image)])
            part *= part
            total += float(part.sum())
    return torch.tensor(total / images.numel(), dtype=torch.float64)
