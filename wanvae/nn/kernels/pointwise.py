"""Layers that treat each position alone, applied block by block.

A block is small enough for the cache, so a row of layers costs little more than one pass through
memory, and leaves no intermediate results of the size of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

# Values of a block: 512 KB in float32 for each thread of a CPU; elsewhere what bounds the memory.
CPU_BLOCK = 2**17
DEVICE_BLOCK = 2**26


def apply(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """``x`` through layers one after another."""
    for layer in layers:
        x = layer(x)
    return x


def apply_into(layers: Sequence[nn.Module], x: Tensor, out: Tensor) -> None:
    """Write ``x`` through layers to ``out``, of the same shape; no gradients."""
    if out.is_meta:
        return  # where only shapes are wanted, the blocks are not worth running
    for block in blocks(x):
        out[block].copy_(apply(layers, x[block]))


def blocks(x: Tensor) -> Iterator[tuple[slice, ...]]:
    """Cuts of ``(B, C, T, H, W)``, ``(B, C, H, W)`` or ``(B, C, T)`` along T and H (or T)."""
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
