"""How convolutions are computed: the same values, by the way that is fastest where they run.

The ways that differ from PyTorch's are taken only where no gradient is recorded and nothing is
compiled: training and compilers see the plain operations.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.memory import empty


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
# Below this many channels the additions of the fast algorithms cost what they save.
FEWEST_CHANNELS = 48
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
    if suits_winograd(x, weight, stride, padding, dilation):
        y = winograd_along_time(x, weight, bias, padding)
    else:
        y = plain(x, weight, bias, stride, padding, dilation)
    return y.to(dtype)


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution, padded by one, of images ``(B, C, H, W)`` doubled by repetition."""
    dtype = convolution_dtype(x.dtype, x.device)
    if not suits_fast_algorithms(x.device, dtype):
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
        return convolve(doubled, weight, bias, (1, 1), (1, 1), (1, 1))
    return in_four_phases(*(t.to(dtype) for t in (x, weight, bias))).to(x.dtype)


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
    """PyTorch's convolution, but never its naive 3D kernel.

    Left alone, PyTorch takes that kernel on CPUs for a batch of one with few channels, where it is
    5 to 20 times slower than oneDNN.
    """
    onednn = x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 5
    if onednn and torch.backends.mkldnn.is_available() and not torch.compiler.is_compiling():
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, 1)
    return CONVOLUTIONS[x.dim()](x, weight, bias, stride, padding, dilation)


def convolution_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to convolve in: float32 where the CPU would only emulate ``dtype``."""
    return torch.float32 if device.type != "cuda" and dtype in EMULATED else dtype


def suits_fast_algorithms(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether fewer multiplications pay: measured on CPUs, and too inexact for half types."""
    wide = dtype in (torch.float32, torch.float64)
    return wide and device.type != "cuda" and not sees_plain_operations()


def suits_winograd(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Whether ``winograd_along_time`` can compute this convolution, and faster."""
    return (
        suits_fast_algorithms(x.device, x.dtype)
        and weight.dim() == 5
        and weight.shape[2] == 3
        and x.shape[2] > 2
        and x.shape[2] % 2 == 0
        and padding[0] == 0
        and max(*stride, *dilation) == 1
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
    )


def winograd_along_time(x: Tensor, weight: Tensor, bias: Tensor, padding: Sequence[int]) -> Tensor:
    """A convolution whose kernel spans 3 frames, of an even number of output frames.

    Winograd's F(2, 3) (Lavin and Gray, arXiv 1509.09308) along time: two output frames by four
    convolutions of single frames, where the direct way takes six. Sums and differences of frames
    are made for a strip of rows at a time, so that they take little memory.
    """
    batch, channels, frames, height, width = x.shape
    frames -= 2
    kernel_height, kernel_width = weight.shape[3:]
    out_height = height + 2 * padding[1] - kernel_height + 1
    out_width = width + 2 * padding[2] - kernel_width + 1
    y = empty((batch, weight.shape[0], frames, out_height, out_width), x.dtype, x.device)
    kernels = kernels_of_pairs(weight)
    rows = max(STRIP // (batch * channels * frames // 2 * width), -(-out_height // MOST_STRIPS))
    for start in range(0, out_height, rows):
        stop = min(start + rows, out_height)
        top, bottom = start - padding[1], stop - padding[1] + kernel_height - 1
        inside = slice(max(top, 0), min(bottom, height))
        a, b, c, d = (x[:, :, i : i + frames : 2, inside] for i in range(4))
        shape = batch, channels, frames // 2, bottom - top, width
        strip = empty(shape, x.dtype, x.device).zero_()
        filled = strip[:, :, :, inside.start - top : inside.stop - top]

        def per_frame(kernel: Tensor, bias: Tensor | None = None, strip: Tensor = strip) -> Tensor:
            return plain(strip, kernel, bias, (1, 1, 1), (0, 0, padding[2]), (1, 1, 1))

        even, odd = y[:, :, 0::2, start:stop], y[:, :, 1::2, start:stop]
        torch.add(b, c, out=filled)
        total = per_frame(kernels[1], bias)
        torch.sub(c, b, out=filled)
        difference = per_frame(kernels[2])
        torch.add(total, difference, out=even)
        torch.sub(total, difference, out=odd)
        del total, difference
        torch.sub(a, c, out=filled)
        even += per_frame(kernels[0])
        torch.sub(d, b, out=filled)
        odd += per_frame(kernels[3])
        if x.is_meta:
            break  # one strip shows how much memory it takes
    return y


def kernels_of_pairs(weight: Tensor) -> list[Tensor]:
    """The four one-frame kernels of Winograd's F(2, 3), of one that spans three frames."""
    first, middle, last = weight.split(1, dim=2)
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
    for row, of_rows in enumerate(kernels_of_two(weight, dim=2)):
        for column, kernel in enumerate(kernels_of_two(of_rows, dim=3)):
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            phase = F.conv2d(x, kernel, bias, padding=1)
            y[:, :, row::2, column::2] = phase[:, :, row : row + height, column : column + width]
    return y


def kernels_of_two(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What a kernel of three is to even and to odd positions of doubled values along ``dim``."""
    first, middle, last = weight.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)
