"""The architecture of a model, read off the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from wanvae.config import WanVAEConfig


@dataclass
class Stage:
    """What the names of one stage of an encoder or decoder show, while they are read."""

    first_layer: str
    blocks: int = 0
    attention: bool = False
    temporal: bool = False


def infer_config(tensors: Mapping[str, Tensor]) -> WanVAEConfig:
    """Read the architecture off tensors with official names; all else stays at its default.

    Only as much is read as tells it: whether the rest fits is for ``check_tensors``.

    Raises:
        ValueError: a tensor that tells it is missing or has an impossible shape; it is named.
    """
    encoder = read_stages(tensors, "encoder.downsamples")
    decoder = read_stages(tensors, "decoder.upsamples")
    dim, in_channels = conv_channels(tensors, "encoder.conv1.weight")
    out_channels, _ = conv_channels(tensors, "decoder.head.2.weight")
    z_dim, _ = conv_channels(tensors, "conv2.weight")
    multiples = []
    for stage in encoder:
        name = f"{stage.first_layer}.residual.2.weight"
        width, _ = conv_channels(tensors, name)
        if width % dim:
            raise ValueError(
                f"{name} has {width} output channels, no multiple of the {dim} of "
                "encoder.conv1.weight"
            )
        multiples.append(width // dim)
    scales = {0.5**i for i, stage in enumerate(encoder) if stage.attention}
    scales |= {2.0 ** (i + 2 - len(decoder)) for i, stage in enumerate(decoder) if stage.attention}
    return WanVAEConfig(
        dim=dim,
        z_dim=z_dim,
        dim_mult=tuple(multiples),
        num_res_blocks=encoder[0].blocks,
        attn_scales=tuple(sorted(scales)),
        temporal_downsample=tuple(stage.temporal for stage in encoder[:-1]),
        in_channels=in_channels,
        out_channels=out_channels,
    )


def read_stages(names: Iterable[str], row: str) -> list[Stage]:
    """The stages of the layers ``row.0``, ``row.1``, ...; each but the last ends by resampling."""
    parts: dict[int, set[str]] = {}
    for name in names:
        if match := re.match(rf"{re.escape(row)}\.(\d+)\.(\w+)\.", name):
            parts.setdefault(int(match[1]), set()).add(match[2])
    stages = [Stage(f"{row}.0")]
    for index in range(len(parts)):
        if index not in parts:
            raise ValueError(f"{row}.{index} is missing: no tensor is named so")
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
        raise ValueError(f"{name} is missing, which would tell the architecture")
    shape = tensors[name].shape
    if len(shape) != 5 or 0 in shape:
        raise ValueError(f"{name} is {tuple(shape)}, not the weight of a 3D convolution")
    return shape[0], shape[1]
