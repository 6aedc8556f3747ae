"""Convolutions along time as products of matrices.

A clip with its channels innermost is a matrix, frames by channels, and a kernel a matrix for each
of its positions. PyTorch's own convolutions bring kernels and clips into another order first, which
takes as long as the products where clips are short.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wanvae.nn.kernels.winograd_time import best_scheme, convolve_by, empty_rows


def convolve_time(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    """What ``torch.nn.functional.conv1d`` gives, of tensors of one dtype; no gradients.

    It is computed, and given, with channels innermost; ``x`` and ``weight`` are copied if they are
    in another order.
    """
    rows, kernel = x.mT.contiguous(), weight.mT.contiguous()
    reach = (kernel.shape[1] - 1) * dilation + 1
    length = (rows.shape[1] + 2 * padding - reach) // stride + 1
    scheme = best_scheme(rows, kernel, length, stride, dilation)
    if scheme:
        return convolve_by(scheme, rows, kernel, bias, length, stride, padding, dilation).mT
    return position_by_position(rows, kernel, bias, length, stride, padding, dilation).mT


def position_by_position(
    rows: Tensor,
    kernel: Tensor,
    bias: Tensor,
    length: int,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """A convolution of ``(B, T, C)`` by ``(O, K, C)``, a product for each position of the kernel.

    Outputs that see padding there are left out, so that nothing is padded.
    """
    frames, size = rows.shape[1], kernel.shape[1]
    y = empty_rows(rows, length, len(kernel))
    if size == stride == 1 and not padding:
        torch.addmm(bias, rows.flatten(0, 1), kernel[:, 0].T, out=y.flatten(0, 1))
        return y
    y.copy_(bias)
    for position in range(size):
        offset = position * dilation - padding
        start = max(0, -(offset // stride))
        stop = min(length, (frames - 1 - offset) // stride + 1)
        if start < stop:
            first, last = start * stride + offset, (stop - 1) * stride + offset
            seen = rows[:, first : last + 1 : stride]
            y[:, start:stop].baddbmm_(seen, kernel[:, position].T.expand(len(rows), -1, -1))
    return y
