"""The layouts of Wan VAE checkpoints: detecting, reading and writing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from os import PathLike
from os.path import isdir
from pathlib import Path
from typing import Any

from torch import Tensor

from wanvae.checkpoints.architecture import infer_config
from wanvae.checkpoints.diffusers_layout import (
    DIFFUSERS_CONFIG,
    DIFFUSERS_WEIGHTS,
    QWEN_IMAGE_21_CLASS,
    QWEN_IMAGE_CLASS,
    WAN_CLASS,
    count_stages_and_blocks,
    diffusers_names,
    from_diffusers,
    is_like_qwen_image_21,
    qwen_image_21_config,
    qwen_image_config,
    read_diffusers_config,
    read_diffusers_json,
    wan_config,
    with_axis_of_time,
    without_axis_of_time,
)
from wanvae.checkpoints.directory import find_config, find_single_file, find_weights
from wanvae.checkpoints.finding import (
    DIFFUSERS,
    WAN,
    Candidate,
    Family,
    choose,
    find_candidates,
)
from wanvae.checkpoints.hub import stored_files
from wanvae.checkpoints.latent_statistics import (
    NO_STATISTICS,
    STATISTICS_NOTE,
    asked_statistics,
    known_statistics,
    with_statistics,
)
from wanvae.checkpoints.source import Source, source_of
from wanvae.checkpoints.tiny import TINY, infer_tiny_config, with_network_latents
from wanvae.config import QWEN_IMAGE_21, WanVAEConfig
from wanvae.engine.checkpoint import (
    CheckpointError,
    digest_of_tensors,
    open_tensors,
    write_pickle,
    write_tensors,
)
from wanvae.engine.config import changed_fields, from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_directory, atomic_path
from wanvae.engine.hub import local_checkpoint
from wanvae.engine.stored_tensors import StoredFile, StoredTensors
from wanvae.engine.text import first_few
from wanvae.errors import UserError
from wanvae.tiny_config import TinyVAEConfig

# Fields that only the native layout stores.
BLOCK_FIELDS = ("block", "norm", "activation", "alpha_decoder")
# Fields that the channels of the first and the last layer tell.
PIXEL_FIELDS = ("patch_size", "upscale_factor")
# What the metadata of a native checkpoint say it is, and the class of its config.
NATIVE_FORMATS: dict[str, type[WanVAEConfig] | type[TinyVAEConfig]] = {
    "wanvae": WanVAEConfig,
    "wanvae-tiny": TinyVAEConfig,
}
INFERRED = "architecture: inferred from the names and shapes of the tensors"


class Layout(Enum):
    """How a checkpoint names its tensors and stores its architecture."""

    NATIVE = "native"
    WAN = "wan"
    TINY = "taehv"
    DIFFUSERS = "diffusers"
    QWEN_IMAGE = "qwen-image"
    QWEN_IMAGE_21 = "qwen-image-2.1"


CLASS_LAYOUTS = {
    WAN_CLASS: Layout.DIFFUSERS,
    QWEN_IMAGE_CLASS: Layout.QWEN_IMAGE,
    QWEN_IMAGE_21_CLASS: Layout.QWEN_IMAGE_21,
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any layout.

    Attributes:
        config: the architecture.
        tensors: tensors by their official names, not yet checked against the architecture.
        layout: the layout of the file or directory.
        notes: what was assumed, for people; one sentence each.
        assumed: the note on the latent statistics, if nothing says that they are right.
    """

    config: WanVAEConfig | TinyVAEConfig
    tensors: StoredTensors
    layout: Layout
    notes: tuple[str, ...]
    assumed: str | None = None


