"""1D convolutions with fewer products, by Winograd's algorithms (Lavin and Gray, arXiv 1509.09308).

A few neighboring outputs are computed together. Sums and differences of their inputs are multiplied
by sums and differences of the positions (taps) of the kernel, and the products are added up. This
needs ``outputs + taps - 1`` products instead of ``outputs * taps``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wanvae.nn.kernels.pool import empty

# With fewer channels, the additions cost as much as they save.
FEWEST_CHANNELS = 48
# Values of a sum of frames in memory at once: 2 MB in float32.
STRIP = 2**19

Inputs = tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Scheme:
    """A way to compute a few outputs from a few inputs: Winograd's F(outputs, taps).

    Attributes:
        outputs: how many outputs are computed together.
        taps: how many positions the kernel has.
        cost: the cost of adding kernels, in products of a frame and a tap.
        transform: turns a kernel ``(O, taps, C)`` into the factors of the inputs, ``(C, O)`` each.
        write: takes inputs ``(..., C)``, these factors and a bias, and writes ``outputs`` tensors
            ``(..., O)``.
    """

    outputs: int
    taps: int
    cost: int
    transform: Callable[[Tensor], list[Tensor]]
    write: Callable[[Inputs, list[Tensor], Tensor, Outputs], None]

    def saved(self, clips: int, length: int, dilation: int) -> int:
        """Returns how many products of a frame and a tap the scheme saves, minus ``cost``."""
        tiles = -(-length // (self.outputs * dilation)) * dilation
        return clips * (self.taps * length - (self.outputs + self.taps - 1) * tiles) - self.cost


def choose_scheme(
    rows: Tensor, kernel: Tensor, length: int, stride: int, dilation: int
) -> Scheme | None:
    """Returns the fastest scheme for ``(B, T, C)`` and ``(O, K, C)``; None if none is faster."""
    out_channels, size, channels = kernel.shape
    if min(channels, out_channels) < FEWEST_CHANNELS or (stride > 1 and dilation > 1):
        return None
    saved = {
        scheme: scheme.saved(len(rows) * stride, length, dilation)
        for scheme in SCHEMES
        if scheme.taps * stride == size
    }
    best = max(saved, key=saved.__getitem__, default=None)
    return best if best is not None and saved[best] >= 0 else None


def convolve_by_scheme(
    scheme: Scheme,
    rows: Tensor,
    kernel: Tensor,
    bias: Tensor,
    length: int,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """Convolves ``(B, T, C)`` with a kernel ``(O, K, C)``, where K is ``taps * stride``.

    Outputs that are computed together are ``dilation`` frames apart. The ``stride`` frames of a
    step count as one frame with more channels.
    """
    batch, frames, channels = rows.shape
    wide = stride * channels
    tiles = -(-length // (scheme.outputs * dilation))
    padded = empty_rows(rows, scheme.outputs * (tiles + 1) * dilation * stride, channels)
    padded[:, :padding], padded[:, padding + frames :] = 0, 0
    padded[:, padding : padding + frames] = rows[:, : padded.shape[1] - padding]
    blocks = padded.view(batch, tiles + 1, scheme.outputs, dilation, wide)
    factors = scheme.transform(kernel.view(len(kernel), -1, wide))
    y = empty_rows(rows, tiles * scheme.outputs * dilation, len(kernel))
    outputs = y.view(batch, tiles, scheme.outputs, dilation, len(kernel))
    for clips, some in cut_into_strips(batch, tiles, dilation * wide):
        here, after = blocks[clips, :-1][:, some], blocks[clips, 1:][:, some]
        inputs = (*here.unbind(2), *after[:, :, : scheme.taps - 1].unbind(2))
        scheme.write(inputs, factors, bias, outputs[clips, some].unbind(2))
    return y[:, :length]


def empty_rows(like: Tensor, length: int, channels: int) -> Tensor:
    """Returns an uninitialized ``(B, length, channels)`` for the clips ``like``, ``(B, ...)``."""
    return empty((len(like), channels, length), like.dtype, like.device).mT


def cut_into_strips(clips: int, tiles: int, values: int) -> Iterator[tuple[slice, slice]]:
    """Yields small slices of clips and of their tiles; a tile has ``values`` values."""
    for clip in range(0, clips, some_clips := max(1, STRIP // (tiles * values))):
        for tile in range(0, tiles, some_tiles := max(1, STRIP // values)):
            yield slice(clip, clip + some_clips), slice(tile, tile + some_tiles)


def transform_two_by_two(kernel: Tensor) -> list[Tensor]:
    """Transforms a kernel for F(2, 2)."""
    first, last = kernel.unbind(1)
    return [first.T, (first + last).T, last.T]


def write_two_by_two(inputs: Inputs, factors: list[Tensor], bias: Tensor, outputs: Outputs) -> None:
    """Writes the outputs of F(2, 2)."""
    a, b, c = inputs
    first, both, last = factors
    sums = torch.empty_like(b, memory_format=torch.contiguous_format)
    rows, shape = sums.flatten(0, -2), outputs[0].shape
    sums.copy_(b)
    middle = torch.addmm(bias, rows, both)
    torch.sub(a, b, out=sums)
    torch.add(middle.view(shape), (rows @ first).view(shape), out=outputs[0])
    torch.sub(c, b, out=sums)
    torch.add(middle.view(shape), (rows @ last).view(shape), out=outputs[1])


def transform_two_by_three(kernel: Tensor) -> list[Tensor]:
    """Transforms a kernel for F(2, 3), with the second and the third factor doubled."""
    first, middle, last = kernel.unbind(1)
    ends = first + last
    return [first.T, (ends + middle).T, ends.sub_(middle).T, last.T]


def write_two_by_three(
    inputs: Inputs, factors: list[Tensor], bias: Tensor, outputs: Outputs
) -> None:
    """Writes the outputs of F(2, 3)."""
    a, b, c, d = inputs
    first, total, difference, last = factors
    sums = torch.empty_like(b, memory_format=torch.contiguous_format)
    rows, shape = sums.flatten(0, -2), outputs[0].shape
    torch.add(b, c, out=sums)
    even = torch.addmm(bias, rows, total, alpha=0.5)
    torch.sub(c, b, out=sums)
    change = rows @ difference
    odd = torch.sub(even, change, alpha=0.5)
    even.add_(change, alpha=0.5)
    torch.sub(a, c, out=sums)
    torch.add(even.view(shape), (rows @ first).view(shape), out=outputs[0])
    torch.sub(d, b, out=sums)
    torch.add(odd.view(shape), (rows @ last).view(shape), out=outputs[1])


def transform_four_by_three(kernel: Tensor) -> list[Tensor]:
    """Transforms a kernel for F(4, 3)."""
    first, middle, last = kernel.unbind(1)
    ends = first + last
    outer = torch.add(first, last, alpha=4)
    factors = [
        first / 4,
        (ends + middle).div_(-6),
        ends.sub_(middle).div_(-6),
        torch.add(outer, middle, alpha=2).div_(24),
        outer.sub_(middle, alpha=2).div_(24),
        last,
    ]
    return [factor.T for factor in factors]


def write_four_by_three(
    inputs: Inputs, factors: list[Tensor], bias: Tensor, outputs: Outputs
) -> None:
    """Writes the outputs of F(4, 3)."""
    a, b, c, d, e, f = inputs
    shape = outputs[0].shape
    sums = torch.empty_like(b, memory_format=torch.contiguous_format)
    rows = sums.flatten(0, -2)

    def times(factor: Tensor) -> Tensor:
        return (rows @ factor).view(shape)

    even, odd = torch.sub(e, c, alpha=4), torch.sub(d, b, alpha=4)
    torch.add(even, odd, out=sums)
    product = torch.addmm(bias, rows, factors[1]).view(shape)
    torch.sub(even, odd, out=sums)
    other = times(factors[2])
    near, change = product + other, product.sub_(other)
    even, odd = torch.sub(e, c, out=even), torch.sub(d, b, out=odd)
    torch.add(even, odd, alpha=2, out=sums)
    product = times(factors[3])
    torch.sub(even, odd, alpha=2, out=sums)
    other = times(factors[4])
    far = product + other
    product.sub_(other)
    torch.add(change, product, alpha=2, out=outputs[1])
    torch.add(near, far, alpha=4, out=outputs[2])
    change.add_(product, alpha=8)
    near.add_(far)
    torch.add(even, torch.sub(a, c), alpha=4, out=sums)
    torch.add(near, times(factors[0]), out=outputs[0])
    torch.sub(torch.sub(f, d), odd, alpha=4, out=sums)
    torch.add(change, times(factors[5]), out=outputs[3])


SCHEMES = (
    Scheme(2, 2, 150, transform_two_by_two, write_two_by_two),
    Scheme(2, 3, 150, transform_two_by_three, write_two_by_three),
    Scheme(4, 3, 300, transform_four_by_three, write_four_by_three),
)
