"""The operator ``make_phases``: kernels for images that are not doubled."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wanvae.nn.kernels.gpu.programs.rows import empty_rows
from wanvae.nn.kernels.gpu.programs.settings import Settings, grid, launch_first

# Channels of one kernel that a program works on.
CHANNELS = 128


def make_phases(weight: Tensor) -> Tensor:
    """Computes ``wanvae.nn.kernels.gpu.plain.make_phases``.

    It reads 9 values and writes 16 for each two channels.
    """
    outputs, inputs = weight.shape[:2]
    phases = empty_rows(weight, 4 * outputs, inputs, 2, 2)
    if not phases.numel():
        return phases

    def launch(settings: Settings) -> None:
        grid(phases_program, outputs * triton.cdiv(inputs, CHANNELS))(
            weight, phases, *weight.stride(), outputs, inputs, BLOCK=CHANNELS, num_warps=1
        )

    launch_first(launch, weight)
    return phases


@triton.jit(do_not_specialize=["outputs"])
def phases_program(
    weight,
    phases,
    of_output,
    of_input,
    of_row,
    of_column,
    outputs,
    inputs,
    BLOCK: tl.constexpr,
):
    """Writes a block of the channels of the four 2x2 kernels of one output channel.

    Neighbors among doubled values are often the same value, so their weights add up.
    """
    blocks = tl.cdiv(inputs, BLOCK)
    output = (tl.program_id(0) // blocks).to(tl.int64)
    channels = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = channels < inputs
    # The kernel for even lines and even columns. A kernel has 4 positions.
    kernel = phases + output * 4 * inputs + channels
    apart = outputs.to(tl.int64) * 4 * inputs
    weight += output * of_output + channels.to(tl.int64) * of_input
    a0, a1, a2 = load_line(weight, of_column, mask)
    b0, b1, b2 = load_line(weight + of_row, of_column, mask)
    c0, c1, c2 = load_line(weight + 2 * of_row, of_column, mask)
    write_line(kernel, a0, a1, a2, inputs, apart, mask)
    write_line(kernel + 2 * inputs, b0 + c0, b1 + c1, b2 + c2, inputs, apart, mask)
    kernel += 2 * apart
    write_line(kernel, a0 + b0, a1 + b1, a2 + b2, inputs, apart, mask)
    write_line(kernel + 2 * inputs, c0, c1, c2, inputs, apart, mask)


@triton.jit
def load_line(places, apart, mask):
    """Reads the three weights of a line in float32."""
    left = tl.load(places, mask=mask, other=0).to(tl.float32)
    middle = tl.load(places + apart, mask=mask, other=0).to(tl.float32)
    right = tl.load(places + 2 * apart, mask=mask, other=0).to(tl.float32)
    return left, middle, right


@triton.jit
def write_line(kernel, left, middle, right, inputs, apart, mask):
    """Writes a line of the kernel for even columns, and of the next one, for odd columns."""
    dtype = kernel.dtype.scalar.element_ty
    tl.store(kernel, left.to(dtype), mask=mask)
    tl.store(kernel + inputs, (middle + right).to(dtype), mask=mask)
    tl.store(kernel + apart, (left + middle).to(dtype), mask=mask)
    tl.store(kernel + apart + inputs, right.to(dtype), mask=mask)
