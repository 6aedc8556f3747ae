"""The layouts of Wan VAE checkpoints: detecting, reading and writing them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wanvae.checkpoints.architecture import infer_config
from wanvae.checkpoints.checkpoint import Checkpoint, Layout, Storage
from wanvae.checkpoints.diffusers_layout import (
    DIFFUSERS_CONFIG,
    DIFFUSERS_WEIGHTS,
    QWEN_IMAGE_21_CLASS,
    QWEN_IMAGE_CLASS,
    WAN_CLASS,
    DiffusersClass,
    diffusers_names,
    from_diffusers,
    is_like_qwen_image_21,
    qwen_image_21_config,
    qwen_image_config,
    read_diffusers_config,
    read_diffusers_json,
    wan_config,
    without_axis_of_time,
)
from wanvae.checkpoints.directory import find_config, find_single_file, find_weights
from wanvae.checkpoints.hub import stored_files
from wanvae.checkpoints.latent_statistics import asked_statistics
from wanvae.checkpoints.model_file import (
    DECODES,
    NATIVE_FORMATS,
    check_growth,
    load_file,
    refuse_key,
    replace_statistics,
)
from wanvae.checkpoints.precision import storage_kinds, widen
from wanvae.checkpoints.source import Source, source_of
from wanvae.config import COUNTS, QWEN_IMAGE_21, WanVAEConfig
from wanvae.engine.checkpoint import (
    CheckpointError,
    digest_of_tensors,
    open_tensors,
    write_pickle,
    write_tensors,
)
from wanvae.engine.config import changed_fields, to_json_dict
from wanvae.engine.files import atomic_directory, atomic_path
from wanvae.engine.hub import local_checkpoint
from wanvae.engine.stored_tensors import stored
from wanvae.errors import UserError
from wanvae.tiny_config import TinyVAEConfig

# Fields that only the native layout stores.
BLOCK_FIELDS = ("block", "norm", "activation", "alpha_decoder")
HALF_FIELDS = ("half",)
# Fields that the channels of the first and the last layer tell.
PIXEL_FIELDS = ("patch_size", "upscale_factor")

# What people round models to.
ROUNDED = (torch.bfloat16, torch.float16)

CLASS_LAYOUTS = {
    WAN_CLASS: Layout.DIFFUSERS,
    QWEN_IMAGE_CLASS: Layout.QWEN_IMAGE,
    QWEN_IMAGE_21_CLASS: Layout.QWEN_IMAGE_21,
}


def load(
    path: str | PathLike[str],
    subfolder: str | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Reads a checkpoint, and detects its layout and architecture.

    Tensors are read when somebody asks for them.

    Args:
        path: a native ``.safetensors``; a ``.pth`` or ``.safetensors`` with official names; a file
            with diffusers names; a diffusers directory, or a directory with one called ``vae``; or
            the ``"org/name"`` of a repository of the Hugging Face Hub. A ``Source`` also says which
            model of the file is meant.
        subfolder: the folder in ``path`` that holds the checkpoint.
        dtype: the dtype of the tensors if some are stored in float8, scaled or quantized; None
            takes bfloat16 for these files. Other files keep their dtypes.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has another layout.
    """
    source = source_of(path)
    path = local_checkpoint(source.path, stored_files(source.variant), subfolder)
    try:
        checkpoint = load_path(path, source, dtype)
        check_claims(checkpoint)
        if source.latent_statistics is None:
            return checkpoint
        asked = asked_statistics(source.latent_statistics, checkpoint.config)
        return replace_statistics(checkpoint, asked)
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_path(path: Path, source: Source, dtype: torch.dtype | None) -> Checkpoint:
    """Reads a checkpoint from a file or a directory."""
    if not isdir(path):
        refuse_variant(source.variant)
        return load_file(path, source.key, dtype)
    config_file = find_config(path)
    if config_file is None:
        refuse_variant(source.variant)
        weights = find_single_file(path)
        checkpoint = load_file(weights.file, source.key, dtype)
    else:
        refuse_key(source.key)
        # An error in the config is told before a missing file.
        described = read_diffusers(config_file)
        weights = find_weights(config_file.parent, source.variant)
        checkpoint = load_diffusers(*described, weights.file, dtype)
    return replace(checkpoint, notes=(*weights.notes, *checkpoint.notes))


