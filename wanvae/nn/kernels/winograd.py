"""3D convolutions with fewer multiplications: Winograd's F(2, 3) along time or height.

Lavin and Gray, arXiv 1509.09308. Along one axis, two neighboring outputs need four convolutions
with kernels of one position. The direct algorithm needs six. No gradients.
"""

from __future__ import annotations

import math
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
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> int | None:
    """Returns the axis along which ``convolve_by_winograd`` is faster; None if there is none."""
    if (
        len(weight_shape) != 5
        or padding[0] > 0
        or padding[1] > 1
        or max(*stride, *dilation) != 1
        or min(weight_shape[:2]) < FEWEST_CHANNELS
    ):
        return None
    lengths = [x_shape[2] - 2, x_shape[3] + 2 * padding[1] - 2]
    for axis, length in zip((TIME, HEIGHT), lengths, strict=True):
        if weight_shape[axis] == 3 and length > 0 and length % 2 == 0:
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
    frames, out_height, out_width = find_output_size(x.shape, weight.shape, padding)
    y = empty((batch, weight.shape[0], frames, out_height, out_width), x.dtype, x.device)
    if x.is_meta:
        # Only memory is measured.
        empty((count_values_at_once(x.shape, weight.shape, padding, axis),), x.dtype, x.device)
        return y
    kernels = transform_weights(weight, axis)
    rows = choose_strip_rows(batch * channels * frames * width, out_height)
    # Pairs of frames, or the frames of pairs of rows.
    length = frames // 2 if axis == TIME else x.shape[TIME]
    for start in range(0, out_height, rows):
        stop = min(start + rows, out_height)
        top, bottom = start - padding[1], stop - padding[1]
        read = find_rows_of_strip(axis, top, bottom, weight.shape[HEIGHT])
        strip = empty((batch, channels, length, len(read), width), x.dtype, x.device)

        def by(kernel: Tensor, bias: Tensor | None = None, strip: Tensor = strip) -> Tensor:
            return convolve(strip, kernel, bias, (1, 1, 1), (0, 0, padding[2]), (1, 1, 1))

        if axis == TIME:
            a, b, c, d = (pick(x[:, :, i : i + frames : 2], read) for i in range(4))
        else:
            a, b, c, d = (pick(x, range(top + i, bottom + i, 2)) for i in range(4))
        outputs = y[:, :, :, start:stop].movedim(axis, 0)
        even, odd = outputs[0::2].movedim(0, axis), outputs[1::2].movedim(0, axis)
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


def count_values_at_once(
    x_shape: Sequence[int], weight_shape: Sequence[int], padding: Sequence[int], axis: int
) -> int:
    """Returns the most values that ``convolve_by_winograd`` holds at once besides its output."""
    batch, channels, frames_in, _, width = x_shape
    frames, out_height, _ = find_output_size(x_shape, weight_shape, padding)
    rows = choose_strip_rows(batch * channels * frames * width, out_height)
    read = find_rows_of_strip(axis, 0, min(rows, out_height), weight_shape[HEIGHT])
    strip = (batch, channels, frames // 2 if axis == TIME else frames_in, len(read), width)
    kernel = [1 if dim == axis else size for dim, size in enumerate(weight_shape)]
    inner_padding = 0, 0, padding[2]
    inner_axis = choose_winograd_axis(strip, kernel, (1, 1, 1), inner_padding, (1, 1, 1))
    inner = 0
    if inner_axis is not None:
        inner = count_values_at_once(strip, kernel, inner_padding, inner_axis)
    output = batch * weight_shape[0] * math.prod(find_output_size(strip, kernel, inner_padding))
    of_kernel = math.prod(kernel)
    # The four kernels and the sum of ends before them; or the kernels, a strip, and two results.
    return max(5 * of_kernel, 4 * of_kernel + math.prod(strip) + 2 * output + inner)


def find_output_size(
    x_shape: Sequence[int], weight_shape: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Returns frames, height and width of the output of a 3D convolution of stride 1."""
    axes = zip(x_shape[2:], weight_shape[2:], padding, strict=True)
    return [size + 2 * pad - kernel + 1 for size, kernel, pad in axes]


def find_rows_of_strip(axis: int, top: int, bottom: int, kernel_height: int) -> range:
    """Returns the first row of the input that each row of a strip is computed from.

    Along time, the strip has a row for each row that the kernel sees. Along height, it has a row
    for each pair of rows of the output.
    """
    if axis == TIME:
        return range(top, bottom + kernel_height - 1)
    return range(top + 1, bottom + 1, 2)


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
