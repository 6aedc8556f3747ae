"""The operator ``add_``: a residual addition in place."""

# Triton's loops are not Python's.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wanvae.nn.kernels.gpu.programs.arithmetic import load_floats
from wanvae.nn.kernels.gpu.programs.rows import as_video, choose_block, dense, locate, strides_of
from wanvae.nn.kernels.gpu.programs.settings import Settings, grid, launch_first


def add_(y: Tensor, bias: Tensor | None, shortcut: Tensor) -> Tensor:
    """Computes ``wanvae.nn.kernels.gpu.plain.add_``.

    It reads ``y`` and ``shortcut`` and writes ``y``.
    """
    if not y.numel():
        return y
    video, added = as_video(y), as_video(shortcut)
    batch, channels, frames, height, width = video.shape
    chunk, positions = choose_block(channels, y.dtype)

    def launch(settings: Settings) -> None:
        block = positions * settings.scale
        grid(add_program, batch * triton.cdiv(frames * height * width, block))(
            video,
            dense(bias),
            added,
            *strides_of(video),
            *strides_of(added),
            frames,
            height,
            width,
            CHANNELS=channels,
            CHUNK=chunk,
            POSITIONS=block,
            num_warps=settings.warps,
        )

    # Nothing is measured, because each launch adds once more.
    launch_first(launch, y)
    return y


@triton.jit(do_not_specialize=["frames", "height", "width"])
def add_program(
    y,
    bias,
    shortcut,
    y_batch,
    y_channel,
    y_frame,
    y_line,
    y_column,
    shortcut_batch,
    shortcut_channel,
    shortcut_frame,
    shortcut_line,
    shortcut_column,
    frames,
    height,
    width,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Adds ``bias`` (or None) and a block of ``shortcut`` to a block of ``y``."""
    end = height.to(tl.int64) * width * frames
    blocks = tl.cdiv(end, POSITIONS)
    clip = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * POSITIONS
    lanes = tl.arange(0, POSITIONS)
    inside = (start + lanes < end)[:, None]
    y += clip * y_batch + locate(start, lanes, height, width, y_frame, y_line, y_column)
    shortcut += clip * shortcut_batch
    shortcut += locate(start, lanes, height, width, shortcut_frame, shortcut_line, shortcut_column)
    for first in tl.static_range(0, CHANNELS, CHUNK):
        channels = first + tl.arange(0, CHUNK)
        far = channels.to(tl.int64)[None, :]
        mask = inside & (channels < CHANNELS)[None, :]
        places = y[:, None] + far * y_channel
        added = tl.load(shortcut[:, None] + far * shortcut_channel, mask=mask, other=0)
        wide = tl.load(places, mask=mask, other=0).to(tl.float32)
        wide += load_floats(bias, channels, POSITIONS, CHANNELS)
        wide += added.to(tl.float32)
        tl.store(places, wide.to(y.dtype.scalar.element_ty), mask=mask)