def read_diffusers(config_file: Path) -> tuple[WanVAEConfig, tuple[str, ...], Layout]:
    """Returns config, notes and layout of the diffusers model that a config.json describes."""
    content = read_diffusers_json(config_file)
    config, notes = read_diffusers_config(content)
    return config, notes, CLASS_LAYOUTS[content["_class_name"]]


def load_diffusers(
    config: WanVAEConfig,
    notes: tuple[str, ...],
    layout: Layout,
    weights: Path,
    dtype: torch.dtype | None,
) -> Checkpoint:
    """Reads the weights of a diffusers model.

    Args:
        config, notes, layout: what its config.json tells.
        weights: the file with its tensors.
        dtype: as for ``load``.
    """
    file = open_tensors(weights)
    check_growth(file.tensors, file.size)
    tensors, precision = widen(file.tensors, file.quantized, dtype)
    tensors = from_diffusers(tensors, len(config.dim_mult), config.num_res_blocks)
    storage = Storage(file.container, storage_kinds(file.tensors, file.quantized))
    return Checkpoint(config, tensors, layout, (*precision, *notes), storage, precision)


def refuse_variant(variant: str | None) -> None:
    """Raises UserError if somebody names a variant of what is no diffusers model."""
    if variant is not None:
        raise UserError(f"only diffusers models have variants like {variant!r}; leave it out")


def check_claims(checkpoint: Checkpoint) -> None:
    """Raises UserError if a config is of a model with more layers or channels than its tensors.

    Called before the model is built, because that could take all memory.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    values = sum(tensor.numel() for tensor in tensors.outline.values())
    if isinstance(config, TinyVAEConfig):
        layers = len(config.grows) * config.blocks
        widest = max(config.z_dim, config.channels, *config.decoder_dims, config.encoder_dim or 0)
    else:
        layers = len(config.dim_mult) * config.num_res_blocks
        widest = max(*(getattr(config, name) for name in COUNTS), *config.dim_mult)
    if layers > len(tensors) or widest > values:
        raise UserError(
            f"its config is of a model with {layers} residual blocks and up to {widest} channels, "
            f"but it holds {len(tensors)} tensors of {values} values"
        )


def identify(path: str | PathLike[str]) -> str:
    """Returns the SHA-256, in hexadecimal, of the tensors and the config of a checkpoint.

    It is the same in every layout that keeps all of the config, however the file was written.

    Raises:
        CheckpointError: as for ``load``.
    """
    return digest_of_model(load(path))


def digest_of_model(checkpoint: Checkpoint) -> str:
    """Returns the digest that ``identify`` gives for the file of a checkpoint."""
    return digest_of_tensors(checkpoint.tensors, changed_fields(checkpoint.config))


def digests_of_encoder(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Returns the digests of what the latents that a checkpoint encodes depend on.

    Models with the same encoder have the same ones, whatever their decoders and the mean and
    deviation that normalize their latents. A decoder alone has the ones of the encoder that it
    belongs to. There are none if nothing tells: for such a decoder in a file that does not say, and
    for the encoder of a tiny autoencoder.
    """
    config = checkpoint.config
    if isinstance(config, WanVAEConfig) and config.half != "decoder":
        return digests_of_encoding(config, checkpoint.tensors)
    return checkpoint.decodes