def load(path: str | PathLike[str], subfolder: str | None = None) -> Checkpoint:
    """Reads a checkpoint, and detects its layout and architecture.

    Tensors are read when somebody asks for them.

    Args:
        path: a native ``.safetensors``; a ``.pth`` or ``.safetensors`` with official names; a file
            with diffusers names; a diffusers directory, or a directory with one called ``vae``; or
            the ``"org/name"`` of a repository of the Hugging Face Hub. A ``Source`` also says which
            model of the file is meant.
        subfolder: the folder in ``path`` that holds the checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has another layout.
    """
    source = source_of(path)
    path = local_checkpoint(source.path, stored_files(source.variant), subfolder)
    try:
        checkpoint = load_path(path, source)
        if source.latent_statistics is None:
            return checkpoint
        return with_asked_statistics(checkpoint, source.latent_statistics)
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_file(path: Path, key: str | None = None) -> Checkpoint:
    """Reads a checkpoint from a file.

    Args:
        key: as for ``Source``.
    """
    file = open_tensors(path)
    if file.metadata.get("format") in NATIVE_FORMATS:
        refuse_key(key)
        config = read_native_config(file.metadata)
        notes = () if config.latents_mean or config.latents_std else (NO_STATISTICS,)
        return Checkpoint(config, file.tensors, Layout.NATIVE, notes)
    candidates = find_candidates(file.tensors, tuple(READERS))
    if not candidates:
        raise no_layout(file.tensors)
    candidate = choose(candidates, file.tensors, key)
    tensors = file.tensors.renamed(
        {n.removeprefix(candidate.prefix): n for n in file.tensors if candidate.owns(n)}
    )
    checkpoint = READERS[candidate.family](tensors)
    if isinstance(checkpoint.config, TinyVAEConfig):
        checkpoint = with_told_latents(checkpoint, checkpoint.config, path)
    return replace(checkpoint, notes=(*notes_on_place(candidate, file), *checkpoint.notes))


def refuse_key(key: str | None) -> None:
    """Raises UserError if somebody names a key of a checkpoint that holds one model."""
    if key:
        raise UserError(f"it holds one model, so there is no key {key!r} to choose; leave it out")


def with_asked_statistics(checkpoint: Checkpoint, asked: str | PathLike[str]) -> Checkpoint:
    """Returns a checkpoint with the latent statistics that somebody names."""
    statistics = asked_statistics(asked, checkpoint.config)
    others = tuple(n for n in checkpoint.notes if not n.startswith(STATISTICS_NOTE))
    config = with_statistics(checkpoint.config, statistics)
    return replace(checkpoint, config=config, notes=(*others, statistics.note), assumed=None)


def read_official(tensors: StoredTensors) -> Checkpoint:
    """Reads tensors with official names, without a config."""
    tensors = with_axis_of_time(tensors)
    config = infer_config(tensors.outline)
    statistics = known_statistics(config)
    return Checkpoint(
        with_statistics(config, statistics),
        tensors,
        Layout.WAN,
        (INFERRED, statistics.note),
        statistics.note if statistics.assumed else None,
    )


def read_bare_diffusers(tensors: StoredTensors) -> Checkpoint:
    """Reads tensors with the names of diffusers, without a config."""
    tensors = from_diffusers(tensors, *count_stages_and_blocks(tensors))
    return replace(read_official(tensors), layout=Layout.DIFFUSERS)


def read_tiny(tensors: StoredTensors) -> Checkpoint:
    """Reads a tiny autoencoder with its published names."""
    config, note = infer_tiny_config(tensors.outline)
    return Checkpoint(config, tensors, Layout.TINY, (INFERRED, note))


def with_told_latents(checkpoint: Checkpoint, config: TinyVAEConfig, path: Path) -> Checkpoint:
    """Returns the checkpoint of a tiny autoencoder with how its network has latents.

    The name of the file tells so, and whose latents they are, or the dtype tells so.
    """
    config, note = with_network_latents(config, checkpoint.tensors.outline, path)
    # Tiny autoencoders of other models have 16 channels too.
    assumed = None if "taew" in path.name.lower() else "; ".join([*checkpoint.notes[1:], note])
    return replace(checkpoint, config=config, notes=(*checkpoint.notes, note), assumed=assumed)


# Families of models, and what reads the tensors of each, without the prefix of their names.
READERS: Mapping[Family, Callable[[StoredTensors], Checkpoint]] = {
    WAN: read_official,
    DIFFUSERS: read_bare_diffusers,
    TINY: read_tiny,
}


def notes_on_place(candidate: Candidate, file: StoredFile) -> tuple[str, ...]:
    """Returns notes on where in a file the model is, and on what else is there."""
    others = [n for n in file.tensors if not candidate.owns(n)] + list(file.ignored)
    notes = []
    if candidate.prefix:
        notes.append(f"names: without {candidate.prefix}, which is before all of them")
    if others:
        count = f"{len(others)} {'entry' if len(others) == 1 else 'entries'}"
        notes.append(f"not read, because not of the model: {count}: {first_few(others)}")
    return tuple(notes)


def no_layout(names: Iterable[str]) -> UserError:
    """Returns the error for tensors of no known layout."""
    return UserError(
        f"no layout of a Wan VAE has tensors like {first_few(list(names))}; known are "
        "native (.safetensors written by wanvae), "
        "wan (encoder.downsamples.0.residual.0.gamma, ...), "
        "diffusers (encoder.down_blocks.0.norm1.gamma, ...) and "
        "taehv (decoder.7.conv.weight, ...)"
    )


