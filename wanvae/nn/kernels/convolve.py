"""How convolutions are computed: the same values, by the way that is fastest where they run.

The ways that differ from PyTorch's are taken only where no gradient is recorded and nothing is
compiled: training and compilers see the plain operations.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.convolve_time import convolve_time
from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.winograd_time import FEWEST_CHANNELS


def emulated_dtypes() -> frozenset[torch.dtype]:
    """The dtypes that an x86 CPU has no instructions for.

    PyTorch computes in them all the same, several times slower than in float32.
    """
    native = {
        torch.bfloat16: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        torch.float16: torch.cpu._is_amx_fp16_supported(),
    }
    x86 = platform.machine() in ("x86_64", "AMD64")
    return frozenset(dtype for dtype, supported in native.items() if x86 and not supported)


EMULATED = emulated_dtypes()
CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
TIME, HEIGHT = 2, 3
# Values of the sums of frames that are in memory at once: 16 MB in float32.
STRIP = 2**22
MOST_STRIPS = 8


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A convolution of any rank, as ``torch.nn.functional.conv3d`` defines it.

    The result has the dtype of ``weight``.
    """
    if torch.is_grad_enabled():
        return plain(x, weight, bias, stride, padding, dilation)
    dtype = weight.dtype
    x, weight, bias = (t.to(convolution_dtype(dtype, x.device)) for t in (x, weight, bias))
    return fastest(x, weight, bias, stride, padding, dilation).to(dtype)