def digests_of_encoding(config: WanVAEConfig, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns the digests of the encoder of a Wan VAE, as it is and as copies have it.

    An encoder, and a copy of it that was rounded to a half type, have a digest in common.

    Args:
        tensors: of the model, by their official names.
    """
    names = {name: name for name in tensors if name.startswith(("encoder.", "conv1."))}
    # Dropout is for training alone, and files with official names do not keep it.
    encoder = replace(config.only("encoder"), latents_mean=(), latents_std=(), dropout=0.0)
    # A trained model has the values of its base in float32.
    encoding = stored(tensors).renamed(names).to(torch.float32)
    forms = (encoding, *(encoding.to(dtype).to(torch.float32) for dtype in ROUNDED))
    digests = (digest_of_tensors(form, changed_fields(encoder)) for form in forms)
    return tuple(dict.fromkeys(digests))


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


def save_native(
    path: str | PathLike[str],
    config: WanVAEConfig | TinyVAEConfig,
    tensors: Mapping[str, Tensor],
    decodes: tuple[str, ...] = (),
) -> None:
    """Writes a native checkpoint: official names, and the config in the metadata.

    Args:
        decodes: of a decoder alone, the digests of the encoder whose latents it decodes.

    Raises:
        CheckpointError: ``path`` does not end in .safetensors.
        FileError: ``path`` cannot be written.
    """
    require_suffix(path, ".safetensors")
    (name,) = (name for name, kind in NATIVE_FORMATS.items() if isinstance(config, kind))
    metadata = {"format": name, "config": json.dumps(to_json_dict(config))}
    if digests := " ".join(decodes):
        metadata[DECODES] = digests
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
    refuse_differences(Layout.DIFFUSERS, diffusers_differences(config, WAN_CLASS))
    write_directory(directory, config, wan_config(config), tensors)


def save_qwen_image(
    directory: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Writes a directory for ``AutoencoderKLQwenImage`` of diffusers, as ``save_diffusers`` does.

    Raises:
        CheckpointError: as for ``save_diffusers``, or the architecture differs from Wan2.1 in more
            than sizes and the number of channels of the video.
    """
    refuse_differences(Layout.QWEN_IMAGE, diffusers_differences(config, QWEN_IMAGE_CLASS))
    write_directory(directory, config, qwen_image_config(config), tensors)


def save_qwen_image_21(
    directory: str | PathLike[str], config: WanVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Writes a directory for ``AutoencoderKLQwenImage21``, as ``save_diffusers`` does.

    Raises:
        CheckpointError: as for ``save_diffusers``, or it is no image model with stage shortcuts.
    """
    found = diffusers_differences(config, QWEN_IMAGE_21_CLASS)
    refuse_differences(Layout.QWEN_IMAGE_21, found)
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
    refuse_differences(layout, differences(config, possible, names))


def refuse_differences(layout: Layout, found: Iterable[str]) -> None:
    """Raises CheckpointError for the first of some differences, if there is one."""
    for difference in found:
        raise CheckpointError(
            f"the {layout.value} layout has no {difference}; use the {Layout.NATIVE.value} layout"
        )


def differences(
    config: WanVAEConfig, possible: WanVAEConfig, names: Iterable[str]
) -> Iterator[str]:
    """Yields the fields ``names`` in which ``config`` differs from what is possible, for people."""
    for name in names:
        value, needed = getattr(config, name), getattr(possible, name)
        if value != needed:
            yield f"{name} {value!r}" + ("" if needed is None else f", only {needed!r}")


def diffusers_differences(config: WanVAEConfig, class_name: DiffusersClass) -> Iterator[str]:
    """Yields what a class of diffusers cannot express of an architecture, for people."""
    config = config.simplest()
    possible = QWEN_IMAGE_21 if class_name == QWEN_IMAGE_21_CLASS else WanVAEConfig()
    names = (*BLOCK_FIELDS, *HALF_FIELDS, "attn_scales", "ndim", "decoder_res_blocks")
    yield from differences(config, possible, names)
    if class_name == WAN_CLASS:
        read, _ = read_diffusers_config(wan_config(config))
        yield from differences(config, read, PIXEL_FIELDS)
    elif class_name == QWEN_IMAGE_CLASS:
        names = (*PIXEL_FIELDS, "decoder_dim", "stage_shortcuts")
        yield from differences(config, possible, names)
        alike = replace(config, out_channels=config.in_channels)
        yield from differences(config, alike, ("out_channels",))
    else:
        yield from differences(config, possible, ("stage_shortcuts", "upscale_factor"))
