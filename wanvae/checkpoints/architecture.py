"""The architecture of a model, read off the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from wanvae.config import WanVAEConfig
from wanvae.errors import UserError

# Sides of the patches of published models.
PATCH = 2


@dataclass
class Stage:
    """What the names of one stage of an encoder or decoder show, while they are read."""

    first_layer: str
    blocks: int = 0
    attention: bool = False
    temporal: bool = False


def infer_config(tensors: Mapping[str, Tensor]) -> WanVAEConfig:
    """Read the architecture off tensors with official names; all else stays at its default.

    Only as much is read as tells it: whether the rest fits is for ``check_tensors``. Models with
    stage shortcuts work on patches of 2x2 pixels if their channels can be such; other models whose
    decoder makes four times the channels of the video make it twice as large instead.

    Raises:
        ValueError: a tensor that tells it is missing or has an impossible shape; it is named.
    """
    nested = is_nested(tensors)
    read = read_nested_stages if nested else read_stages
    encoder = read(tensors, "encoder.downsamples")
    decoder = read(tensors, "decoder.upsamples")
    dim, first = conv_channels(tensors, "encoder.conv1.weight")
    last, _ = conv_channels(tensors, "decoder.head.2.weight")
    z_dim, _ = conv_channels(tensors, "conv2.weight")
    multiples = [stage_width(tensors, stage, dim, "encoder.conv1.weight") for stage in encoder]
    # The decoder's last stage mirrors the encoder's first.
    decoder_dim = stage_width(tensors, decoder[-1], multiples[0], "dim_mult")
    patched = nested and first % PATCH**2 == last % PATCH**2 == 0
    scales = {0.5**i for i, stage in enumerate(encoder) if stage.attention}
    scales |= {2.0 ** (i + 2 - len(decoder)) for i, stage in enumerate(decoder) if stage.attention}
    return WanVAEConfig(
        dim=dim,
        z_dim=z_dim,
        dim_mult=tuple(multiples),
        num_res_blocks=encoder[0].blocks,
        attn_scales=tuple(sorted(scales)),
        temporal_downsample=tuple(stage.temporal for stage in encoder[:-1]),
        decoder_dim=None if decoder_dim == dim else decoder_dim,
        stage_shortcuts=nested,
        **channel_fields(first, last, PATCH if patched else 1),
    )


def channel_fields(first: int, last: int, patch_size: int) -> dict[str, int]:
    """What the channels that the first layer reads and the last one makes say of the video.

    Raises:
        ValueError: they are not those of patches of this size.
    """
    if first % patch_size**2 or last % patch_size**2:
        raise UserError(
            f"{first} input and {last} output channels are not those of patches of {patch_size}"
        )
    upscale_factor = 2 if patch_size == 1 and last == 4 * first else 1
    return {
        "in_channels": first // patch_size**2,
        "out_channels": last // (patch_size * upscale_factor) ** 2,
        "patch_size": patch_size,
        "upscale_factor": upscale_factor,
    }


def is_nested(names: Iterable[str]) -> bool:
    """Whether the layers of each stage have a common name, as those with shortcuts do."""
    return any(name.startswith("encoder.downsamples.0.downsamples.") for name in names)


def stage_width(tensors: Mapping[str, Tensor], stage: Stage, unit: int, of: str) -> int:
    """Channels of a stage as a multiple of ``unit``, which ``of`` says."""
    name = f"{stage.first_layer}.residual.2.weight"
    width, _ = conv_channels(tensors, name)
    if width % unit:
        raise UserError(f"{name} has {width} output channels, no multiple of the {unit} of {of}")
    return width // unit


def read_nested_stages(names: Iterable[str], row: str) -> list[Stage]:
    """The stages ``row.0``, ``row.1``, ..., each with a row of layers that has the same name."""
    names, inner = list(names), row.split(".")[-1]
    pattern = rf"{re.escape(row)}\.(\d+)\."
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    count = 1 + max(found, default=0)
    return [read_stages(names, f"{row}.{index}.{inner}")[0] for index in range(count)]


def read_stages(names: Iterable[str], row: str) -> list[Stage]:
    """The stages of the layers ``row.0``, ``row.1``, ...; each but the last ends by resampling."""
    parts: dict[int, set[str]] = {}
    for name in names:
        if match := re.match(rf"{re.escape(row)}\.(\d+)\.(\w+)\.", name):
            parts.setdefault(int(match[1]), set()).add(match[2])
    stages = [Stage(f"{row}.0")]
    for index in range(len(parts)):
        if index not in parts:
            raise UserError(f"{row}.{index} is missing: no tensor is named so")
        if parts[index] & {"resample", "time_conv"}:
            stages[-1].temporal = "time_conv" in parts[index]
            stages.append(Stage(f"{row}.{index + 1}"))
        elif parts[index] & {"residual", "shortcut"}:
            stages[-1].blocks += 1
        else:
            stages[-1].attention = True
    return stages


def conv_channels(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Output and input channels of the 3D convolution whose weight is called ``name``."""
    if name not in tensors:
        raise UserError(f"{name} is missing, which would tell the architecture")
    shape = tensors[name].shape
    if len(shape) != 5 or 0 in shape:
        raise UserError(f"{name} is {tuple(shape)}, not the weight of a 3D convolution")
    return shape[0], shape[1]