def load_path(path: Path, source: Source) -> Checkpoint:
    """Reads a checkpoint from a file or a directory."""
    if not isdir(path):
        refuse_variant(source.variant)
        return load_file(path, source.key)
    config_file = find_config(path)
    if config_file is None:
        refuse_variant(source.variant)
        weights = find_single_file(path)
        checkpoint = load_file(weights.file, source.key)
    else:
        refuse_key(source.key)
        config, notes, layout = read_diffusers(config_file)
        weights = find_weights(config_file.parent, source.variant)
        tensors = open_tensors(weights.file).tensors
        tensors = from_diffusers(tensors, len(config.dim_mult), config.num_res_blocks)
        checkpoint = Checkpoint(config, tensors, layout, notes)
    return replace(checkpoint, notes=(*weights.notes, *checkpoint.notes))


def read_diffusers(config_file: Path) -> tuple[WanVAEConfig, tuple[str, ...], Layout]:
    """Returns config, notes and layout of the diffusers model that a config.json describes."""
    content = read_diffusers_json(config_file)
    config, notes = read_diffusers_config(content)
    return config, notes, CLASS_LAYOUTS[content["_class_name"]]


def refuse_variant(variant: str | None) -> None:
    """Raises UserError if somebody names a variant of what is no diffusers model."""
    if variant is not None:
        raise UserError(f"only diffusers models have variants like {variant!r}; leave it out")


def identify(path: str | PathLike[str]) -> str:
    """Returns the SHA-256, in hexadecimal, of the tensors and the config of a checkpoint.

    It is the same in every layout that keeps all of the config, however the file was written.

    Raises:
        CheckpointError: as for ``load``.
    """
    checkpoint = load(path)
    return digest_of_tensors(checkpoint.tensors, changed_fields(checkpoint.config))


def weights_file(path: str | PathLike[str]) -> Path:
    """Returns the file with the tensors of a checkpoint: ``path``, or a file in this directory.

    Raises:
        CheckpointError: ``path`` is a directory without a complete model, or a repository that
            cannot be downloaded.
    """
    source = source_of(path)
    path = local_checkpoint(source.path, stored_files(source.variant))
    if not isdir(path):
        return path
    config_file = find_config(path)
    if config_file is None:
        return find_single_file(path).file
    return find_weights(config_file.parent, source.variant).file


def read_native_config(metadata: Mapping[str, str]) -> WanVAEConfig | TinyVAEConfig:
    """Returns the config in the metadata of a native checkpoint."""
    kind = NATIVE_FORMATS[metadata["format"]]
    return from_json_dict(kind, parse_json(metadata.get("config", "")))


def save_native(
    path: str | PathLike[str],
    config: WanVAEConfig | TinyVAEConfig,
    tensors: Mapping[str, Tensor],
) -> None:
    """Writes a native checkpoint: official names, and the config in the metadata.

    Raises:
        CheckpointError: ``path`` does not end in .safetensors.
        FileError: ``path`` cannot be written.
    """
    require_suffix(path, ".safetensors")
    (name,) = (name for name, kind in NATIVE_FORMATS.items() if isinstance(config, kind))
    metadata = {"format": name, "config": json.dumps(to_json_dict(config))}
    write_tensors(path, tensors, metadata)


