"""The architecture of a model, inferred from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from wanvae.config import RGBA, Half, WanVAEConfig
from wanvae.errors import UserError

# Side of the patches of published models.
PATCH = 2
# Channels of videos: RGB and RGBA.
PIXELS = (3, 4)
# Channels of the last layer of published decoders that upscale by 2.
UPSCALED = 12
# The decoder of alpha inside the decoder of colour.
ALPHA_DECODER = "decoder.alpha."


@dataclass
class StageFacts:
    """Facts of one stage of an encoder or decoder that the names of its tensors show.

    Attributes:
        first_layer: name of the first layer.
        blocks: number of residual blocks.
        attention: whether attention follows the blocks.
        temporal: whether the stage ends by resampling time.
    """

    first_layer: str
    blocks: int = 0
    attention: bool = False
    temporal: bool = False


def infer_config(tensors: Mapping[str, Tensor]) -> WanVAEConfig:
    """Infers the architecture from tensors with official names. Other fields keep their defaults.

    Only the tensors that tell the architecture are read; ``check_tensors`` checks all of them.
    A model whose kernels have no extent in time is an image model. A model with stage shortcuts has
    patches of 2x2 pixels if its layers read and write as many channels as such patches of RGB or
    RGBA have. Any other model whose decoder returns four times the channels of the video upscales
    by 2. A model with a decoder inside its decoder decodes alpha with it.

    Raises:
        UserError: a tensor that tells the architecture is missing or has an impossible shape; the
            message names it.
    """
    half = half_of(tensors)
    if half is not None:
        return infer_half(tensors, half)
    nested = is_nested(tensors)
    read = read_nested_stages if nested else read_stages
    encoder = read(tensors, "encoder.downsamples")
    decoder = read(tensors, "decoder.upsamples")
    dim, first = conv_channels(tensors, "encoder.conv1.weight")
    last, _ = conv_channels(tensors, "decoder.head.2.weight")
    z_dim, _ = conv_channels(tensors, "conv2.weight")
    multiples = [stage_width(tensors, stage, dim, "encoder.conv1.weight") for stage in encoder]
    # The last stage of the decoder mirrors the first stage of the encoder.
    decoder_dim = stage_width(tensors, decoder[-1], multiples[0], "dim_mult")
    images = kernel_in_time(tensors, "decoder.head.2.weight") == 1
    patch_size = patch_of(first, last, images=images) if nested else 1
    scales = encoder_scales(encoder) | decoder_scales(decoder)
    config = WanVAEConfig(
        dim=dim,
        z_dim=z_dim,
        dim_mult=tuple(multiples),
        num_res_blocks=encoder[0].blocks,
        attn_scales=tuple(sorted(scales)),
        temporal_downsample=tuple(stage.temporal for stage in encoder[:-1]),
        decoder_dim=None if decoder_dim == dim else decoder_dim,
        decoder_res_blocks=depth_of_decoder(encoder[0].blocks, decoder[0].blocks),
        stage_shortcuts=nested,
        ndim=2 if images else 3,
    )
    config = replace(config, **channel_fields(first, last, patch_size))
    if any(name.startswith(ALPHA_DECODER) for name in tensors):
        return replace(config, alpha_decoder=True, out_channels=RGBA)
    return config


def patch_of(*channels: int, images: bool) -> int:
    """Returns the side of the patches of a model with stage shortcuts.

    Args:
        channels: channels that the first layer reads and that the last layer writes, or one of
            both.
        images: whether it is an image model.

    Raises:
        UserError: the channels fit several sides.
    """
    if all(count in [PATCH**2 * pixels for pixels in PIXELS] for count in channels):
        return PATCH
    # Qwen-Image 2.1 is an image model of RGBA. No image model of gray patches is known.
    rgba = images and set(channels) == {4}
    if rgba or any(count % PATCH**2 for count in channels):
        return 1
    raise UserError(
        f"its layers for pixels have {' and '.join(map(str, channels))} channels, which may be "
        "channels of pixels or of patches of 2x2 pixels, and nothing in the file tells which; "
        "convert it from a native or a diffusers checkpoint, which do"
    )


def half_of(names: Iterable[str]) -> Half | None:
    """Returns the only half of a model that tensors with these names have; None if both."""
    roots = {name.split(".", 1)[0] for name in names}
    if "encoder" in roots and "decoder" in roots:
        return None
    return "encoder" if "encoder" in roots else "decoder"


def infer_half(tensors: Mapping[str, Tensor], half: Half) -> WanVAEConfig:
    """Infers the architecture of a model from one half of it, as ``infer_config`` does.

    What only the other half tells is taken to be the same. The decoder is an upscaling decoder of
    RGB videos if it is no model with stage shortcuts and returns 12 channels.
    """
    nested = is_nested(tensors)
    encoding = half == "encoder"
    row = "encoder.downsamples" if encoding else "decoder.upsamples"
    stages = (read_nested_stages if nested else read_stages)(tensors, row)
    if encoding:
        dim, pixels = conv_channels(tensors, "encoder.conv1.weight")
        moments, _ = conv_channels(tensors, "conv1.weight")
        z_dim, blocks, unit = moments // 2, stages[0].blocks, "encoder.conv1.weight"
        scales, ends = encoder_scales(stages), "encoder.conv1.weight"
    else:
        z_dim, _ = conv_channels(tensors, "conv2.weight")
        pixels, _ = conv_channels(tensors, "decoder.head.2.weight")
        unit = f"{stages[-1].first_layer}.residual.2.weight"
        dim, _ = conv_channels(tensors, unit)
        blocks, scales = max(1, stages[0].blocks - 1), decoder_scales(stages)
        ends = "decoder.head.2.weight"
    images = kernel_in_time(tensors, ends) == 1
    multiples = [stage_width(tensors, stage, dim, unit) for stage in stages]
    steps = [stage.temporal for stage in stages[:-1]]
    order = 1 if encoding else -1
    patch_size = patch_of(pixels, images=images) if nested else 1
    upscaled = not encoding and not nested and pixels == UPSCALED
    config = WanVAEConfig(
        dim=dim,
        z_dim=z_dim,
        dim_mult=tuple(multiples[::order]),
        num_res_blocks=blocks,
        decoder_res_blocks=None if encoding else depth_of_decoder(blocks, stages[0].blocks),
        attn_scales=tuple(sorted(scales)),
        temporal_downsample=tuple(steps[::order]),
        stage_shortcuts=nested,
        ndim=2 if images else 3,
        half=half,
    )
    first = pixels // 4 if upscaled else pixels
    return replace(config, **channel_fields(first, pixels, patch_size))


def depth_of_decoder(encoder: int, decoder: int) -> int | None:
    """Returns ``decoder_res_blocks`` from the blocks of a stage of both halves."""
    return None if decoder == encoder + 1 else decoder


def encoder_scales(stages: Sequence[StageFacts]) -> set[float]:
    """Returns the scales at which attention follows the blocks of an encoder."""
    return {0.5**i for i, stage in enumerate(stages) if stage.attention}


def decoder_scales(stages: Sequence[StageFacts]) -> set[float]:
    """Returns the scales at which attention follows the blocks of a decoder."""
    return {2.0 ** (i + 2 - len(stages)) for i, stage in enumerate(stages) if stage.attention}


def channel_fields(first: int, last: int, patch_size: int) -> dict[str, int]:
    """Returns the fields of the config that the channels of the first and last layer tell.

    Args:
        first: channels that the first layer reads.
        last: channels that the last layer writes.

    Raises:
        UserError: such channels cannot come from patches of this size.
    """
    if first % patch_size**2 or last % patch_size**2:
        raise UserError(
            f"{first} input and {last} output channels do not fit patches of {patch_size}"
        )
    upscale_factor = 2 if patch_size == 1 and last == 4 * first else 1
    return {
        "in_channels": first // patch_size**2,
        "out_channels": last // (patch_size * upscale_factor) ** 2,
        "patch_size": patch_size,
        "upscale_factor": upscale_factor,
    }


def is_nested(names: Iterable[str]) -> bool:
    """Returns whether the layers of a stage share a name, as in models with stage shortcuts."""
    rows = ("encoder.downsamples.0.downsamples.", "decoder.upsamples.0.upsamples.")
    return any(name.startswith(rows) for name in names)


def stage_width(tensors: Mapping[str, Tensor], stage: StageFacts, unit: int, of: str) -> int:
    """Returns the channels of a stage as a multiple of ``unit``, the channels of ``of``."""
    name = f"{stage.first_layer}.residual.2.weight"
    width, _ = conv_channels(tensors, name)
    if width % unit:
        raise UserError(f"{name} has {width} output channels, no multiple of the {unit} of {of}")
    return width // unit


def read_nested_stages(names: Iterable[str], row: str) -> list[StageFacts]:
    """Returns the stages ``row.0``, ``row.1``, ..., each with a row of layers of the same name."""
    names, inner = list(names), row.split(".")[-1]
    pattern = rf"{re.escape(row)}\.(\d+)\."
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    count = 1 + max(found, default=0)
    return [read_stages(names, f"{row}.{index}.{inner}")[0] for index in range(count)]


def read_stages(names: Iterable[str], row: str) -> list[StageFacts]:
    """Returns the stages of the layers ``row.0``, ``row.1``, ... Resampling ends a stage."""
    parts: dict[int, set[str]] = {}
    for name in names:
        if match := re.match(rf"{re.escape(row)}\.(\d+)\.(\w+)\.", name):
            parts.setdefault(int(match[1]), set()).add(match[2])
    stages = [StageFacts(f"{row}.0")]
    for index in range(len(parts)):
        if index not in parts:
            raise UserError(f"{row}.{index} is missing: no tensor has this name")
        if parts[index] & {"resample", "time_conv"}:
            stages[-1].temporal = "time_conv" in parts[index]
            stages.append(StageFacts(f"{row}.{index + 1}"))
        elif parts[index] & {"residual", "shortcut"}:
            stages[-1].blocks += 1
        else:
            stages[-1].attention = True
    return stages


def kernel_in_time(tensors: Mapping[str, Tensor], name: str) -> int:
    """Returns the extent in time of the kernel of the 3D convolution with the weight ``name``."""
    conv_channels(tensors, name)
    return tensors[name].shape[2]


def conv_channels(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Returns output and input channels of the 3D convolution with the weight ``name``."""
    if name not in tensors:
        raise UserError(f"{name} is missing, but tells the architecture")
    shape = tensors[name].shape
    if len(shape) != 5 or 0 in shape:
        raise UserError(f"{name} is {tuple(shape)}, not the weight of a 3D convolution")
    return shape[0], shape[1]
