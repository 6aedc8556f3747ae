"""3x3 convolutions of images ``(B, C, H, W)`` that are first doubled by repetition.

The convolutions pad by one. The output is ``(B, O, 2 * H, 2 * W)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.convolution import allocate_convolution, convolve_by_pytorch
from wanvae.nn.kernels.pool import empty


def convolve_doubled_by_pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Doubles the images and convolves them."""
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    return convolve_by_pytorch(doubled, weight, bias, (1, 1), (1, 1), (1, 1))


def allocate_doubled_by_pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Allocates on the meta device what ``convolve_doubled_by_pytorch`` takes on GPUs."""
    batch, channels, height, width = x.shape
    doubled = empty((batch, channels, 2 * height, 2 * width), x.dtype, x.device)
    return allocate_convolution(doubled, weight, bias, (1, 1), (1, 1), (1, 1))


def convolve_doubled_in_phases(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves the small images with 4/9 of the multiply-adds; no gradients.

    Every output pixel sees only 2x2 different inputs, in four arrangements (phases). Each phase is
    a convolution of the small images with a 2x2 kernel, which holds sums of weights. All tensors
    must have one dtype.
    """
    batch, _, height, width = x.shape
    y = empty((batch, weight.shape[0], 2 * height, 2 * width), x.dtype, x.device)
    for (row, column), kernel in make_phases(weight).items():
        phase = F.conv2d(x, kernel, bias, padding=1)
        y[:, :, row::2, column::2] = phase[:, :, row : row + height, column : column + width]
    return y


def allocate_doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Allocates on the meta device what ``convolve_doubled_in_phases`` takes on other devices."""
    batch, _, height, width = x.shape
    channels = weight.shape[:2]
    exact = torch.promote_types(weight.dtype, torch.float32)
    y = empty((batch, len(weight), 2 * height, 2 * width), x.dtype, x.device)
    rows = [empty((*channels, 2, 3), exact, x.device) for _ in range(2)]
    columns = [empty((*channels, 2, 2), exact, x.device) for _ in range(2)]
    # A phase is freed only after the next one is computed.
    phases = [empty((batch, len(weight), height + 1, width + 1), x.dtype, x.device) for _ in "ab"]
    del rows, columns, phases
    return y


def make_phases(weight: Tensor) -> dict[tuple[int, int], Tensor]:
    """Returns the 2x2 kernel of each phase, by the row and the column of its first output."""
    # Sums are rounded to half types once. The error is a fifth of the error of rounded weights.
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return {
        (row, column): kernel.to(weight.dtype, memory_format=torch.channels_last)
        for row, rows in enumerate(make_phase_weights(exact, dim=2))
        for column, kernel in enumerate(make_phase_weights(rows, dim=3))
    }


def make_phase_weights(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Returns kernels of two weights along ``dim``, for even and odd outputs, from three weights.

    Neighbors among doubled values are often the same value, so their weights add up.
    """
    first, middle, last = weight.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)
