"""What diffusers calls our tensors and our configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from wanvae.config import WanVAEConfig
from wanvae.engine.checkpoint import CheckpointError, first_few
from wanvae.engine.config import from_json_dict, parse_json, to_json_dict
from wanvae.latent_statistics import NO_STATISTICS, with_known_statistics

DIFFUSERS_CONFIG = "config.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFUSERS_PICKLE = "diffusion_pytorch_model.bin"
DIFFUSERS_CLASSES = ("AutoencoderKLWan", "AutoencoderKLQwenImage")

# What a diffusers config.json calls our fields.
DIFFUSERS_FIELDS = {
    "base_dim": "dim",
    "z_dim": "z_dim",
    "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks",
    "temperal_downsample": "temporal_downsample",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "dropout": "dropout",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
}
QWEN_FIELDS = {"input_channels": "in_channels"}
# Its other fields, and their values for models like ours. Its decoder ignores attn_scales.
DIFFUSERS_CONSTANTS: Mapping[str, object] = {
    "attn_scales": [],
    "decoder_base_dim": None,
    "is_residual": False,
    "patch_size": None,
}
# Those that follow from the rest.
DIFFUSERS_FACTORS = {
    "scale_factor_temporal": "temporal_factor",
    "scale_factor_spatial": "spatial_factor",
}

# What the layers have inside, in the official layout and in diffusers'.
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
WAN22 = "this is the VAE of Wan2.2, which is not supported yet; use that of Wan2.1"


def diffusers_names(stages: int, blocks: int) -> dict[str, str]:
    """What diffusers calls each tensor, by its official name.

    For every model of ``stages`` stages with ``blocks`` residual blocks each in the encoder, so
    with a shortcut for every block and a time_conv for every change of resolution.
    """
    return {
        f"{official}{ours}.{leaf}": f"{theirs}{other}.{leaf}"
        for official, theirs, inside in diffusers_modules(stages, blocks)
        for ours, other in inside.items()
        for leaf in (("gamma",) if other.startswith("norm") else ("weight", "bias"))
    }


def diffusers_modules(stages: int, blocks: int) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Prefix of each module, its prefix in diffusers, and the names of the layers inside."""
    yield "", "", {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for coder in ("encoder.", "decoder."):
        yield coder, coder, ENDS
        yield f"{coder}middle.0.", f"{coder}mid_block.resnets.0.", RESIDUAL
        yield f"{coder}middle.1.", f"{coder}mid_block.attentions.0.", ATTENTION
        yield f"{coder}middle.2.", f"{coder}mid_block.resnets.1.", RESIDUAL
    for stage in range(stages):
        layers = [RESIDUAL] * blocks + [RESAMPLE]
        for i, inside in enumerate(layers, start=stage * len(layers)):
            yield f"encoder.downsamples.{i}.", f"encoder.down_blocks.{i}.", inside
        up = f"decoder.up_blocks.{stage}."
        places = [
            *((f"resnets.{i}.", RESIDUAL) for i in range(blocks + 1)),
            ("upsamplers.0.", RESAMPLE),
        ]
        for i, (place, inside) in enumerate(places, start=stage * len(places)):
            yield f"decoder.upsamples.{i}.", f"{up}{place}", inside


def count_stages_and_blocks(names: Iterable[str]) -> tuple[int, int]:
    """Stages, and residual blocks per stage of the encoder, that diffusers' names show."""
    found = [re.match(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", name) for name in names]
    stages = {match[1] for match in found if match}
    blocks = {match[2] for match in found if match}
    return len(stages), len(blocks) - 1


def from_diffusers(tensors: Mapping[str, Tensor], stages: int, blocks: int) -> dict[str, Tensor]:
    """``tensors`` with official names; ValueError if a name is none of diffusers'."""
    official = {theirs: ours for ours, theirs in diffusers_names(stages, blocks).items()}
    unknown = [name for name in tensors if name not in official]
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors do not belong in a diffusers model of {stages} stages with "
            f"{blocks} residual blocks each: {first_few(unknown)}"
        )
    return {official[name]: tensor for name, tensor in tensors.items()}


def read_diffusers_config(path: Path) -> tuple[WanVAEConfig, tuple[str, ...]]:
    """The architecture that a diffusers config.json says, and what was assumed."""
    content = read_diffusers_json(path)
    if content.get("is_residual"):
        raise ValueError(WAN22)
    fields = DIFFUSERS_FIELDS | QWEN_FIELDS
    known = fields.keys() | DIFFUSERS_CONSTANTS.keys() | DIFFUSERS_FACTORS.keys()
    unknown = sorted(key for key in content if key not in known and not key.startswith("_"))
    if unknown:
        raise ValueError(f"{path.name} has unknown keys: {', '.join(unknown)}")
    for key, value in DIFFUSERS_CONSTANTS.items():
        if content.get(key, value) != value:
            raise ValueError(
                f"{path.name} has {key} {content[key]!r}, but only {value!r} is supported"
            )
    values = {fields[key]: value for key, value in content.items() if key in fields}
    statistics = {key: values.pop(key) for key in STATISTICS if key in values}
    config = from_json_dict(WanVAEConfig, values)
    if not statistics:
        config, note = with_known_statistics(config)
        return config, (note,)
    # diffusers writes its defaults for 16 channels whatever z_dim is.
    if any(isinstance(s, list) and len(s) != config.z_dim for s in statistics.values()):
        return config, (f"{NO_STATISTICS} ({path.name} has them for another number of channels)",)
    return from_json_dict(WanVAEConfig, values | statistics), ()


def read_diffusers_json(path: Path) -> dict[str, Any]:
    """The content of a config.json, if it is that of a Wan VAE; else ValueError."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    name = content.get("_class_name") if isinstance(content, dict) else None
    if name not in DIFFUSERS_CLASSES:
        raise ValueError(f"{path.name} is of {name}, not {' or '.join(DIFFUSERS_CLASSES)}")
    return content


def diffusers_config(config: WanVAEConfig) -> dict[str, Any]:
    """The content of a diffusers config.json."""
    values = to_json_dict(config)
    # Left out, they would be taken for those of Wan2.1.
    values["latents_mean"] = values["latents_mean"] or [0.0] * config.z_dim
    values["latents_std"] = values["latents_std"] or [1.0] * config.z_dim
    return {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": "0.35.0",
        **DIFFUSERS_CONSTANTS,
        **{theirs: values[ours] for theirs, ours in DIFFUSERS_FIELDS.items()},
        **{theirs: getattr(config, ours) for theirs, ours in DIFFUSERS_FACTORS.items()},
    }
