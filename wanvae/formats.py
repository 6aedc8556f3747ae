"""The layouts of Wan VAE checkpoints: telling them apart, reading and writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from os import PathLike
from os.path import isdir
from pathlib import Path
from typing import Any

from torch import Tensor

from wanvae.config import WanVAEConfig
from wanvae.engine.checkpoint import (
    CheckpointError,
    TensorFile,
    atomic_directory,
    atomic_path,
    first_few,
    read_tensors,
    write_pickle,
    write_tensors,
)
from wanvae.engine.config import from_json_dict, to_json_dict

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

WAN21_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN21_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916),
)

STATISTICS = ("latents_mean", "latents_std")
INFERRED = "architecture: read off the names and shapes of the tensors"
OFFICIAL_STATISTICS = "latent statistics: those of Wan2.1, for the architecture is the same"
NO_STATISTICS = "latent statistics: unknown, so mean 0 and standard deviation 1"
WAN22 = "this is the VAE of Wan2.2, which is not supported yet; use that of Wan2.1"


class Layout(Enum):
    """How a checkpoint names its tensors and says its architecture."""

    NATIVE = "native"
    WAN = "wan"
    DIFFUSERS = "diffusers"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any layout.

    Attributes:
        config: its architecture.
        tensors: by their official names; not yet checked against the architecture.
        layout: what it was stored as.
        notes: what was assumed, for people; one sentence each.
    """

    config: WanVAEConfig
    tensors: dict[str, Tensor]
    layout: Layout
    notes: tuple[str, ...]


def load(path: str | PathLike[str]) -> Checkpoint:
    """Read a checkpoint, finding out its layout and architecture.

    Args:
        path: a native ``.safetensors``; official keys in a ``.pth`` or ``.safetensors``; diffusers
            keys in a file; a diffusers directory, or one that has it as ``vae``.

    Raises:
        CheckpointError: it cannot be read, or has none of these layouts.
    """
    path = Path(path)
    try:
        return load_directory(path) if isdir(path) else load_file(path)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_file(path: Path) -> Checkpoint:
    file = read_tensors(path)
    layout = detect_layout(file)
    if layout is Layout.NATIVE:
        return Checkpoint(read_native_config(file.metadata), file.tensors, layout, ())
    tensors = file.tensors
    if layout is Layout.DIFFUSERS:
        tensors = from_diffusers(tensors, *count_stages_and_blocks(tensors))
    config, note = with_known_statistics(infer_config(tensors))
    return Checkpoint(config, tensors, layout, (INFERRED, note))


def load_directory(path: Path) -> Checkpoint:
    """Load a diffusers directory, or the one called vae in ``path``."""
    candidates = (path, path / "vae")
    directory = next((d for d in candidates if (d / DIFFUSERS_CONFIG).is_file()), None)
    if directory is None:
        raise CheckpointError(
            f"{path} holds no {DIFFUSERS_CONFIG}, nor vae/{DIFFUSERS_CONFIG}, as a diffusers model "
            "does; name a checkpoint file instead"
        )
    config, notes = read_diffusers_config(directory / DIFFUSERS_CONFIG)
    weights = directory / DIFFUSERS_WEIGHTS
    if not weights.exists():
        weights = directory / DIFFUSERS_PICKLE
    if not weights.exists():
        raise CheckpointError(
            f"{directory} holds neither {DIFFUSERS_WEIGHTS} nor {DIFFUSERS_PICKLE}; "
            "download it again"
        )
    tensors = read_tensors(weights).tensors
    tensors = from_diffusers(tensors, len(config.dim_mult), config.num_res_blocks)
    return Checkpoint(config, tensors, Layout.DIFFUSERS, notes)


def detect_layout(file: TensorFile) -> Layout:
    """The layout of a file, by its metadata and names; ValueError if it is none we read."""
    if file.metadata.get("format") == "wanvae":
        return Layout.NATIVE
    names = file.tensors
    if any_name(names, r"encoder\.downsamples\.\d+\.downsamples\.") or any_name(
        names, r"encoder\.down_blocks\.\d+\.resnets\.\d+\.norm\d\.gamma"
    ):
        raise ValueError(WAN22)
    if any_name(names, r"encoder\.downsamples\.\d+\.(residual|resample)\."):
        return Layout.WAN
    if any_name(names, r"encoder\.down_blocks\.\d+\.(norm\d\.gamma|resample\.)"):
        return Layout.DIFFUSERS
    raise ValueError(
        f"no layout of a Wan VAE has tensors like {first_few(list(names))}; known are native "
        "(.safetensors written by wanvae), wan (encoder.downsamples.0.residual.0.gamma, ...) and "
        "diffusers (encoder.down_blocks.0.norm1.gamma, ...)"
    )