def save_wan(
    path: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Writes tensors with official names, without a config, to a ``.pth`` or ``.safetensors``.

    This layout stores neither dropout nor latent statistics, so the reader must know them. Readers
    assume patches of 2x2 pixels for models with stage shortcuts.

    Raises:
        CheckpointError: ``path`` has another suffix, or the layout cannot store the architecture.
        FileError: ``path`` cannot be written.
    """
    require_suffix(path, ".pth", ".safetensors")
    # Other image models have no tensors that tell temporal_downsample.
    possible = QWEN_IMAGE_21 if is_like_qwen_image_21(config) else WanVAEConfig()
    require_equal(config, possible, Layout.WAN, (*BLOCK_FIELDS, "ndim"))
    try:
        told = infer_config(tensors)
    except UserError as error:
        raise CheckpointError(
            f"the {Layout.WAN.value} layout has no such model, because of a file with it one would "
            f"say: {error}"
        ) from error
    require_equal(config, told, Layout.WAN, PIXEL_FIELDS)
    save_bare(path, tensors)


def save_bare(path: str | PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors alone, without a config, to a ``.pth`` or ``.safetensors``.

    Raises:
        CheckpointError: ``path`` has another suffix.
        FileError: ``path`` cannot be written.
    """
    require_suffix(path, ".pth", ".safetensors")
    if Path(path).suffix == ".pth":
        write_pickle(path, tensors)
    else:
        write_tensors(path, tensors, {})


def save_diffusers(
    directory: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Writes a directory for ``AutoencoderKLWan.from_pretrained`` of diffusers.

    A new directory appears complete or not at all. In a directory that already holds a Wan VAE,
    its two files are replaced one after the other.

    Raises:
        CheckpointError: diffusers has no such architecture.
        FileError: ``directory`` holds something else, or cannot be written.
    """
    names = (*BLOCK_FIELDS, "attn_scales", "ndim")
    require_equal(config, WanVAEConfig(), Layout.DIFFUSERS, names)
    content = wan_config(config)
    read, _ = read_diffusers_config(content)
    require_equal(config, read, Layout.DIFFUSERS, PIXEL_FIELDS)
    write_directory(directory, config, content, tensors)


def save_qwen_image(
    directory: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Writes a directory for ``AutoencoderKLQwenImage`` of diffusers, as ``save_diffusers`` does.

    Raises:
        CheckpointError: as for ``save_diffusers``, or the architecture differs from Wan2.1 in more
            than sizes and the number of channels of the video.
    """
    names = (*BLOCK_FIELDS, *PIXEL_FIELDS, "attn_scales", "decoder_dim", "stage_shortcuts", "ndim")
    require_equal(config, WanVAEConfig(), Layout.QWEN_IMAGE, names)
    alike = replace(config, out_channels=config.in_channels)
    require_equal(config, alike, Layout.QWEN_IMAGE, ("out_channels",))
    write_directory(directory, config, qwen_image_config(config), tensors)


def save_qwen_image_21(
    directory: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Writes a directory for ``AutoencoderKLQwenImage21``, as ``save_diffusers`` does.

    Raises:
        CheckpointError: as for ``save_diffusers``, or it is no image model with stage shortcuts.
    """
    names = (*BLOCK_FIELDS, "attn_scales", "ndim", "stage_shortcuts", "upscale_factor")
    require_equal(config, QWEN_IMAGE_21, Layout.QWEN_IMAGE_21, names)
    content = qwen_image_21_config(config)
    write_directory(directory, config, content, without_axis_of_time(tensors))


def write_directory(
    directory: str | PathLike[str],
    config: WanVAEConfig,
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Writes a diffusers directory whose config.json has this content."""
    text = json.dumps(content, indent=2) + "\n"
    names = diffusers_names(
        len(config.dim_mult), config.num_res_blocks, nested=config.stage_shortcuts
    )
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    if holds_wan_vae(Path(directory)):
        write_diffusers_files(Path(directory), text, renamed)
        return
    with atomic_directory(directory) as temporary:
        write_diffusers_files(temporary, text, renamed)


def write_diffusers_files(directory: Path, config: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes the two files of a diffusers directory, each complete or not at all."""
    config_file, weights = files_in_diffusers_directory(directory)
    write_tensors(weights, tensors, {"format": "pt"})
    with atomic_path(config_file) as path:
        path.write_text(config, encoding="utf-8")


def files_in_diffusers_directory(directory: str | PathLike[str]) -> tuple[Path, Path]:
    """Returns the files that ``save_diffusers`` and ``save_qwen_image`` write."""
    return Path(directory, DIFFUSERS_CONFIG), Path(directory, DIFFUSERS_WEIGHTS)


def holds_wan_vae(directory: Path) -> bool:
    """Returns whether ``directory`` holds a Wan VAE, which ``save_diffusers`` may replace."""
    config = directory / DIFFUSERS_CONFIG
    if not (config.is_file() and (directory / DIFFUSERS_WEIGHTS).is_file()):
        return False
    try:
        read_diffusers_json(config)
    except UserError:
        return False
    return True


def require_suffix(path: str | PathLike[str], *suffixes: str) -> None:
    """Raises CheckpointError if a path has another suffix."""
    if Path(path).suffix not in suffixes:
        raise CheckpointError(f"{path} must end in {' or '.join(suffixes)}; change its name")


def require_equal(
    config: WanVAEConfig, possible: WanVAEConfig, layout: Layout, names: Iterable[str]
) -> None:
    """Raises CheckpointError if a layout cannot store one of the fields ``names`` of ``config``."""
    for name in names:
        value, needed = getattr(config, name), getattr(possible, name)
        if value != needed:
            raise CheckpointError(
                f"the {layout.value} layout has no {name} {value!r}, only {needed!r}; "
                f"use the {Layout.NATIVE.value} layout"
            )
