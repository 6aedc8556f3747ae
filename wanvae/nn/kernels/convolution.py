"""Convolutions of every rank, as ``torch.nn.functional.conv3d`` defines them.

Every function takes an input ``(B, C, ...)`` with one to three more axes, a weight ``(O, C, ...)``,
a bias ``(O,)`` or None, and a stride, a padding and a dilation for each axis. The output has the
dtype of the weight, and under autocast autocast's dtype, whatever the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.matmul import convolve_by_matmul
from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.precision import output_dtype
from wanvae.nn.kernels.winograd import TIME, choose_winograd_axis, convolve_by_winograd

Convolve: TypeAlias = Callable[
    [Tensor, Tensor, "Tensor | None", Sequence[int], Sequence[int], Sequence[int]], Tensor
]

# By the number of axes of the input.
CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
# The dtypes that are exact enough to add inputs or weights before multiplying them.
EXACT_DTYPES = (torch.float32, torch.float64)


def convolve_by_pytorch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Computes PyTorch's convolution; a single frame is convolved in 2D.

    Under autocast the dtype of autocast is used, as PyTorch does, even if the CPU emulates it.
    """
    x = x.to(output_dtype(weight))
    if is_single_frame(x, weight, padding):
        image, kernel = x.squeeze(TIME), weight.squeeze(TIME)
        y = F.conv2d(image, kernel, bias, stride[1:], padding[1:], dilation[1:])
        return y.unsqueeze(TIME)
    return CONVOLUTIONS[x.dim()](x, weight, bias, stride, padding, dilation)


def convolve_by_onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolves as ``convolve_by_pytorch``, but never by PyTorch's own 3D kernel in float32.

    This is for CPUs. PyTorch chooses its own kernel for a batch of one with few channels, where it
    is 5 to 20 times slower than oneDNN. For half types PyTorch chooses oneDNN itself.
    ``torch.mkldnn_convolution`` ignores autocast, so it runs only where the output is float32.
    """
    if (
        x.dim() == 5
        and output_dtype(weight) == torch.float32
        and not is_single_frame(x, weight, padding)
    ):
        return torch.mkldnn_convolution(x.float(), weight, bias, padding, stride, dilation, 1)
    return convolve_by_pytorch(x, weight, bias, stride, padding, dilation)


convolve_on_cpu = (
    convolve_by_onednn if torch.backends.mkldnn.is_available() else convolve_by_pytorch
)


def allocate_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """On the meta device, memory for the output; many times faster than PyTorch's convolution."""
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sizes = (
        (size + 2 * pad - apart * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, apart in axes
    )
    return empty((len(x), len(weight), *sizes), weight.dtype, x.device)


def with_fewest_multiplications(convolve: Convolve) -> Convolve:
    """Returns ``convolve`` with faster algorithms for CPUs where they apply; no gradients.

    These are Winograd's algorithm in 3D and matrix products in 1D, both only in float32 and
    float64. All tensors must have one dtype.
    """

    def choose(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> Tensor:
        if x.dtype in EXACT_DTYPES:
            if x.dim() == 3:
                return convolve_by_matmul(x, weight, bias, stride[0], padding[0], dilation[0])
            axis = choose_winograd_axis(x.shape, weight.shape, stride, padding, dilation)
            if axis is not None:
                return convolve_by_winograd(choose, x, weight, bias, padding, axis)
        return convolve(x, weight, bias, stride, padding, dilation)

    return choose


def is_single_frame(x: Tensor, weight: Tensor, padding: Sequence[int]) -> bool:
    """Returns whether a 3D convolution has one frame and no time padding, so it is 2D."""
    return x.dim() == 5 and x.shape[TIME] == weight.shape[TIME] == 1 and not padding[0]
