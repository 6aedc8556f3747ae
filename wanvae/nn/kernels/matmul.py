"""1D convolutions as matrix products.

A clip with its channels innermost is a matrix, frames by channels. Each position (tap) of a kernel
is a matrix too. PyTorch's own convolutions first bring kernels and clips into another order. For
short clips this takes as long as the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wanvae.nn.kernels.winograd_1d import choose_scheme, convolve_by_scheme, empty_rows


def convolve_by_matmul(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int
) -> Tensor:
    """Returns what ``torch.nn.functional.conv1d`` returns, for one dtype; no gradients.

    The output has its channels innermost. ``x`` and ``weight`` are copied if they are in another
    order.
    """
    rows, kernel = x.mT.contiguous(), weight.mT.contiguous()
    if bias is None:
        bias = weight.new_zeros(len(weight))
    extent = (kernel.shape[1] - 1) * dilation + 1
    length = (rows.shape[1] + 2 * padding - extent) // stride + 1
    scheme = choose_scheme(rows, kernel, length, stride, dilation)
    if scheme:
        return convolve_by_scheme(scheme, rows, kernel, bias, length, stride, padding, dilation).mT
    return convolve_tap_by_tap(rows, kernel, bias, length, stride, padding, dilation).mT


def convolve_tap_by_tap(
    rows: Tensor,
    kernel: Tensor,
    bias: Tensor,
    length: int,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """Convolves ``(B, T, C)`` with ``(O, K, C)`` to ``(B, length, O)``, by a product for each tap.

    A tap is not applied where it sees padding, so nothing is padded.
    """
    frames, taps = rows.shape[1], kernel.shape[1]
    y = empty_rows(rows, length, len(kernel))
    if taps == stride == 1 and not padding:
        torch.addmm(bias, rows.flatten(0, 1), kernel[:, 0].T, out=y.flatten(0, 1))
        return y
    y.copy_(bias)
    for tap in range(taps):
        offset = tap * dilation - padding
        start = max(0, -(offset // stride))
        stop = min(length, (frames - 1 - offset) // stride + 1)
        if start < stop:
            first, last = start * stride + offset, (stop - 1) * stride + offset
            seen = rows[:, first : last + 1 : stride]
            y[:, start:stop].baddbmm_(seen, kernel[:, tap].T.expand(len(rows), -1, -1))
    return y
