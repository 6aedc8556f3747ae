"""Winograd's F(4, 3) with gradients: 1D convolutions of three taps with half of the products.

Lavin and Gray (arXiv 1509.09308) describe the forward pass. Six sums of the inputs of four
neighboring outputs are multiplied by six sums of the taps, and each output is a sum of the six
products. The backward pass is the transpose of each of these three steps. It needs six products for
the gradients of the inputs, and six for the gradient of the kernel.

Clips are processed in strips, so that all sums of a strip stay in the cache. Outputs that are
computed together are ``dilation`` frames apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanvae.nn.kernels.activations import activate_backward_into, activate_into
from wanvae.nn.kernels.training_1d_taps import Steps

OUTPUTS, TAPS, POINTS = 4, 3, 6
# Rows of a product in a strip, for each thread.
ROWS = 128
# With fewer tiles, the sums of the kernel cost as much as is saved. Clips of more tiles would need
# too much memory at once.
FEWEST_ROWS, MOST_ROWS = 128, 2**12
# The largest part of the products of three taps that is worth the additions.
MOST_PRODUCTS = 0.75
# With fewer channels, the additions cost as much as they save.
FEWEST_CHANNELS = 48


@dataclass(frozen=True)
class Tiles:
    """How the outputs of a clip are cut into tiles, and clips into strips.

    Attributes:
        length: outputs of a clip.
        dilation: distance of the outputs of a tile in frames.
        count: groups of ``dilation`` tiles of a clip; the last group may reach beyond its end.
        clips: clips of a strip.
    """

    length: int
    dilation: int
    count: int
    clips: int

    @classmethod
    def cut(cls, batch: int, length: int, dilation: int) -> Tiles:
        """Returns the tiles of ``batch`` clips of ``length`` outputs."""
        count = -(-length // (OUTPUTS * dilation))
        clips = ROWS * torch.get_num_threads() // (count * dilation)
        return cls(length, dilation, count, min(batch, max(1, clips)))

    @property
    def rows(self) -> int:
        """Tiles of a clip."""
        return self.count * self.dilation

    @property
    def outputs(self) -> int:
        """Outputs of the tiles of a clip."""
        return OUTPUTS * self.rows

    @property
    def inputs(self) -> int:
        """Frames that the tiles of a clip read, and a few more."""
        return self.outputs + OUTPUTS * self.dilation

    def strips(self, batch: int) -> Iterator[slice]:
        """Yields the clips of each strip."""
        for start in range(0, batch, self.clips):
            yield slice(start, min(batch, start + self.clips))

    def planes(self, frames: Tensor) -> Tensor:
        """Returns frames ``(B, OUTPUTS * n * dilation, C)`` as ``(OUTPUTS, B, n, dilation, C)``."""
        return frames.unflatten(1, (-1, OUTPUTS, self.dilation)).movedim(2, 0)

    def points(self, values: Tensor, clips: int) -> tuple[Tensor, Tensor]:
        """Returns the values ``(X, n, C)`` of a few clips, as rows and as tiles.

        Rows are ``(X, clips * rows, C)``, tiles ``(X, clips, count, dilation, C)``.
        """
        rows = values[:, : clips * self.rows]
        return rows, rows.unflatten(1, (clips, self.count, self.dilation))


def suits(rows: Tensor, kernel: Tensor, stride: int, padding: int, dilation: int) -> bool:
    """Returns whether this is the fastest way to convolve ``(B, T, C)`` with ``(O, K, C)``."""
    out_channels, taps, channels = kernel.shape
    length = rows.shape[1] + 2 * padding - (TAPS - 1) * dilation
    if stride != 1 or taps != TAPS or min(channels, out_channels) < FEWEST_CHANNELS:
        return False
    tiles = Tiles.cut(len(rows), length, dilation)
    products = Steps.of(rows.shape[1], TAPS, stride, padding, dilation).products
    saves = POINTS * tiles.rows < MOST_PRODUCTS * products
    return saves and len(rows) * tiles.rows >= FEWEST_ROWS and tiles.rows <= MOST_ROWS


def convolve(
    rows: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    activation: str,
    padding: int,
    dilation: int,
) -> Tensor:
    """Convolves ``activation(rows)`` ``(B, T, C)`` with ``(O, 3, C)`` to ``(B, length, O)``."""
    batch, frames, channels = rows.shape
    tiles = Tiles.cut(batch, frames + 2 * padding - (TAPS - 1) * dilation, dilation)
    factors = transform_kernel(kernel).mT
    padded = rows.new_zeros(tiles.clips, tiles.inputs, channels)
    sums = rows.new_empty(POINTS + 2, tiles.clips * tiles.rows, channels)
    products = rows.new_empty(POINTS + 2, tiles.clips * tiles.rows, len(kernel))
    y = rows.new_empty(batch, tiles.length, len(kernel))
    buffer = None
    if tiles.outputs != tiles.length:
        buffer = rows.new_empty(tiles.clips, tiles.outputs, len(kernel))
    for strip in tiles.strips(batch):
        clips = strip.stop - strip.start
        given = padded[:clips]
        activate_into(activation, rows[strip], given[:, padding : padding + frames])
        of_rows, of_tiles = tiles.points(sums, clips)
        transform_inputs(tiles.planes(given), of_tiles)
        products_of_rows, products_of_tiles = tiles.points(products, clips)
        torch.bmm(of_rows[:POINTS], factors, out=products_of_rows[:POINTS])
        written = y[strip] if buffer is None else buffer[:clips]
        write_outputs(products_of_tiles, bias, tiles.planes(written))
        if buffer is not None:
            y[strip] = written[:, : tiles.length]
    return y


def find_gradients(
    grad: Tensor,
    rows: Tensor,
    kernel: Tensor,
    activation: str,
    padding: int,
    dilation: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of ``rows`` and ``kernel`` where ``wanted``, from ``grad`` of outputs.

    Args:
        grad: ``(B, length, O)``.
        wanted: whether the gradients of rows and kernel are wanted.
    """
    batch, frames, channels = rows.shape
    tiles = Tiles.cut(batch, grad.shape[1], dilation)
    factors = transform_kernel(kernel)
    sums = rows.new_empty(POINTS + 2, tiles.clips * tiles.rows, channels)
    of_products = rows.new_empty(POINTS + 2, tiles.clips * tiles.rows, len(kernel))
    padded = rows.new_zeros(tiles.clips, tiles.inputs, channels)
    of_padded = torch.empty_like(padded)
    of_rows = torch.empty_like(rows) if wanted[0] else None
    of_factors = torch.zeros_like(factors) if wanted[1] else None
    whole = None
    if tiles.outputs != tiles.length:
        whole = grad.new_zeros(tiles.clips, tiles.outputs, len(kernel))
    for strip in tiles.strips(batch):
        clips = strip.stop - strip.start
        of_outputs = grad[strip]
        if whole is not None:
            of_outputs = whole[:clips]
            of_outputs[:, : tiles.length] = grad[strip]
        gradients, of_tiles = tiles.points(of_products, clips)
        write_outputs_backward(tiles.planes(of_outputs), of_tiles)
        rows_of_sums, tiles_of_sums = tiles.points(sums, clips)
        if of_factors is not None:
            given = padded[:clips]
            activate_into(activation, rows[strip], given[:, padding : padding + frames])
            transform_inputs(tiles.planes(given), tiles_of_sums)
            of_factors.baddbmm_(gradients[:POINTS].mT, rows_of_sums[:POINTS])
        if of_rows is not None:
            torch.bmm(gradients[:POINTS], factors, out=rows_of_sums[:POINTS])
            transform_inputs_backward(tiles_of_sums, tiles.planes(of_padded[:clips]))
            of_given = of_padded[:clips, padding : padding + frames]
            activate_backward_into(activation, of_given, rows[strip], of_rows[strip])
    return of_rows, None if of_factors is None else transform_kernel_backward(of_factors)


