"""Convolutions along time as products of matrices.

A clip with its channels innermost is a matrix, frames by channels, and a kernel a matrix for each
of its positions. PyTorch's own convolutions bring kernels and clips into another order first, which
takes as long as the products where clips are short.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wanvae.nn.memory import empty

# Below this many channels the additions of pairs cost what they save.
FEWEST_CHANNELS = 48
# And below this many products saved, of a frame and a position of the kernel, what adding kernels
# costs.
FEWEST_SAVED = 150
# Values of sums of frames that are in memory at once: 1 MB in float32.
STRIP = 2**18


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
    if suits_pairs(rows, kernel, length, stride, dilation):
        return in_pairs(rows, kernel, bias, length, stride, padding, dilation).mT
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


def suits_pairs(rows: Tensor, kernel: Tensor, length: int, stride: int, dilation: int) -> bool:
    """Whether ``in_pairs`` can compute a convolution, and faster."""
    out_channels, size, channels = kernel.shape
    taps = size // stride
    if taps not in (2, 3) or size % stride or (stride > 1 and dilation > 1):
        return False
    pairs = -(-length // (2 * dilation)) * dilation
    saved = len(rows) * stride * (taps * length - (taps + 1) * pairs)
    return min(channels, out_channels) >= FEWEST_CHANNELS and saved >= FEWEST_SAVED


def in_pairs(
    rows: Tensor,
    kernel: Tensor,
    bias: Tensor,
    length: int,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """A convolution of ``(B, T, C)`` by a kernel of two or three strides, ``(O, K, C)``.

    Winograd's F(2, 3), or F(2, 2) (Lavin and Gray, arXiv 1509.09308): two outputs, ``dilation``
    apart, by four products instead of six, or by three instead of four. The frames of a stride
    count as one frame of more channels.
    """
    batch, frames, channels = rows.shape
    wide = stride * channels
    pairs = -(-length // (2 * dilation))
    padded = empty_rows(rows, 2 * (pairs + 1) * dilation * stride, channels)
    padded[:, :padding], padded[:, padding + frames :] = 0, 0
    padded[:, padding : padding + frames] = rows[:, : padded.shape[1] - padding]
    blocks = padded.view(batch, pairs + 1, 2, dilation, wide)
    kernels = kernels_of_pairs(kernel.view(len(kernel), -1, wide))
    y = empty_rows(rows, pairs * 2 * dilation, len(kernel))
    made = y.view(batch, pairs, 2, dilation, len(kernel))
    for clips, some in strips(batch, pairs, dilation * wide):
        here, after = blocks[clips, :-1][:, some], blocks[clips, 1:][:, some]
        inputs = here[:, :, 0], here[:, :, 1], after[:, :, 0], after[:, :, 1]
        even, odd = products_of_pairs(inputs, kernels, bias)
        made[clips, some, 0], made[clips, some, 1] = even, odd
    return y[:, :length]


def empty_rows(like: Tensor, length: int, channels: int) -> Tensor:
    """Uninitialised ``(B, length, channels)``, for the clips ``like``."""
    return empty((len(like), channels, length), like.dtype, like.device).mT


def strips(clips: int, pairs: int, values: int) -> Iterator[tuple[slice, slice]]:
    """Cuts of clips and of their pairs, of so many values each, that are small together."""
    for clip in range(0, clips, some_clips := max(1, STRIP // (pairs * values))):
        for pair in range(0, pairs, some_pairs := max(1, STRIP // values)):
            yield slice(clip, clip + some_clips), slice(pair, pair + some_pairs)


def kernels_of_pairs(kernel: Tensor) -> list[Tensor]:
    """What inputs are multiplied with, ``(C, O)`` each, of a kernel ``(O, 2 or 3, C)``.

    Of a kernel of three, the second and the third are twice what the algorithm has.
    """
    if kernel.shape[1] == 2:
        first, last = kernel.unbind(1)
        return [first.T, (first + last).T, last.T]
    first, middle, last = kernel.unbind(1)
    ends = first + last
    return [first.T, (ends + middle).T, ends.sub_(middle).T, last.T]


def products_of_pairs(
    inputs: tuple[Tensor, ...], kernels: list[Tensor], bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The first and the second output of pairs, of four inputs of each, ``(..., C)``."""
    a, b, c, d = inputs
    sums = torch.empty_like(b, memory_format=torch.contiguous_format)
    rows = sums.flatten(0, -2)
    if len(kernels) == 3:
        first, both, last = kernels
        sums.copy_(b)
        even = torch.addmm(bias, rows, both)
        odd = even.clone()
        torch.sub(a, b, out=sums)
        even.addmm_(rows, first)
        torch.sub(c, b, out=sums)
        odd.addmm_(rows, last)
    else:
        first, total, difference, last = kernels
        torch.add(b, c, out=sums)
        even = torch.addmm(bias, rows, total, alpha=0.5)
        torch.sub(c, b, out=sums)
        change = rows @ difference
        odd = torch.sub(even, change, alpha=0.5)
        even.add_(change, alpha=0.5)
        torch.sub(a, c, out=sums)
        even.addmm_(rows, first)
        torch.sub(d, b, out=sums)
        odd.addmm_(rows, last)
    outputs = (*b.shape[:-1], -1)
    return even.view(outputs), odd.view(outputs)
