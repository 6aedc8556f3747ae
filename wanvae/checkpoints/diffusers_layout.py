"""The names of our tensors and config fields in diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from wanvae.checkpoints.architecture import channel_fields
from wanvae.checkpoints.latent_statistics import NO_STATISTICS, with_known_statistics
from wanvae.config import QWEN_IMAGE_21, WanVAEConfig
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.config import from_json_dict, to_json_dict
from wanvae.engine.json_files import read_json
from wanvae.engine.stored_tensors import StoredTensors
from wanvae.engine.text import first_few, first_sentence
from wanvae.errors import UserError

DIFFUSERS_CONFIG = "config.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
# Our fields by their names in the config.json of every diffusers class.
FIELDS = {
    "base_dim": "dim",
    "z_dim": "z_dim",
    "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks",
    "temperal_downsample": "temporal_downsample",
    "dropout": "dropout",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
}
WAN_FIELDS = {
    "decoder_base_dim": "decoder_dim",
    "is_residual": "stage_shortcuts",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "patch_size": "patch_size",
}
QWEN_IMAGE_FIELDS = {"input_channels": "in_channels"}
# Keys of config.json that follow from the other keys.
FACTORS = {
    "scale_factor_temporal": "temporal_factor",
    "scale_factor_spatial": "spatial_factor",
}
# Keys of a config.json that change no result: how to save memory, and what this package does too.
NO_EFFECT = frozenset(
    {
        "clip_output",
        "force_upcast",
        "sample_size",
        "tile_sample_min_height",
        "tile_sample_min_width",
        "tile_sample_stride_height",
        "tile_sample_stride_width",
        "use_slicing",
        "use_tiling",
    }
)
# Values that ask for nothing, whatever the key is.
NOTHING: tuple[object, ...] = (None, False, "", [], {})
# Values of keys that scale latents, which do not scale them.
NEUTRAL = {"scaling_factor": 1, "shift_factor": 0}
# The classes of diffusers that a model may have there.
DiffusersClass = Literal["AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLQwenImage21"]
WAN_CLASS: DiffusersClass = "AutoencoderKLWan"
QWEN_IMAGE_CLASS: DiffusersClass = "AutoencoderKLQwenImage"
# Its convolutions are 2D, so weights have no axis of time. Its factor of time has no meaning.
QWEN_IMAGE_21_CLASS: DiffusersClass = "AutoencoderKLQwenImage21"
CLASSES = {
    WAN_CLASS: WAN_FIELDS,
    QWEN_IMAGE_CLASS: QWEN_IMAGE_FIELDS,
    QWEN_IMAGE_21_CLASS: WAN_FIELDS,
}
QWEN_IMAGE_21_TIME = {"scale_factor_temporal": 8}

# Layers whose kernels have no axis of time in any layout.
FLAT = ("resample.1.weight", "to_qkv.weight", "proj.weight")

# Names inside a layer, official and in diffusers.
RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}
RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
ENDS = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
STATISTICS = ("latents_mean", "latents_std")


def weight_names(variant: str | None = None) -> Iterator[str]:
    """Yields the names that the file of weights may have, or the index of its parts.

    Args:
        variant: like "fp16"; None is the plain model.
    """
    ending = f".{variant}" if variant else ""
    for kind in ("safetensors", "bin"):
        yield f"diffusion_pytorch_model{ending}.{kind}"
        yield f"diffusion_pytorch_model.{kind}.index{ending}.json"


def diffusers_names(stages: int, blocks: int, nested: bool = False) -> dict[str, str]:
    """Returns the diffusers name of each tensor, by its official name.

    The names cover all models of this size: they have a shortcut for every block and a time_conv
    for every change of resolution.

    Args:
        stages: number of stages.
        blocks: residual blocks per stage of the encoder.
        nested: whether the layers of a stage share a name, as in models with stage shortcuts.
    """
    return {
        f"{official}{ours}.{leaf}": f"{theirs}{other}.{leaf}"
        for official, theirs, inside in diffusers_modules(stages, blocks, nested)
        for ours, other in inside.items()
        for leaf in (("gamma",) if other.startswith("norm") else ("weight", "bias"))
    }


def diffusers_modules(
    stages: int, blocks: int, nested: bool
) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Yields the official prefix of each module, its prefix in diffusers, and the names inside."""
    yield "", "", {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for coder in ("encoder.", "decoder."):
        yield coder, coder, ENDS
        yield f"{coder}middle.0.", f"{coder}mid_block.resnets.0.", RESIDUAL
        yield f"{coder}middle.1.", f"{coder}mid_block.attentions.0.", ATTENTION
        yield f"{coder}middle.2.", f"{coder}mid_block.resnets.1.", RESIDUAL
    for stage in range(stages):
        yield from (nested_stage_modules if nested else stage_modules)(stage, blocks)


def stage_modules(stage: int, blocks: int) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Yields ``diffusers_modules`` of a stage in a model with one row of layers for all stages."""
    layers = [RESIDUAL] * blocks + [RESAMPLE]
    for i, inside in enumerate(layers, start=stage * len(layers)):
        yield f"encoder.downsamples.{i}.", f"encoder.down_blocks.{i}.", inside
    places = places_in_stage(blocks + 1, "upsamplers.0.")
    for i, (place, inside) in enumerate(places, start=stage * len(places)):
        yield f"decoder.upsamples.{i}.", f"decoder.up_blocks.{stage}.{place}", inside


def nested_stage_modules(stage: int, blocks: int) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Yields ``diffusers_modules`` of a stage that has its own row of layers."""
    for official, theirs, places in (
        ("encoder.downsamples", "encoder.down_blocks", places_in_stage(blocks, "downsampler.")),
        ("decoder.upsamples", "decoder.up_blocks", places_in_stage(blocks + 1, "upsampler.")),
    ):
        row = official.split(".")[1]
        for i, (place, inside) in enumerate(places):
            yield f"{official}.{stage}.{row}.{i}.", f"{theirs}.{stage}.{place}", inside


def places_in_stage(blocks: int, resampler: str) -> list[tuple[str, Mapping[str, str]]]:
    """Returns the names of residual blocks and a resampler, and the names inside them."""
    return [*((f"resnets.{i}.", RESIDUAL) for i in range(blocks)), (resampler, RESAMPLE)]


def count_stages_and_blocks(names: Iterable[str]) -> tuple[int, int]:
    """Returns the numbers of stages and of residual blocks per encoder stage, from the names."""
    names = list(names)
    if not any(name.startswith("decoder.") for name in names):
        return count_in_encoder(names)
    found = [re.match(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", name) for name in names]
    stages = {match[1] for match in found if match}
    blocks = {match[2] for match in found if match}
    return len(stages), len(blocks) - 1


def count_in_encoder(names: Iterable[str]) -> tuple[int, int]:
    """Returns the same as ``count_stages_and_blocks``, for an encoder alone."""
    names = list(names)
    layers = {m[1] for n in names if (m := re.match(r"encoder\.down_blocks\.(\d+)\.", n))}
    if has_nested_stages(names):
        found = [re.match(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", name) for name in names]
        return len(layers), len({match[1] for match in found if match})
    resampling = r"encoder\.down_blocks\.(\d+)\.resample\."
    stages = 1 + len({m[1] for n in names if (m := re.match(resampling, n))})
    return stages, (len(layers) - stages + 1) // stages


def has_nested_stages(names: Iterable[str]) -> bool:
    """Returns whether diffusers names belong to a model with stage shortcuts."""
    # In other models the layers of an encoder are in one row, and upsampling has another name.
    marks = ("encoder.down_blocks.0.resnets.", "decoder.up_blocks.0.upsampler.")
    return any(name.startswith(marks) for name in names)


def from_diffusers(tensors: StoredTensors, stages: int, blocks: int) -> StoredTensors:
    """Returns ``tensors`` with official names.

    Raises:
        UserError: a name is not a diffusers name of such a model.
    """
    names = diffusers_names(stages, blocks, has_nested_stages(tensors))
    official = {theirs: ours for ours, theirs in names.items()}
    unknown = [name for name in tensors if name not in official]
    if unknown:
        raise UserError(
            f"{len(unknown)} tensors do not belong in a diffusers model of {stages} stages with "
            f"{blocks} residual blocks each: {first_few(unknown)}"
        )
    return with_axis_of_time(tensors.renamed({official[name]: name for name in tensors}))


def with_axis_of_time(tensors: StoredTensors) -> StoredTensors:
    """Returns tensors with official names, where kernels of 2D convolutions have time extent 1."""
    flat = {n for n, t in tensors.outline.items() if t.dim() == 4 and has_axis_of_time(n)}
    outline = {n: t[:, :, None] if n in flat else t for n, t in tensors.outline.items()}
    return StoredTensors(
        outline, lambda name: tensors[name][:, :, None] if name in flat else tensors[name]
    )


def without_axis_of_time(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors with official names, where kernels of time extent 1 are 2D."""
    return {
        name: tensor[:, :, 0] if tensor.dim() == 5 and has_axis_of_time(name) else tensor
        for name, tensor in tensors.items()
    }


def has_axis_of_time(name: str) -> bool:
    """Returns whether a tensor with this official name is the kernel of a 3D convolution."""
    return name.endswith(".weight") and not name.endswith(FLAT)


def read_diffusers_config(content: Mapping[str, Any]) -> tuple[WanVAEConfig, tuple[str, ...]]:
    """Returns the architecture in the content of a config.json, and notes on what was assumed.

    Raises:
        UserError: an unknown key may change the result, or a value is not supported.
    """
    fields = FIELDS | CLASSES[content["_class_name"]]
    known = fields.keys() | FACTORS.keys() | {"attn_scales"}
    ignored = note_on_unknown_keys({k: v for k, v in content.items() if k not in known})
    if content.get("attn_scales"):  # diffusers ignores them in its decoder
        raise UserError(
            f"{DIFFUSERS_CONFIG} has attn_scales {content['attn_scales']!r}, but only [] is "
            "supported"
        )
    values = {fields[key]: value for key, value in content.items() if key in fields}
    statistics = {key: values.pop(key) for key in STATISTICS if key in values}
    config = architecture_of(content["_class_name"], values)
    if not statistics:
        config, note = with_known_statistics(config)
        return config, (note, *ignored)
    # diffusers writes its defaults for 16 channels, whatever z_dim is.
    if any(isinstance(s, list) and len(s) != config.z_dim for s in statistics.values()):
        note = f"{NO_STATISTICS} ({DIFFUSERS_CONFIG} has them for another number of channels)"
        return config, (note, *ignored)
    return from_json_dict(WanVAEConfig, to_json_dict(config) | statistics), ignored


def note_on_unknown_keys(unknown: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a note on the keys of a config.json that are ignored, if there are any.

    Keys that begin with "_" are about the file itself, so they need no note.

    Raises:
        UserError: a key may change the result.
    """
    asked = {key: value for key, value in unknown.items() if not key.startswith("_")}
    refused = [f"{key} {value!r}" for key, value in asked.items() if not has_no_effect(key, value)]
    if refused:
        raise UserError(
            f"{DIFFUSERS_CONFIG} has keys that are not known here and may change the result: "
            f"{', '.join(refused)}; delete those that do not"
        )
    named = ", ".join(f"{key} {value!r}" for key, value in asked.items())
    return (f"ignored in {DIFFUSERS_CONFIG}, because it changes nothing: {named}",) if named else ()


def has_no_effect(key: str, value: object) -> bool:
    """Returns whether an unknown key of a config.json changes no result."""
    neutral = key in NEUTRAL and value == NEUTRAL[key]
    # 0 equals False, but is a value.
    nothing = any(value == one and type(value) is type(one) for one in NOTHING)
    return key in NO_EFFECT or neutral or nothing


def architecture_of(name: str, values: Mapping[str, Any]) -> WanVAEConfig:
    """Returns the architecture of a diffusers class.

    Args:
        name: name of the class.
        values: values by our names, but in and out channels are the channels of the layers.
    """
    if values.get("patch_size", 1) is None:
        values = {**values, "patch_size": 1}
    if name == QWEN_IMAGE_21_CLASS:
        # The class has its own defaults.
        values = {**to_json_dict(QWEN_IMAGE_21), **values}
    config = from_json_dict(WanVAEConfig, values)
    last = config.in_channels if name == QWEN_IMAGE_CLASS else config.out_channels
    return replace(config, **channel_fields(config.in_channels, last, config.patch_size))


def read_diffusers_json(path: Path) -> dict[str, Any]:
    """Returns the content of the config.json of a Wan VAE.

    Raises:
        UserError: it is not of a Wan VAE.
        CheckpointError: the file cannot be read.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except UserError as error:
        reason = first_sentence(error.__cause__ or error)
        raise UserError(f"{path.name} is no JSON ({reason}); download it again") from error
    name = content.get("_class_name") if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in CLASSES:
        raise UserError(f"{path.name} is of {name}, not {' or '.join(CLASSES)}")
    return content


def wan_config(config: WanVAEConfig) -> dict[str, Any]:
    """Returns the content of the config.json of an ``AutoencoderKLWan``."""
    values = to_json_dict(config)
    squares = config.patch_size**2
    values["in_channels"] *= squares
    values["out_channels"] *= squares * config.upscale_factor**2
    values["patch_size"] = None if config.patch_size == 1 else config.patch_size
    factors = {theirs: getattr(config, ours) for theirs, ours in FACTORS.items()}
    return diffusers_config(WAN_CLASS, config, values) | factors


def is_like_qwen_image_21(config: WanVAEConfig) -> bool:
    """Returns whether a model is an image model with the shortcuts of a video model."""
    return config.ndim == 2 and config.stage_shortcuts


def fitting_class(config: WanVAEConfig) -> DiffusersClass:
    """Returns the class of diffusers for a model, by its architecture."""
    return QWEN_IMAGE_21_CLASS if is_like_qwen_image_21(config) else WAN_CLASS


def qwen_image_21_config(config: WanVAEConfig) -> dict[str, Any]:
    """Returns the content of the config.json of an ``AutoencoderKLQwenImage21``."""
    content = wan_config(config) | QWEN_IMAGE_21_TIME
    return {**content, "_class_name": QWEN_IMAGE_21_CLASS}


def qwen_image_config(config: WanVAEConfig) -> dict[str, Any]:
    """Returns the content of the config.json of an ``AutoencoderKLQwenImage``."""
    return diffusers_config(QWEN_IMAGE_CLASS, config, to_json_dict(config))


def diffusers_config(name: str, config: WanVAEConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of the config.json of a class, from values by our names."""
    # diffusers would replace missing statistics by the statistics of Wan2.1.
    statistics = {
        "latents_mean": values["latents_mean"] or [0.0] * config.z_dim,
        "latents_std": values["latents_std"] or [1.0] * config.z_dim,
    }
    return {
        "_class_name": name,
        "_diffusers_version": "0.35.0",
        "attn_scales": [],
        **{theirs: values[ours] for theirs, ours in (FIELDS | CLASSES[name]).items()},
        **statistics,
    }


# What returns the content of the config.json, by class.
CONTENTS: dict[DiffusersClass, Callable[[WanVAEConfig], dict[str, Any]]] = {
    WAN_CLASS: wan_config,
    QWEN_IMAGE_CLASS: qwen_image_config,
    QWEN_IMAGE_21_CLASS: qwen_image_21_config,
}