def transform_kernel(kernel: Tensor) -> Tensor:
    """Returns the six sums of the taps of ``(O, 3, C)``: ``(6, O, C)``."""
    first, middle, last = kernel.unbind(1)
    factors = kernel.new_empty(POINTS, *first.shape)
    torch.mul(first, 1 / 4, out=factors[0])
    ends = first + last
    torch.add(ends, middle, out=factors[1]).mul_(-1 / 6)
    torch.sub(middle, ends, out=factors[2]).mul_(1 / 6)
    outer = torch.add(first, last, alpha=4)
    torch.add(outer, middle, alpha=2, out=factors[3]).mul_(1 / 24)
    torch.sub(outer, middle, alpha=2, out=factors[4]).mul_(1 / 24)
    factors[5] = last
    return factors


def transform_kernel_backward(of_factors: Tensor) -> Tensor:
    """Returns the gradient of the kernel, ``(O, 3, C)``, from the gradients of the six sums."""
    a, b, c, d, e, f = of_factors
    near, far = b + c, d + e
    first = (a / 4).sub_(near, alpha=1 / 6).add_(far, alpha=1 / 24)
    middle = (c - b).mul_(1 / 6).add_(d - e, alpha=1 / 12)
    last = (far - near).mul_(1 / 6).add_(f)
    return torch.stack([first, middle, last], dim=1)


