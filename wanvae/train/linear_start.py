"""A linear codec as the start of a small video VAE that is trained from nothing.

Residual blocks and attention add zero at first, so a clip passes through their shortcuts. The
convolutions on this way are set in two steps:

1. The encoder keeps principal components of clips, resolution by resolution: components of squares
   of 2x2 positions and, where time is halved, means of pairs of frames and components of their
   differences.
2. The convolutions of the decoder are solved by least squares, one after the other, to give what
   the encoder had at the same place.

Both heads are nearly linear, because a channel before them is constant: RMS norm then divides by
almost the same number everywhere, and SiLU of a small value is about half of it. The decoder also
has the negative of each value there, because SiLU(x) - SiLU(-x) = x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from wanvae.config import WanVAEConfig
from wanvae.engine.config import check
from wanvae.errors import UserError
from wanvae.model import WanVAE
from wanvae.nn import (
    AttentionBlock,
    CausalConv,
    Downsample,
    ResidualBlock,
    RMSNorm,
    Sequential,
    Upsample,
)
from wanvae.train.initialize import FIRST_LOGVAR
from wanvae.train.least_squares import find_components, project, solve
from wanvae.train.shortcuts import Shortcuts, shortcuts_of
from wanvae.train.upscaling import check_learns

# The fields of a config that a linear codec needs, and their values.
NEEDED = {
    "ndim": 3,
    "block": "residual",
    "norm": "rms",
    "activation": "silu",
    "stage_shortcuts": False,
    "upscale_factor": 1,
}
# The fewest channels at full resolution. Upsampling halves them, and one of them is constant.
LEAST_DIM = 4
# The last channel of each layer before a head. Pixels are in [-1, 1].
CONSTANT = 3.0
# What is left of the random weights of channels without content, so that they can learn.
SMALL = 0.02
# The factor of values before SiLU: small in the encoder, which has no room for their negatives.
ENCODER_SCALE, DECODER_SCALE = 0.15, 1.0


@dataclass(frozen=True)
class Level:
    """What the encoder has of the clips at one resolution, for the decoder to give.

    Attributes:
        frames: ``(B, C, T, H, W)`` of each clip, before time is halved.
        content: after time is halved, if it is.
    """

    frames: list[Tensor]
    content: list[Tensor]


def check_linear(config: WanVAEConfig) -> None:
    """Raises UserError if a model of this config cannot start as a linear codec."""
    check_learns(config)
    for name, needed in NEEDED.items():
        value = getattr(config, name)
        check(value == needed, f"model.{name}", value, f"{needed} to start from a linear codec")
    for name in ("dim", "decoder_dim"):
        value = getattr(config, name) or config.dim
        check(value >= LEAST_DIM, f"model.{name}", value, f"at least {LEAST_DIM}")


@torch.no_grad()
def start_linear(vae: WanVAE, clips: Sequence[Tensor], generator: torch.Generator) -> None:
    """Changes a new model to a linear codec; shows progress bars.

    Args:
        vae: with random weights, on the CPU.
        clips: ``(B, C, T, H, W)`` in [-1, 1], of any sizes that the model can encode. They, and
            what layers compute of them, are held in memory.
        generator: of noise, and of the positions that fits see.

    Raises:
        UserError: the config does not allow a linear codec, or the model halves time and all clips
            have one frame.
    """
    check_linear(vae.config)
    if vae.config.temporal_factor > 1 and max(clip.shape[2] for clip in clips) == 1:
        raise UserError(
            "the model halves time, but all crops have one frame: take crops of "
            f"{1 + vae.config.temporal_factor} or more (data.frames)"
        )
    silence(vae)
    levels = fit_encoder(vae, clips)
    latents = [Shortcuts(vae).encode(clip, generator) for clip in clips]
    solve_decoder(vae, latents, levels, generator)


def silence(vae: WanVAE) -> None:
    """Makes residual branches zero, other convolutions nearly zero, and latents nearly certain."""
    for layer in Shortcuts(vae).modules():
        if isinstance(layer, CausalConv):
            layer.weight.mul_(SMALL)
            layer.bias.zero_()
    for block in vae.modules():
        if isinstance(block, (ResidualBlock, AttentionBlock)):
            last = block.proj if isinstance(block, AttentionBlock) else conv_of(block.body)
            last.weight.zero_()
            last.bias.zero_()
    for conv in (vae.conv1, vae.conv2):
        write_pointwise(conv, torch.eye(vae.config.z_dim), constant=None)
    vae.conv1.bias[vae.config.z_dim :] = FIRST_LOGVAR


def fit_encoder(vae: WanVAE, clips: Sequence[Tensor]) -> list[Level]:
    """Sets the encoder to components of clips; returns all levels, from pixels to latents."""
    values = [vae.encoder.patches(clip) for clip in clips]
    used, signed = values[0].shape[1], [torch.cat([x, -x], dim=1) for x in values]
    levels = [Level(signed, signed)]
    for layer in tqdm(shortcuts_of(vae.encoder)[len(vae.encoder.patches) :], "components"):
        content, frames = [x[:, :used] for x in values], []
        if isinstance(layer, CausalConv):
            rows, _ = find_components(content, layer.weight.shape[0] - 1)
            write_pointwise(layer, rows)
            used = len(rows)
        elif isinstance(layer, Downsample):
            frames, used = fit_downsampling(layer, content)
        elif isinstance(layer, Sequential):
            set_scale(layer, values, ENCODER_SCALE)
            rows, _ = find_components(content, vae.config.z_dim)
            # SiLU halves.
            write_pointwise(conv_of(layer), 2 / ENCODER_SCALE * rows, constant=None)
        values = [layer(x) for x in values]
        if frames:
            levels.append(Level(frames, [x[:, :used] for x in values]))
    return levels


def fit_downsampling(layer: Downsample, content: list[Tensor]) -> tuple[list[Tensor], int]:
    """Sets a downsampling to components of squares of positions, and then of pairs of frames.

    Means of pairs keep the channels of their frames, as the first frame of a clip does. Differences
    have channels of their own: each takes the place of a mean that varies less.

    Returns:
        The frames before time is halved, and the number of channels with content after.
    """
    used, room = content[0].shape[1], layer.conv.weight.shape[0] - 1
    pattern = "b c t (h p) (w q) -> b (c p q) t h w"
    squares = [rearrange(x, pattern, p=2, q=2) / 2 for x in content]
    rows, _ = find_components(squares)
    frames, kept = [project(x, rows) for x in squares], room
    pairs = list(zip(*split_pairs(frames), strict=True))
    if layer.along_time is not None:
        _, of_means = find_components([(a + b) / 2 for a, b in pairs])
        _, of_differences = find_components([(a - b) / 2 for a, b in pairs])
        order = torch.cat([of_means, of_differences]).argsort(descending=True, stable=True)
        kept = int((order[:room] < len(rows)).sum())
    rows, frames = rows[:kept], [x[:, :kept] for x in frames]
    write(layer.conv, F.pad(rows.unflatten(1, (used, 2, 2)) / 2, (0, 1, 0, 1)))
    if layer.along_time is None:
        return frames, len(rows)
    differing, _ = find_components([(a - b)[:, :kept] for a, b in pairs], room - len(rows))
    earlier, later = (torch.cat([torch.eye(len(rows)), sign * differing]) / 2 for sign in (1, -1))
    kernel = torch.stack([torch.zeros_like(earlier), earlier, later], dim=-1)
    write(layer.along_time, kernel[..., None, None])
    return frames, len(kernel)


def solve_decoder(
    vae: WanVAE, latents: list[Tensor], levels: list[Level], generator: torch.Generator
) -> None:
    """Solves the convolutions of the decoder, one after the other."""
    pixels = [x.chunk(2, dim=1)[0] for x in levels[0].content]
    level, finer = levels[-1], reversed(levels[:-1])
    values = [vae.conv2(x) for x in latents]
    for layer in tqdm(shortcuts_of(vae.decoder), "least squares"):
        if isinstance(layer, CausalConv):
            level = narrow(level, layer.weight.shape[0] - 1)
            write(layer, *solve(layer, values, level.content, generator))
        elif isinstance(layer, Upsample):
            seen = values
            if layer.along_time is not None:
                seen = solve_time(layer.along_time, values, level.frames, generator)
            level = narrow(next(finer), layer.conv.weight.shape[0] - 1)
            doubled = [x.repeat_interleave(2, 3).repeat_interleave(2, 4) for x in seen]
            write(layer.conv, *solve(layer.conv, doubled, level.content, generator))
        elif isinstance(layer, Sequential):
            set_scale(layer, values, DECODER_SCALE)
            conv, seen = conv_of(layer), [layer[1](layer[0](x)) for x in values]
            write(conv, *solve(conv, seen, pixels, generator), constant=None)
        values = [layer(x) for x in values]


def narrow(level: Level, room: int) -> Level:
    """Returns a level of at most ``room`` channels, if need be as their principal components.

    The first frame of a clip stays what it is when time is doubled, so frames change like content.
    """
    if level.content[0].shape[1] <= room:
        return level
    rows, _ = find_components(level.content, room)
    frames = [project(x, rows[:, : x.shape[1]]) for x in level.frames]
    return Level(frames, [project(x, rows) for x in level.content])


def solve_time(
    conv: CausalConv, values: list[Tensor], frames: list[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """Solves a convolution that doubles time; returns ``values`` with their time doubled."""
    width = conv.weight.shape[1]
    later = [x[:, :, 1:] for x in values if x.shape[2] > 1]
    for half, goal in enumerate(split_pairs(frames)):
        channels = slice(half * width, (half + 1) * width)
        write(conv, *solve(conv, later, goal, generator), channels=channels)
    pattern = "b (two c) t h w -> b c (t two) h w"
    doubled = (rearrange(conv(x), pattern, two=2) for x in later)
    return [torch.cat([x[:, :, :1], next(doubled)], dim=2) if x.shape[2] > 1 else x for x in values]


def split_pairs(frames: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the first and the second frames of the pairs that follow the first frame of a clip.

    Clips of one frame are left out.
    """
    longer = [x for x in frames if x.shape[2] > 1]
    return [x[:, :, 1::2] for x in longer], [x[:, :, 2::2] for x in longer]