def fastest(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A convolution of tensors of one dtype, with the fewest multiply-adds where that pays."""
    if x.dim() == 3 and suits_sums_of_inputs(x.device, x.dtype):
        return convolve_time(x, weight, bias, stride[0], padding[0], dilation[0])
    axis = winograd_axis(x, weight, stride, padding, dilation)
    if axis is None:
        return plain(x, weight, bias, stride, padding, dilation)
    return winograd(x, weight, bias, padding, axis)


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution, padded by one, of images ``(B, C, H, W)`` doubled by repetition."""
    if not suits_sums_of_kernels(x.device):
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
        return convolve(doubled, weight, bias, (1, 1), (1, 1), (1, 1))
    dtype = convolution_dtype(x.dtype, x.device)
    return in_four_phases(x.to(dtype), weight, bias.to(dtype)).to(x.dtype)


def sees_plain_operations() -> bool:
    """Whether autograd or a compiler looks on, which know best what to do with plain operations."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """PyTorch's convolution, but never its naive 3D kernel, and in 2D where there is one frame.

    Left alone, PyTorch takes that kernel on CPUs for a batch of one with few channels, where it is
    5 to 20 times slower than oneDNN.
    """
    if x.dim() == 5 and x.shape[TIME] == weight.shape[TIME] == 1 and not padding[0]:
        image, kernel = x.squeeze(TIME), weight.squeeze(TIME)
        y = CONVOLUTIONS[4](image, kernel, bias, stride[1:], padding[1:], dilation[1:])
        return y.unsqueeze(TIME)
    onednn = x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 5
    if onednn and torch.backends.mkldnn.is_available() and not torch.compiler.is_compiling():
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, 1)
    return CONVOLUTIONS[x.dim()](x, weight, bias, stride, padding, dilation)


def convolution_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to convolve in: float32 where the CPU would only emulate ``dtype``."""
    return torch.float32 if device.type != "cuda" and dtype in EMULATED else dtype


def suits_sums_of_kernels(device: torch.device) -> bool:
    """Whether fewer multiplications pay: measured on CPUs."""
    return device.type != "cuda" and not sees_plain_operations()


def suits_sums_of_inputs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether fewer multiplications pay where inputs are added: too inexact for half types."""
    return dtype in (torch.float32, torch.float64) and suits_sums_of_kernels(device)


def winograd_axis(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> int | None:
    """The axis along which ``winograd`` computes this convolution, and faster; None if none."""
    if (
        not suits_sums_of_inputs(x.device, x.dtype)
        or weight.dim() != 5
        or padding[0] > 0
        or padding[1] > 1
        or max(*stride, *dilation) != 1
        or min(weight.shape[:2]) < FEWEST_CHANNELS
    ):
        return None
    made = [x.shape[2] - 2, x.shape[3] + 2 * padding[1] - 2]
    for axis, count in zip((TIME, HEIGHT), made, strict=True):
        if weight.shape[axis] == 3 and count > 0 and count % 2 == 0:
            return axis
    return None


def winograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], axis: int
) -> Tensor:
    """A convolution whose kernel spans 3 positions of time or height, ``axis``.

    Winograd's F(2, 3) (Lavin and Gray, arXiv 1509.09308) along that axis, where there must be an
    even number of outputs: two by four convolutions with kernels of one position, where the direct
    way takes six. Sums and differences of inputs are made for a strip of rows at a time, so that
    they stay in the cache and take little memory. Time is not padded, height by one at most.
    """
    batch, channels, _, _, width = x.shape
    axes = zip(x.shape[2:], weight.shape[2:], padding, strict=True)
    frames, out_height, out_width = (size + 2 * pad - kernel + 1 for size, kernel, pad in axes)
    y = empty((batch, weight.shape[0], frames, out_height, out_width), x.dtype, x.device)
    kernels = kernels_of_pairs(weight, axis)
    rows = strip_rows(batch * channels * frames * width, out_height)
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
        made = y[:, :, :, start:stop].movedim(axis, 0)
        even, odd = made[0::2].movedim(0, axis), made[1::2].movedim(0, axis)

        def by(kernel: Tensor, bias: Tensor | None = None, strip: Tensor = strip) -> Tensor:
            return fastest(strip, kernel, bias, (1, 1, 1), (0, 0, padding[2]), (1, 1, 1))

        if x.is_meta:
            # Where only shapes are wanted: what is in memory at once, of one strip.
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


def strip_rows(values: int, height: int) -> int:
    """How many of ``height`` rows, of so many values each, to take at once; an even number."""
    rows = max(STRIP // values, -(-height // MOST_STRIPS))
    return rows + rows % 2


# Rows of a tensor (..., H, W), and which rows of a strip they are; the others lie outside: zeros.
Rows: TypeAlias = "tuple[Tensor, slice]"


def pick(x: Tensor, rows: range) -> Rows:
    """``rows`` of ``x`` as a strip, where some of them may lie above or below ``x``."""
    above = len(range(rows.start, min(rows.stop, 0), rows.step))
    inside = range(above, len(range(rows.start, min(rows.stop, x.shape[-2]), rows.step)))
    taken = rows[inside.start : inside.stop]
    return x[..., taken.start : taken.stop : taken.step, :], slice(inside.start, inside.stop)


def add_into(strip: Tensor, first: Rows, second: Rows) -> None:
    """Write ``first + second``, which are of the same rows of ``strip``, and zeros around them."""
    (x, place), (y, _) = first, second
    strip[..., : place.start, :] = 0
    strip[..., place.stop :, :] = 0
    torch.add(x, y, out=strip[..., place, :])


def subtract_into(strip: Tensor, first: Rows, second: Rows) -> None:
    """Write ``first - second`` where ``second`` has rows, of which ``first`` may lack some."""
    (x, place), (y, of_second) = first, second
    if place == of_second:
        torch.sub(x, y, out=strip[..., place, :])
    else:
        torch.neg(y, out=strip[..., of_second, :])
        strip[..., place, :] += x


def kernels_of_pairs(weight: Tensor, axis: int) -> list[Tensor]:
    """The four kernels of Winograd's F(2, 3), of one that spans three positions of ``axis``."""
    first, middle, last = weight.split(1, axis)
    ends = first + last
    kernels = first, (ends + middle) / 2, (ends - middle) / 2, last
    return [kernel.contiguous(memory_format=torch.channels_last_3d) for kernel in kernels]


def in_four_phases(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``convolve_doubled`` in 4/9 of the multiply-adds.

    Every output pixel sees 2x2 different inputs only, in four arrangements: four convolutions of
    the small images, with kernels of 2x2 sums.
    """
    batch, _, height, width = x.shape
    y = empty((batch, weight.shape[0], 2 * height, 2 * width), x.dtype, x.device)
    # Sums in half types are rounded once, which costs a fifth of the error of the rounded weights.
    exact = torch.promote_types(weight.dtype, torch.float32)
    for row, of_rows in enumerate(kernels_of_two(weight.to(exact), dim=2)):
        for column, kernel in enumerate(kernels_of_two(of_rows, dim=3)):
            kernel = kernel.to(x.dtype, memory_format=torch.channels_last)
            phase = F.conv2d(x, kernel, bias, padding=1)
            y[:, :, row::2, column::2] = phase[:, :, row : row + height, column : column + width]
    return y


def kernels_of_two(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What a kernel of three is to even and to odd positions of doubled values along ``dim``."""
    first, middle, last = weight.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)