def transform_inputs(planes: Tensor, out: Tensor) -> None:
    """Writes the six sums of the inputs of each tile.

    Args:
        planes: ``(4, B, n + 1, ...)``, the frames at each place of a tile. A tile reads its own
            four frames, and the first two of the next tile.
        out: ``(8, B, n, ...)``; the last two are room for intermediate results.
    """
    a, b, c, d = planes[:, :, :-1]
    e, f = planes[:2, :, 1:]
    even, odd = out[6], out[7]
    torch.sub(e, c, alpha=4, out=even)
    torch.sub(d, b, alpha=4, out=odd)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(e, c, out=even)
    torch.sub(d, b, out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(a, c, out=out[0])
    torch.add(even, out[0], alpha=4, out=out[0])
    torch.sub(f, d, out=out[5])
    torch.sub(out[5], odd, alpha=4, out=out[5])


def transform_inputs_backward(sums: Tensor, planes: Tensor) -> None:
    """Writes the gradients of all frames of the tiles.

    Args:
        sums: ``(8, B, n, ...)``, the gradients of the six sums, which are overwritten.
        planes: ``(4, B, n + 1, ...)``, the gradients of the frames at each place of a tile. Places
            2 and 3 of the last tile stay as they are.
    """
    first, b, c, d, e, last, near, near_change = sums
    here, after = planes[:, :, :-1], planes[:2, :, 1:]
    torch.add(b, c, out=near)
    torch.sub(c, b, out=near_change)
    far, far_change = torch.add(d, e, out=b), torch.sub(e, d, out=c)
    planes[:2, :, 0] = 0
    torch.add(first, near, out=d)
    torch.add(d, far, out=after[0])
    after[1].copy_(last)
    here[0].add_(first, alpha=4)
    torch.add(near_change, last, out=d)
    torch.add(far_change, d, alpha=2, out=d)
    here[1].add_(d, alpha=2)
    torch.add(near_change, far_change, alpha=2, out=d)
    torch.add(d, last, alpha=5, out=d)
    torch.neg(d, out=here[3])
    torch.add(first, near, alpha=0.8, out=d)
    torch.add(far, d, alpha=5, out=d)
    torch.neg(d, out=here[2])


def write_outputs(products: Tensor, bias: Tensor | None, planes: Tensor) -> None:
    """Writes the four outputs of each tile.

    Args:
        products: ``(8, B, n, ...)``, the six products, which are overwritten, and room for two.
        planes: ``(4, B, n, ...)``, the outputs at each place of a tile.
    """
    first, b, c, d, e, last, near, near_change = products
    torch.add(b, c, out=near)
    torch.sub(b, c, out=near_change)
    if bias is not None:
        near += bias
        near_change += bias
    far, far_change = torch.add(d, e, out=b), torch.sub(d, e, out=c)
    torch.add(first, near, out=first)
    torch.add(first, far, out=planes[0])
    torch.add(near_change, far_change, alpha=2, out=planes[1])
    torch.add(near, far, alpha=4, out=planes[2])
    torch.add(near_change, far_change, alpha=8, out=near_change)
    torch.add(near_change, last, out=planes[3])


def write_outputs_backward(planes: Tensor, out: Tensor) -> None:
    """Writes the gradients of the six products of each tile.

    Args:
        planes: ``(4, B, n, ...)``, the gradients of the outputs at each place of a tile.
        out: ``(8, B, n, ...)``; the last two are room for intermediate results.
    """
    a, b, c, d = planes
    even, odd = out[6], out[7]
    out[0] = a
    torch.add(a, c, out=even)
    torch.add(b, d, out=odd)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.add(a, c, alpha=4, out=even)
    torch.add(b, d, alpha=4, out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    out[5] = d
