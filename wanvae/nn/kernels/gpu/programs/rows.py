"""Tensors as rows: a position is a row of channels.

A program works on a block: some positions, all their channels. Its threads lie side by side along
channels, and so do the addresses that they read and write together.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# A thread reads and writes this many bytes at once.
VECTOR = 16
# How many groups of 32 threads work on a block, unless settings say otherwise.
WARPS = 4
# Values of a block that a thread holds, unless a row has more.
VALUES = 32
MOST_POSITIONS = 256
# The channels of a row are cut into chunks, because a block has a power of two of them. At most 32
# threads, one warp, hold a chunk. Sums over channels add chunk to chunk, and then the values of
# threads. So their order depends on the number of channels and the dtype alone.
SMALLEST_CHUNK = 16
MOST_CHUNKS = 16


class Block(NamedTuple):
    """The sizes of a block.

    Attributes:
        chunk: how many channels are read at once, a power of two.
        positions: how many positions a block has, a power of two.
    """

    chunk: int
    positions: int


class Strides(NamedTuple):
    """The strides of a tensor ``(B, C, T, H, W)``.

    Attributes:
        batch: of clips.
        channel: of channels.
        frame: of frames; None if all positions of a clip have the same distance, ``column``.
        line: of lines; None where ``frame`` is None.
        column: of positions in a line.
    """

    batch: int
    channel: int
    frame: int | None
    line: int | None
    column: int


@cache
def choose_block(channels: int, dtype: torch.dtype) -> Block:
    """Returns the sizes of a block for rows of some channels."""
    vector = VECTOR // dtype.itemsize
    chunk = choose_chunk(channels, 32 * vector)
    rows = WARPS * max(1, 32 * vector // max(chunk, vector))
    chunks = triton.cdiv(channels, chunk)
    several = max(1, VALUES // (min(chunk, vector) * chunks))
    return Block(chunk, min(MOST_POSITIONS, rows * floor_to_power_of_2(several)))


def choose_chunk(channels: int, largest: int) -> int:
    """Returns a power of two up to ``largest`` that divides ``channels``, unless it is too small.

    If it is too small, returns the power of two that wastes the fewest threads.
    """
    divisor = min(largest, channels & -channels)
    if divisor < SMALLEST_CHUNK or channels > MOST_CHUNKS * divisor:
        return min(largest, triton.next_power_of_2(channels))
    return divisor


def floor_to_power_of_2(number: int) -> int:
    """Returns the largest power of two up to a number of at least 1."""
    return 1 << (number.bit_length() - 1)


def as_video(x: Tensor) -> Tensor:
    """Returns ``(B, C, T, H, W)``: further axes of size 1 after the axes of ``x``."""
    return x[(..., *[None] * (5 - x.dim()))]


def strides_of(x: Tensor) -> Strides:
    """Returns the strides of ``(B, C, T, H, W)``."""
    batch, channel, *strides = x.stride()
    axes = [axis for axis in zip(strides, x.shape[2:], strict=True) if axis[1] > 1]
    column = apart = axes[-1][0] if axes else x.shape[1]
    for stride, size in reversed(axes):
        if stride != apart:
            return Strides(batch, channel, *strides)
        apart *= size
    return Strides(batch, channel, None, None, column)


def dense(parameter: Tensor | None) -> Tensor | None:
    """Returns a bias or a gamma without gaps between its values; None stays None."""
    return None if parameter is None else parameter.contiguous()


def empty_rows(x: Tensor, *shape: int) -> Tensor:
    """Returns an uninitialized tensor with the dtype of ``x``, channels (dim 1) innermost."""
    order = (0, *range(2, len(shape)), 1)
    return torch.empty_permuted(shape, order, dtype=x.dtype, device=x.device)


@triton.jit
def locate(start, lanes, height, width, frame, line, column):
    """Returns the offsets (int64) of the positions ``start + lanes`` of a clip.

    ``start`` is one int64, ``lanes`` a block of int32. ``frame``, ``line`` and ``column`` are
    strides, as ``Strides`` has them.
    """
    if frame is None:
        offsets = (start + lanes) * column
    else:
        # Only the one start is divided in 64 bits.
        x = (start % width).to(tl.int32) + lanes
        y = ((start // width) % height).to(tl.int32) + x // width
        t = start // width // height + y // height
        offsets = t * frame + (y % height).to(tl.int64) * line + (x % width).to(tl.int64) * column
    return offsets
