"""The operator ``join``: past frames, then new frames with bias, norm and activation."""

# Triton's loops are not Python's.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wanvae.nn.kernels.gpu.programs.arithmetic import activate, invert_norm, load_floats
from wanvae.nn.kernels.gpu.programs.rows import (
    Strides,
    as_video,
    choose_block,
    dense,
    empty_rows,
    locate,
    strides_of,
)
from wanvae.nn.kernels.gpu.programs.settings import Settings, grid, launch_fastest


def join(
    past: Tensor | None,
    x: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    activation: str,
    history: int,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """Computes ``wanvae.nn.kernels.gpu.plain.join``.

    It reads ``past`` and ``x`` and writes both outputs.
    """
    batch, channels, frames, *size = x.shape
    joined = empty_rows(x, batch, channels, history + frames, *size)
    last = empty_rows(x, batch, channels, kept, *size)
    if not joined.numel():
        return joined, last
    x = as_video(x)
    height, width = x.shape[3:]
    plane = height * width
    if past is None or not past.shape[2]:
        past, past_frames, past_strides = None, 0, Strides(0, 0, None, None, 0)
    else:
        past = as_video(past)
        past_frames, past_strides = past.shape[2], strides_of(past)
    chunk, positions = choose_block(channels, x.dtype)

    def launch(settings: Settings) -> None:
        block = positions * settings.scale
        blocks = triton.cdiv(frames * plane, block) + triton.cdiv(history * plane, block)
        grid(join_program, batch * blocks)(
            past,
            x,
            dense(bias),
            dense(gamma),
            joined,
            last if kept else None,
            *past_strides,
            *strides_of(x),
            height,
            width,
            past_frames,
            frames,
            history,
            kept,
            CHANNELS=channels,
            ROOT=channels**0.5,
            ACTIVATION=activation,
            CHUNK=chunk,
            POSITIONS=block,
            num_warps=settings.warps,
        )

    launch_fastest(launch, x, "join")
    return joined, last


@triton.jit(do_not_specialize=["height", "width", "past_frames", "frames", "history", "kept"])
def join_program(
    past,
    x,
    bias,
    gamma,
    joined,
    last,
    past_batch,
    past_channel,
    past_frame,
    past_line,
    past_column,
    x_batch,
    x_channel,
    x_frame,
    x_line,
    x_column,
    height,
    width,
    past_frames,
    frames,
    history,
    kept,
    CHANNELS: tl.constexpr,
    ROOT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Writes a block of new positions, or a block of the history before them.

    The blocks of a clip are first its new frames, then its history. A block is read from ``x`` or
    from ``past``, and written to ``joined`` and, as far as it belongs to the last ``kept`` frames,
    to ``last``. Tensors other than ``x`` and ``joined`` may be None.
    """
    plane = height.to(tl.int64) * width
    new = frames * plane
    old = history * plane
    unkept = (history + frames - kept) * plane
    new_blocks = tl.cdiv(new, POSITIONS)
    blocks = new_blocks + tl.cdiv(old, POSITIONS)
    clip = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    lanes = tl.arange(0, POSITIONS)
    joined += clip * (old + new) * CHANNELS
    if last is not None:
        # The first row of the clip as if all its frames were kept.
        last += (clip * kept * plane - unkept) * CHANNELS
    if block < new_blocks:
        start = block * POSITIONS
        offsets = locate(start, lanes, height, width, x_frame, x_line, x_column)
        write_new(
            x + clip * x_batch + offsets,
            x_channel,
            bias,
            gamma,
            joined,
            last,
            old + start + lanes,
            old + new,
            unkept,
            CHANNELS,
            ROOT,
            ACTIVATION,
            CHUNK,
            POSITIONS,
        )
    else:
        start = (block - new_blocks) * POSITIONS
        zeros = (history - past_frames) * plane
        rows = start + lanes
        sources = past
        if past is not None:
            offsets = locate(
                start - zeros, lanes, height, width, past_frame, past_line, past_column
            )
            sources = past + clip * past_batch + offsets
        write_history(
            sources,
            past_channel,
            joined,
            last,
            rows,
            zeros,
            old,
            unkept,
            CHANNELS,
            CHUNK,
            POSITIONS,
        )


@triton.jit
def write_new(
    sources,
    channel,
    bias,
    gamma,
    joined,
    last,
    rows,
    end,
    unkept,
    CHANNELS: tl.constexpr,
    ROOT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Reads the rows at the pointers ``sources`` and writes them as rows of ``joined``."""
    lanes = tl.arange(0, CHUNK)
    inside = (rows < end)[:, None]
    values = ()
    squares = tl.full((POSITIONS, CHUNK), 0, tl.float32)
    for first in tl.static_range(0, CHANNELS, CHUNK):
        channels = first + lanes
        pointers = sources[:, None] + channels.to(tl.int64)[None, :] * channel
        wide = tl.load(pointers, mask=inside & (channels < CHANNELS)[None, :], other=0)
        wide = wide.to(tl.float32) + load_floats(bias, channels, POSITIONS, CHANNELS)
        values += (wide,)
        squares += wide * wide
    inverse = ROOT * invert_norm(tl.sum(squares, 1, keep_dims=True))
    for first in tl.static_range(0, CHANNELS, CHUNK):
        channels = first + lanes
        wide = values[first // CHUNK]
        if gamma is not None:
            wide = wide * inverse * load_floats(gamma, channels, POSITIONS, CHANNELS)
        wide = activate(wide, ACTIVATION)
        write(joined, last, rows, channels, wide, inside, unkept, CHANNELS)


@triton.jit
def write_history(
    sources,
    channel,
    joined,
    last,
    rows,
    zeros,
    end,
    unkept,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Writes rows of ``joined``: zeros before row ``zeros``, then what lies at ``sources``."""
    inside = (rows < end)[:, None]
    for first in tl.static_range(0, CHANNELS, CHUNK):
        channels = first + tl.arange(0, CHUNK)
        if sources is None:
            wide = tl.full((POSITIONS, CHUNK), 0, tl.float32)
        else:
            mask = (rows >= zeros)[:, None] & inside & (channels < CHANNELS)[None, :]
            pointers = sources[:, None] + channels.to(tl.int64)[None, :] * channel
            wide = tl.load(pointers, mask=mask, other=0).to(tl.float32)
        write(joined, last, rows, channels, wide, inside, unkept, CHANNELS)


@triton.jit
def write(joined, last, rows, channels, wide, inside, unkept, CHANNELS: tl.constexpr):
    """Writes some channels of rows to ``joined``, and from row ``unkept`` on also to ``last``."""
    values = wide.to(joined.dtype.element_ty)
    offsets = rows[:, None] * CHANNELS + channels[None, :]
    mask = inside & (channels < CHANNELS)[None, :]
    tl.store(joined + offsets, values, mask=mask)
    if last is not None:
        tl.store(last + offsets, values, mask=mask & (rows >= unkept)[:, None])
