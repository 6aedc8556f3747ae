"""Convolutions of contiguous tensors, and in 3D by 2D convolutions of the frames: for Apple's GPUs.

Reports about PyTorch on MPS (2024 to 2026) say that ``conv2d`` reads weights that are not
contiguous, like slices of 3D weights, as if they were (pytorch/pytorch 192212), that ``conv3d``
gives wrong values for channels innermost (141471) or on some versions of macOS (197114), and that
it reaches a tenth of the speed of ``conv2d`` (192213). None of this applies here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.convolution import CONVOLUTIONS
from wanvae.nn.kernels.precision import convert, output_dtype


def convolve_by_frames(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolves as ``convolve_by_pytorch``. Gradients pass through it."""
    dtype = output_dtype(weight)
    x, weight, bias = x.to(dtype), weight.to(dtype), convert(bias, dtype)
    if x.dim() != 5:
        convolve = CONVOLUTIONS[x.dim()]
        return convolve(x.contiguous(), weight.contiguous(), bias, stride, padding, dilation)
    taps = weight.unbind(2)
    frames = x.transpose(1, 2).contiguous()
    if padding[0]:
        zeros = frames.new_zeros(len(x), padding[0], *frames.shape[2:])
        frames = torch.cat([zeros, frames, zeros], dim=1)
    count = (frames.shape[1] - dilation[0] * (len(taps) - 1) - 1) // stride[0] + 1
    y = None
    for tap, kernel in enumerate(taps):
        start = tap * dilation[0]
        seen = frames[:, start : start + stride[0] * (count - 1) + 1 : stride[0]]
        images, kernel = seen.flatten(0, 1).contiguous(), kernel.contiguous()
        part = F.conv2d(images, kernel, bias, stride[1:], padding[1:], dilation[1:])
        y, bias = part if y is None else y + part, None
    assert y is not None
    return y.unflatten(0, (x.shape[0], count)).transpose(1, 2)


def convolve_doubled_contiguously(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Doubles images by repetition and convolves them, padded by one. Gradients pass through it."""
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return convolve_by_frames(doubled, weight, bias, (1, 1), (1, 1), (1, 1))