def conv_of(row: Sequential) -> CausalConv:
    """Returns the convolution that a row ends with."""
    conv = row[-1]
    assert isinstance(conv, CausalConv)
    return conv


def set_scale(head: Sequential, values: list[Tensor], scale: float) -> None:
    """Sets the norm of a head to multiply vectors of channels of mean length by ``scale``."""
    norm = head[0]
    assert isinstance(norm, RMSNorm)
    squares = torch.stack([x.square().sum(1).mean() for x in values])
    norm.gamma.fill_(scale * math.sqrt(float(squares.mean()) / values[0].shape[1]))


def write_pointwise(conv: CausalConv, rows: Tensor, constant: float | None = CONSTANT) -> None:
    """Writes a kernel that multiplies the channels of each position by ``rows``, ``(K, C)``."""
    kernel = rows.new_zeros(*rows.shape, *conv.kernel_size)
    kernel[:, :, -1, kernel.shape[3] // 2, kernel.shape[4] // 2] = rows
    write(conv, kernel, constant=constant)


def write(
    conv: CausalConv,
    kernel: Tensor,
    bias: Tensor | None = None,
    *,
    constant: float | None = CONSTANT,
    channels: slice = slice(None),
) -> None:
    """Writes a kernel ``(K, C, ...)`` to the first channels of a convolution.

    Args:
        bias: None is zero.
        constant: makes the last channel this number; None leaves it as it is.
        channels: the part of the channels that is meant.
    """
    weight, offset = conv.weight[channels], conv.bias[channels]
    weight[: len(kernel)] = 0
    weight[: len(kernel), : kernel.shape[1]] = kernel
    offset[: len(kernel)] = 0 if bias is None else bias
    if constant is not None:
        weight[-1], offset[-1] = 0, constant
