"""Layers that treat each position alone, applied block by block.

A block is small enough for the cache. So several layers cost little more than one pass through
memory, and no intermediate result has the size of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

# A layer, or anything else that treats each position alone.
PointwiseFunction: TypeAlias = "Callable[[Tensor], Tensor]"

# Values of a block: 512 KB in float32 per CPU thread; on other devices this only limits memory.
CPU_BLOCK = 2**17
DEVICE_BLOCK = 2**26


def apply(layers: Sequence[PointwiseFunction], x: Tensor) -> Tensor:
    """Applies layers to ``x``, one after another."""
    for layer in layers:
        x = layer(x)
    return x


def apply_before(x: Tensor, layers: Sequence[PointwiseFunction]) -> None:
    """Says that no convolution of ``x`` applies the layers itself."""


def apply_into(layers: Sequence[PointwiseFunction], x: Tensor, out: Tensor) -> None:
    """Applies layers to ``x`` and writes to ``out``, which has the same shape; no gradients."""
    for block in cut_into_blocks(x):
        out[block].copy_(apply(layers, x[block]))


def cut_into_blocks(x: Tensor) -> Iterator[tuple[slice, ...]]:
    """Yields blocks of ``(B, C, T, H, W)`` along T and H, or of 3D and 4D tensors along dim 2."""
    limit = CPU_BLOCK * torch.get_num_threads() if x.device.type == "cpu" else DEVICE_BLOCK
    everything = slice(None)
    if x.dim() == 5:
        length = max(1, limit * x.shape[2] // x.numel())
        rows = max(1, limit * x.shape[2] * x.shape[3] // x.numel())
        for start in range(0, x.shape[2], length):
            frames = slice(start, start + length)
            for row in range(0, x.shape[3], rows):
                yield everything, everything, frames, slice(row, row + rows)
    else:
        length = max(1, limit * x.shape[2] // x.numel())
        for start in range(0, x.shape[2], length):
            yield everything, everything, slice(start, start + length)


@dataclass(frozen=True)
class AddBias:
    """Adds a bias ``(C,)`` to the output of a convolution, in place; no gradients.

    A convolution leaves its bias to this function where the layers after it add the bias on their
    way.
    """

    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.add_(self.bias.view(-1, *[1] * (x.dim() - 2)))


def add(y: Tensor, pointwise: Sequence[PointwiseFunction], shortcut: Tensor) -> Tensor:
    """Returns ``pointwise(y) + shortcut``."""
    return apply(pointwise, y) + shortcut


def add_in_place(y: Tensor, pointwise: Sequence[PointwiseFunction], shortcut: Tensor) -> Tensor:
    """Returns what ``add`` does, written to ``y`` if it has the dtype of the sum; no gradients."""
    y = apply(pointwise, y)
    return y.add_(shortcut) if torch.result_type(y, shortcut) == y.dtype else y + shortcut
