"""3D convolutions with fewer multiplications: Winograd's F(2, 3) along time or height.

Lavin and Gray, arXiv 1509.09308. Along one axis, two neighboring outputs need four convolutions
with kernels of one position. The direct algorithm needs six. No gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.winograd_1d import FEWEST_CHANNELS

TIME, HEIGHT = 2, 3
# Values of a strip, which holds sums of frames: 16 MB in float32.
STRIP = 2**22
MOST_STRIPS = 8


def choose_winograd_axis(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> int | None:
    """Returns the axis along which ``convolve_by_winograd`` is faster; None if there is none."""
    if (
        weight.dim() != 5
        or padding[0] > 0
        or padding[1] > 1
        or max(*stride, *dilation) != 1
        or min(weight.shape[:2]) < FEWEST_CHANNELS
    ):
        return None
    lengths = [x.shape[2] - 2, x.shape[3] + 2 * padding[1] - 2]
    for axis, length in zip((TIME, HEIGHT), lengths, strict=True):
        if weight.shape[axis] == 3 and length > 0 and length % 2 == 0:
            return axis
    return None


def convolve_by_winograd(
    convolve: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    axis: int,
) -> Tensor:
    """Computes a 3D convolution with a kernel of three positions along ``axis``, time or height.

    The number of outputs along ``axis`` must be even. Time has no padding, height one at most.
    Sums and differences of inputs are computed for a strip of rows at a time, so they stay in the
    cache and take little memory. ``convolve`` convolves the strips.
    """
    batch, channels, _, _, width = x.shape
    axes = zip(x.shape[2:], weight.shape[2:], padding, strict=True)
    frames, out_height, out_width = (size + 2 * pad - kernel + 1 for size, kernel, pad in axes)
    y = empty((batch, weight.shape[0], frames, out_height, out_width), x.dtype, x.device)
    kernels = transform_weights(weight, axis)
    rows = choose_strip_rows(batch * channels * frames * width, out_height)
    for start in range(0, out_height, rows):
        stop = min(start + rows, out_height)
        top, bottom = start - padding[1], stop - padding[1]
        if axis == TIME:
            read = range(top, bottom + weight.shape[HEIGHT] - 1)
            a, b, c, d = (pick(x[:, :, i : i + frames : 2], read) for i in range(4))
        else:
            read = range(top + 1, bottom + 1, 2)
            a, b, c, d = (pick(x, range(top + i, bottom + i, 2)) for i in range(4))
        strip = empty((*b[0].shape[:3], len(read), width), x.dtype, x.device)
        outputs = y[:, :, :, start:stop].movedim(axis, 0)
        even, odd = outputs[0::2].movedim(0, axis), outputs[1::2].movedim(0, axis)

        def by(kernel: Tensor, bias: Tensor | None = None, strip: Tensor = strip) -> Tensor:
            return convolve(strip, kernel, bias, (1, 1, 1), (0, 0, padding[2]), (1, 1, 1))

        if x.is_meta:
            # Only memory is measured: one strip shows how much is in use at once.
            _ = by(kernels[1], bias), by(kernels[2])
            break
        add_into(strip, b, c)
        total = by(kernels[1], bias)
        subtract_into(strip, c, b)
        difference = by(kernels[2])
        torch.add(total, difference, out=even)
        torch.sub(total, difference, out=odd)
        del total, difference
        subtract_into(strip, a, c)
        even += by(kernels[0])
        subtract_into(strip, d, b)
        odd += by(kernels[3])
    return y


def transform_weights(weight: Tensor, axis: int) -> list[Tensor]:
    """Returns the four kernels of F(2, 3), of one position along ``axis``, from three positions."""
    first, middle, last = weight.split(1, axis)
    ends = first + last
    kernels = first, (ends + middle) / 2, (ends - middle) / 2, last
    return [kernel.contiguous(memory_format=torch.channels_last_3d) for kernel in kernels]


def choose_strip_rows(values: int, height: int) -> int:
    """Returns how many of ``height`` rows to take at once, an even number; rows have ``values``."""
    rows = max(STRIP // values, -(-height // MOST_STRIPS))
    return rows + rows % 2


# Rows of a tensor (..., H, W), and their rows in a strip. Other rows of the strip are zeros.
Rows: TypeAlias = "tuple[Tensor, slice]"


def pick(x: Tensor, rows: range) -> Rows:
    """Returns ``rows`` of ``x`` for a strip. Some of the rows may lie above or below ``x``."""
    above = len(range(rows.start, min(rows.stop, 0), rows.step))
    inside = range(above, len(range(rows.start, min(rows.stop, x.shape[-2]), rows.step)))
    taken = rows[inside.start : inside.stop]
    return x[..., taken.start : taken.stop : taken.step, :], slice(inside.start, inside.stop)


def add_into(strip: Tensor, first: Rows, second: Rows) -> None:
    """Writes ``first + second`` to their common rows of ``strip``, and zeros around them."""
    (x, place), (y, _) = first, second
    strip[..., : place.start, :] = 0
    strip[..., place.stop :, :] = 0
    torch.add(x, y, out=strip[..., place, :])


def subtract_into(strip: Tensor, first: Rows, second: Rows) -> None:
    """Writes ``first - second`` to the rows of ``second``; ``first`` may lack some of them."""
    (x, place), (y, second_place) = first, second
    if place == second_place:
        torch.sub(x, y, out=strip[..., place, :])
    else:
        torch.neg(y, out=strip[..., second_place, :])
        strip[..., place, :] += x
