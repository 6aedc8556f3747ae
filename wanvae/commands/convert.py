"""Conversion of checkpoints from any layout to any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike

import torch
from torch import Tensor

from wanvae.checkpoints import formats
from wanvae.checkpoints.architecture import infer_config
from wanvae.checkpoints.formats import Checkpoint, Layout
from wanvae.checkpoints.latent_statistics import with_known_statistics
from wanvae.config import WanVAEConfig
from wanvae.engine.checkpoint import check_tensors
from wanvae.model import WanVAE

WRITERS = {
    Layout.NATIVE: formats.save_native,
    Layout.WAN: formats.save_wan,
    Layout.DIFFUSERS: formats.save_diffusers,
    Layout.QWEN_IMAGE: formats.save_qwen_image,
}
# Layouts with other names than the official ones.
RENAMING = (Layout.DIFFUSERS, Layout.QWEN_IMAGE)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        source: the layout that was read.
        target: the layout that was written.
        tensors: how many tensors were written.
        renamed: how many of them have another name than before.
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
) -> ConversionReport:
    """Write the checkpoint ``source``, of any layout, as ``destination`` in another.

    Args:
        destination: ``.safetensors`` for native, ``.pth`` or ``.safetensors`` for wan, a directory
            for diffusers and qwen-image. It may be ``source`` itself.
        dtype: of the floating point tensors that are written; None keeps that of each.

    Raises:
        CheckpointError: ``source`` cannot be read or is no complete model, or ``destination``
            cannot be written, or its layout cannot say the architecture. Nothing is written then.
    """
    checkpoint = load_complete(source)
    config, tensors = checkpoint.config, checkpoint.tensors
    if dtype is not None:
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    WRITERS[target](destination, config, tensors)
    # Diffusers has another name for every tensor.
    changed = (checkpoint.layout in RENAMING) != (target in RENAMING)
    return ConversionReport(
        source=checkpoint.layout,
        target=target,
        tensors=len(tensors),
        renamed=len(tensors) if changed else 0,
        notes=checkpoint.notes + (lost(config, tensors) if target is Layout.WAN else ()),
    )


def load_complete(path: str | PathLike[str]) -> Checkpoint:
    """Read a checkpoint of any layout and check that its tensors are those of its architecture.

    Raises:
        CheckpointError: ``path`` cannot be read or is no complete model.
    """
    checkpoint = formats.load(path)
    with torch.device("meta"):
        check_tensors(WanVAE(checkpoint.config), checkpoint.tensors, path)
    return checkpoint


def lost(config: WanVAEConfig, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A note on what of ``config`` the tensors alone do not tell, if anything."""
    told, _ = with_known_statistics(infer_config(tensors))
    names = [f.name for f in fields(config) if getattr(told, f.name) != getattr(config, f.name)]
    return (f"not kept in the wan layout: {', '.join(names)}",) if names else ()
