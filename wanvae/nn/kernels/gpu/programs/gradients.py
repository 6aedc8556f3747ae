"""The operator ``norm_activate_backward``: the gradients of a norm and an activation."""

# Triton's loops are not Python's.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wanvae.nn.kernels.gpu.programs.arithmetic import (
    differentiate,
    invert_norm,
    load_floats,
    norm_slope,
)
from wanvae.nn.kernels.gpu.programs.rows import (
    as_video,
    choose_block,
    dense,
    empty_rows,
    locate,
    strides_of,
)
from wanvae.nn.kernels.gpu.programs.settings import Settings, grid, launch_first

# Each program adds up the gradient of gamma over its blocks. So many sums are left at most.
MOST_PROGRAMS = 2048


def norm_activate_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Computes ``wanvae.nn.kernels.gpu.plain.norm_activate_backward``.

    It reads ``grad`` and ``x`` and writes the gradient of ``x``. Each program also writes a row of
    float32, which is read again. The order of all sums follows from the shape and dtype of ``x``.
    """
    of_x = empty_rows(x, *x.shape)
    if not x.numel():
        return of_x, torch.zeros_like(gamma)
    x, grad = as_video(x), as_video(grad)
    batch, channels, frames, height, width = x.shape
    chunk, positions = choose_block(channels, x.dtype)
    blocks = batch * triton.cdiv(frames * height * width, positions)
    programs = min(blocks, MOST_PROGRAMS)
    sums = torch.empty((programs, channels), dtype=torch.float32, device=x.device)

    def launch(settings: Settings) -> None:
        grid(backward_program, programs)(
            grad,
            x,
            dense(gamma),
            of_x,
            sums,
            *strides_of(grad),
            *strides_of(x),
            frames,
            height,
            width,
            blocks,
            CHANNELS=channels,
            ROOT=channels**0.5,
            ACTIVATION=activation,
            CHUNK=chunk,
            POSITIONS=positions,
            num_warps=settings.warps,
        )

    launch_first(launch, x)
    return of_x, sums.sum(0).to(gamma.dtype).view(gamma.shape)


@triton.jit(do_not_specialize=["frames", "height", "width", "all_blocks"])
def backward_program(
    grad,
    x,
    gamma,
    of_x,
    sums,
    grad_batch,
    grad_channel,
    grad_frame,
    grad_line,
    grad_column,
    x_batch,
    x_channel,
    x_frame,
    x_line,
    x_column,
    frames,
    height,
    width,
    all_blocks,
    CHANNELS: tl.constexpr,
    ROOT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Writes some blocks of the gradient of ``x``, and a row of ``sums`` over these blocks.

    A block is read from ``grad`` and ``x``. With ``u = x / norm`` and ``s = sqrt(C) * gamma``, the
    gradient of ``u`` is ``g = grad * activation'(u * s) * s``, of ``x`` it is
    ``(g - u * sum(g * u)) / norm``, and of ``gamma`` the sum of ``grad * activation'(u * s) * u``,
    times ``sqrt(C)``.
    """
    end = height.to(tl.int64) * width * frames
    blocks = tl.cdiv(end, POSITIONS)
    lanes = tl.arange(0, POSITIONS)
    totals = ()
    for _ in tl.static_range(0, CHANNELS, CHUNK):
        totals += (tl.full((POSITIONS, CHUNK), 0, tl.float32),)
    for block in range(tl.program_id(0), all_blocks, tl.num_programs(0)):
        clip = block // blocks
        start = block % blocks * POSITIONS
        inside = (start + lanes < end)[:, None]
        x_rows = locate(start, lanes, height, width, x_frame, x_line, x_column)
        x_rows = x + clip * x_batch + x_rows
        grad_rows = locate(start, lanes, height, width, grad_frame, grad_line, grad_column)
        grad_rows = grad + clip * grad_batch + grad_rows
        values = ()
        squares = tl.full((POSITIONS, CHUNK), 0, tl.float32)
        for first in tl.static_range(0, CHANNELS, CHUNK):
            channels = first + tl.arange(0, CHUNK)
            pointers = x_rows[:, None] + channels.to(tl.int64)[None, :] * x_channel
            value = tl.load(pointers, mask=inside & (channels < CHANNELS)[None, :], other=0)
            values += (value,)
            wide = value.to(tl.float32)
            squares += wide * wide
        square = tl.sum(squares, 1, keep_dims=True)
        inverse = invert_norm(square)
        slopes = ()
        products = tl.full((POSITIONS, CHUNK), 0, tl.float32)
        new_totals = ()
        for first in tl.static_range(0, CHANNELS, CHUNK):
            channels = first + tl.arange(0, CHUNK)
            pointers = grad_rows[:, None] + channels.to(tl.int64)[None, :] * grad_channel
            slope = tl.load(pointers, mask=inside & (channels < CHANNELS)[None, :], other=0)
            scale = ROOT * load_floats(gamma, channels, POSITIONS, CHANNELS)
            unit = tl.cast(values[first // CHUNK], tl.float32) * inverse
            slope = slope.to(tl.float32) * differentiate(unit * scale, ACTIVATION)
            new_totals += (totals[first // CHUNK] + slope * unit,)
            slope = slope * scale
            products += slope * unit
            slopes += (slope,)
        totals = new_totals
        product = tl.sum(products, 1, keep_dims=True) * norm_slope(square)
        rows = clip * end + start + lanes
        for first in tl.static_range(0, CHANNELS, CHUNK):
            channels = first + tl.arange(0, CHUNK)
            unit = tl.cast(values[first // CHUNK], tl.float32) * inverse
            wide = (slopes[first // CHUNK] - unit * product) * inverse
            tl.store(
                of_x + rows[:, None] * CHANNELS + channels[None, :],
                wide.to(of_x.dtype.element_ty),
                mask=inside & (channels < CHANNELS)[None, :],
            )
    for first in tl.static_range(0, CHANNELS, CHUNK):
        channels = first + tl.arange(0, CHUNK)
        total = ROOT * tl.sum(totals[first // CHUNK], 0)
        places = sums + tl.program_id(0) * CHANNELS + channels
        tl.store(places, total, mask=channels < CHANNELS)