def any_name(names: Iterable[str], pattern: str) -> bool:
    return any(re.match(pattern, name) for name in names)


def read_native_config(metadata: Mapping[str, str]) -> WanVAEConfig:
    return from_json_dict(WanVAEConfig, parse_json(metadata.get("config", "")))


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


def parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the config is no JSON ({error}); download or save it again") from error


def with_known_statistics(config: WanVAEConfig) -> tuple[WanVAEConfig, str]:
    """``config`` with the latent statistics of Wan2.1, if it is its architecture, and a note."""
    if config != WanVAEConfig():
        return config, NO_STATISTICS
    return replace(config, latents_mean=WAN21_MEAN, latents_std=WAN21_STD), OFFICIAL_STATISTICS


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


def save_native(
    path: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Write a native checkpoint: official names, and the config in the metadata.

    Raises:
        CheckpointError: ``path`` does not end in .safetensors, or cannot be written.
    """
    require_suffix(path, ".safetensors")
    metadata = {"format": "wanvae", "config": json.dumps(to_json_dict(config))}
    write_tensors(path, tensors, metadata)


def save_wan(
    path: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Write the official names alone, as a ``.pth`` or ``.safetensors``.

    This layout says no dropout and no latent statistics: whoever reads it must know them.

    Raises:
        CheckpointError: ``path`` has another suffix or cannot be written, or the layout cannot say
            the architecture.
    """
    require_suffix(path, ".pth", ".safetensors")
    require_official(config, Layout.WAN, ("block", "norm", "activation"))
    if Path(path).suffix == ".pth":
        write_pickle(path, tensors)
    else:
        write_tensors(path, tensors, {})


def save_diffusers(
    directory: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Write a directory that diffusers' ``AutoencoderKLWan.from_pretrained`` loads.

    A new directory appears complete or not at all; in one that holds a Wan VAE already, its two
    files are replaced one after the other.

    Raises:
        CheckpointError: ``directory`` holds anything else or cannot be written, or diffusers has
            no such architecture.
    """
    require_official(config, Layout.DIFFUSERS, ("block", "norm", "activation", "attn_scales"))
    content = json.dumps(diffusers_config(config), indent=2) + "\n"
    names = diffusers_names(len(config.dim_mult), config.num_res_blocks)
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    if holds_wan_vae(Path(directory)):
        write_diffusers_files(Path(directory), content, renamed)
        return
    with atomic_directory(directory) as temporary:
        write_diffusers_files(temporary, content, renamed)


def write_diffusers_files(directory: Path, config: str, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(directory / DIFFUSERS_WEIGHTS, tensors, {"format": "pt"})
    with atomic_path(directory / DIFFUSERS_CONFIG) as path:
        path.write_text(config, encoding="utf-8")


def holds_wan_vae(directory: Path) -> bool:
    """Whether ``directory`` is a model directory that ``save_diffusers`` may write over."""
    config = directory / DIFFUSERS_CONFIG
    if not (config.is_file() and (directory / DIFFUSERS_WEIGHTS).is_file()):
        return False
    try:
        read_diffusers_json(config)
    except ValueError:
        return False
    return True


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


def require_suffix(path: str | PathLike[str], *suffixes: str) -> None:
    if Path(path).suffix not in suffixes:
        raise CheckpointError(f"{path} must end in {' or '.join(suffixes)}; change its name")


def require_official(config: WanVAEConfig, layout: Layout, names: Iterable[str]) -> None:
    """Raise CheckpointError if ``config`` differs from the official model in one of ``names``."""
    official = WanVAEConfig()
    for name in names:
        value, needed = getattr(config, name), getattr(official, name)
        if value != needed:
            raise CheckpointError(
                f"the {layout.value} layout has no {name} {value!r}, only {needed!r}; "
                f"use the {Layout.NATIVE.value} layout"
            )
