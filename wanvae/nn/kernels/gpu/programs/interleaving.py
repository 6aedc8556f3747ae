"""The operators ``interleave`` and ``interleave_frames``: groups of channels become neighbors."""

# Triton's loops are not Python's.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wanvae.nn.kernels.gpu.programs.arithmetic import load_floats
from wanvae.nn.kernels.gpu.programs.rows import (
    as_video,
    choose_block,
    dense,
    empty_rows,
    locate,
    strides_of,
)
from wanvae.nn.kernels.gpu.programs.settings import Settings, grid, launch_fastest


def interleave(phases: Tensor, bias: Tensor | None) -> Tensor:
    """Computes ``wanvae.nn.kernels.gpu.plain.interleave``.

    It reads what it needs of ``phases``, each value once, and writes the output.
    """
    images, groups, height, width = phases.shape
    channels, height, width = groups // 4, 2 * (height - 1), 2 * (width - 1)
    y = empty_rows(phases, images, channels, height, width)
    if not y.numel():
        return y
    chunk, positions = choose_block(channels, y.dtype)

    def launch(settings: Settings) -> None:
        block = positions * settings.scale
        grid(interleave_program, images * triton.cdiv(height * width, block))(
            phases,
            dense(bias),
            y,
            *phases.stride(),
            height,
            width,
            CHANNELS=channels,
            CHUNK=chunk,
            POSITIONS=block,
            num_warps=settings.warps,
        )

    launch_fastest(launch, y, "interleave")
    return y


@triton.jit(do_not_specialize=["height", "width"])
def interleave_program(
    phases,
    bias,
    y,
    of_image,
    of_channel,
    of_line,
    of_column,
    height,
    width,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Writes a block of positions of ``y``, which are lines of ``width`` positions.

    The output at line ``2 * i + r`` and column ``2 * j + c`` is group ``2 * r + c`` of the channels
    of ``phases`` at line ``i + r`` and column ``j + c``.
    """
    plane = height.to(tl.int64) * width
    blocks = tl.cdiv(plane, POSITIONS)
    image = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * POSITIONS
    lanes = tl.arange(0, POSITIONS)
    rows = start + lanes
    # Only the one start is divided in 64 bits.
    column = (start % width).to(tl.int32) + lanes
    line = (start // width).to(tl.int32) + column // width
    column = column % width
    group = 2 * (line % 2) + column % 2
    phases += (
        image * of_image
        + (group * CHANNELS).to(tl.int64) * of_channel
        + ((line + 1) // 2).to(tl.int64) * of_line
        + ((column + 1) // 2).to(tl.int64) * of_column
    )
    y += image * plane * CHANNELS + rows * CHANNELS
    for first in tl.static_range(0, CHANNELS, CHUNK):
        channels = first + tl.arange(0, CHUNK)
        mask = (rows < plane)[:, None] & (channels < CHANNELS)[None, :]
        pointers = phases[:, None] + channels.to(tl.int64)[None, :] * of_channel
        wide = tl.load(pointers, mask=mask, other=0).to(tl.float32)
        wide += load_floats(bias, channels, POSITIONS, CHANNELS)
        tl.store(y[:, None] + channels[None, :], wide.to(y.dtype.scalar.element_ty), mask=mask)


def interleave_frames(x: Tensor, bias: Tensor | None) -> Tensor:
    """Computes ``wanvae.nn.kernels.gpu.plain.interleave_frames``.

    It reads ``x`` and writes the output.
    """
    batch, both, frames, *size = x.shape
    y = empty_rows(x, batch, both // 2, 2 * frames, *size)
    if not y.numel():
        return y
    x = as_video(x)
    height, width = x.shape[3:]
    chunk, positions = choose_block(both // 2, x.dtype)

    def launch(settings: Settings) -> None:
        block = positions * settings.scale
        grid(interleave_frames_program, batch * triton.cdiv(frames * height * width, block), 2)(
            x,
            dense(bias),
            y,
            *strides_of(x),
            frames,
            height,
            width,
            CHANNELS=both // 2,
            CHUNK=chunk,
            POSITIONS=block,
            num_warps=settings.warps,
        )

    launch_fastest(launch, y, "interleave_frames")
    return y


@triton.jit(do_not_specialize=["frames", "height", "width"])
def interleave_frames_program(
    x,
    bias,
    y,
    of_clip,
    of_channel,
    of_frame,
    of_line,
    of_column,
    frames,
    height,
    width,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Writes a block of the positions of ``x`` as positions of earlier or later frames of ``y``."""
    later = tl.program_id(1)
    plane = height.to(tl.int64) * width
    end = plane * frames
    blocks = tl.cdiv(end, POSITIONS)
    clip = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * POSITIONS
    lanes = tl.arange(0, POSITIONS)
    x += clip * of_clip + (later * CHANNELS).to(tl.int64) * of_channel
    x += locate(start, lanes, height, width, of_frame, of_line, of_column)
    # A position of frame t is in frame 2 * t or 2 * t + 1: t frames, or t + 1, lie before its own.
    frame = start // plane + ((start % plane).to(tl.int32) + lanes) // (height * width)
    y += (clip * 2 * end + start + lanes + (frame + later) * plane) * CHANNELS
    if bias is not None:
        bias += later * CHANNELS
    for first in tl.static_range(0, CHANNELS, CHUNK):
        channels = first + tl.arange(0, CHUNK)
        mask = (start + lanes < end)[:, None] & (channels < CHANNELS)[None, :]
        pointers = x[:, None] + channels.to(tl.int64)[None, :] * of_channel
        wide = tl.load(pointers, mask=mask, other=0).to(tl.float32)
        wide += load_floats(bias, channels, POSITIONS, CHANNELS)
        tl.store(y[:, None] + channels[None, :], wide.to(y.dtype.scalar.element_ty), mask=mask)
