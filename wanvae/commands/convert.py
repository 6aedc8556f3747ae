"""Conversion of checkpoints between layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from wanvae.checkpoints import formats
from wanvae.checkpoints.architecture import infer_config
from wanvae.checkpoints.formats import Checkpoint, Layout, digests_of_encoder
from wanvae.checkpoints.latent_statistics import with_known_statistics
from wanvae.checkpoints.lora import merge_lora
from wanvae.checkpoints.pair import join_alpha
from wanvae.checkpoints.tiny import infer_tiny_config, with_network_latents
from wanvae.config import Half, WanVAEConfig, check_has
from wanvae.engine.checkpoint import CheckpointError, check_tensors
from wanvae.model import make_model
from wanvae.tiny_config import TinyVAEConfig

WRITERS = {
    Layout.WAN: formats.save_wan,
    Layout.DIFFUSERS: formats.save_diffusers,
    Layout.QWEN_IMAGE: formats.save_qwen_image,
    Layout.QWEN_IMAGE_21: formats.save_qwen_image_21,
}
# Beginnings of the names of the tensors of each half.
ROOTS: Mapping[Half, tuple[str, ...]] = {
    "encoder": ("encoder.", "conv1."),
    "decoder": ("decoder.", "conv2."),
}
# Layouts in which tensors do not have their official names.
RENAMING = (Layout.DIFFUSERS, Layout.QWEN_IMAGE, Layout.QWEN_IMAGE_21)


@dataclass(frozen=True)
class ConversionReport:
    """The results of a conversion.

    Attributes:
        source: layout that was read.
        target: layout that was written.
        tensors: number of written tensors.
        renamed: number of tensors whose name changed.
        notes: what was assumed in reading and lost in writing, for people; one sentence each.
    """

    source: Layout
    target: Layout
    tensors: int
    renamed: int
    notes: tuple[str, ...]


def convert(
    source: str | PathLike[str],
    destination: str | PathLike[str],
    target: Layout,
    dtype: torch.dtype | None = None,
    *,
    only: Half | None = None,
    alpha: str | PathLike[str] | None = None,
    lora: str | PathLike[str] | None = None,
) -> ConversionReport:
    """Writes the checkpoint ``source``, of any layout, to ``destination`` in the ``target`` layout.

    Args:
        destination: ``.safetensors`` for native, ``.pth`` or ``.safetensors`` for wan, a directory
            for diffusers and qwen-image. It may be ``source`` itself.
        dtype: dtype of the written floating point tensors; None keeps the dtype of each tensor,
            except that float8 and quantized tensors become bfloat16.
        only: the half to write; None writes all that is there.
        alpha: checkpoint whose decoder decodes alpha from the same latents, as in Wan-Alpha. None
            is no alpha.
        lora: file of a LoRA to merge into the model. None is no LoRA.

    Raises:
        CheckpointError: ``source`` cannot be read or is not a complete model, or the layout cannot
            store the architecture. Nothing is written then.
        FileError: ``destination`` cannot be written.
    """
    checkpoint = load_complete(source, dtype)
    if alpha is not None:
        checkpoint = join_alpha(checkpoint, load_complete(alpha, dtype), alpha)
    if lora is not None:
        if dtype is not None:
            # Rounded once, after the merge, so that a wider dtype keeps all of the LoRA.
            wide = checkpoint.tensors.to(torch.float32)
            checkpoint = replace(checkpoint, tensors=wide)
        checkpoint = merge_lora(checkpoint, lora)
    config, tensors = checkpoint.config, checkpoint.tensors
    if only is not None:
        if isinstance(config, TinyVAEConfig):
            raise CheckpointError(f"{source} is a tiny autoencoder, which has no --only")
        check_has(config, only)
        checkpoint = replace(
            checkpoint, decodes=digests_of_encoder(checkpoint) if only == "decoder" else ()
        )
        config = config.only(only)
        tensors = tensors.renamed({n: n for n in tensors if n.startswith(ROOTS[only])})
    if dtype is not None:
        tensors = tensors.to(dtype)
    if target is Layout.NATIVE:
        formats.save_native(destination, config, tensors, checkpoint.decodes)
    elif isinstance(config, TinyVAEConfig):
        save_tiny(destination, config, tensors, target)
    elif target is Layout.TINY:
        raise CheckpointError(f"{source} is no tiny autoencoder: choose another layout for --to")
    else:
        WRITERS[target](destination, config, tensors)
    # Diffusers renames every tensor.
    changed = (checkpoint.layout in RENAMING) != (target in RENAMING)
    return ConversionReport(
        source=checkpoint.layout,
        target=target,
        tensors=len(tensors),
        renamed=len(tensors) if changed else 0,
        notes=checkpoint.notes + lost(config, tensors, target, destination, checkpoint.decodes),
    )


def load_complete(path: str | PathLike[str], dtype: torch.dtype | None = None) -> Checkpoint:
    """Reads a checkpoint of any layout, and checks that its tensors fit its architecture.

    Args:
        dtype: as for ``formats.load``.

    Raises:
        CheckpointError: ``path`` cannot be read or is not a complete model.
    """
    checkpoint = formats.load(path, dtype=dtype)
    with torch.device("meta"):
        check_tensors(make_model(checkpoint.config), checkpoint.tensors, path)
    return checkpoint


def save_tiny(
    destination: str | PathLike[str],
    config: TinyVAEConfig,
    tensors: Mapping[str, Tensor],
    target: Layout,
) -> None:
    """Writes a tiny autoencoder with its published names, and without its config."""
    if target is not Layout.TINY:
        raise CheckpointError(
            f"the {target.value} layout has no tiny autoencoders; use --to {Layout.NATIVE.value} "
            f"or --to {Layout.TINY.value}"
        )
    formats.save_bare(destination, tensors)


def lost(
    config: WanVAEConfig | TinyVAEConfig,
    tensors: Mapping[str, Tensor],
    target: Layout,
    destination: str | PathLike[str],
    decodes: tuple[str, ...],
) -> tuple[str, ...]:
    """Returns a note on what a written file does not tell of a model, if anything.

    Args:
        decodes: of a decoder alone, the digests of the encoder whose latents it decodes.
    """
    if target not in (Layout.WAN, Layout.TINY):
        return ()
    if isinstance(config, TinyVAEConfig):
        told, _ = with_network_latents(infer_tiny_config(tensors)[0], tensors, Path(destination))
    else:
        told, _ = with_known_statistics(infer_config(tensors))
    names = [f.name for f in fields(config) if getattr(told, f.name) != getattr(config, f.name)]
    names += ["whose latents it decodes"] if decodes else []
    return (f"not kept in the {target.value} layout: {', '.join(names)}",) if names else ()
