"""Reading the model in one file of named tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from wanvae.checkpoints.architecture import half_of, infer_config
from wanvae.checkpoints.checkpoint import Checkpoint, Layout, Storage
from wanvae.checkpoints.companions import find_statistics
from wanvae.checkpoints.diffusers_layout import (
    count_stages_and_blocks,
    from_diffusers,
    with_axis_of_time,
)
from wanvae.checkpoints.finding import (
    DIFFUSERS,
    WAN,
    Candidate,
    Family,
    choose,
    find_candidates,
    names_without_wrappers,
)
from wanvae.checkpoints.foreign import is_lora, refusal
from wanvae.checkpoints.latent_statistics import (
    NO_STATISTICS,
    Statistics,
    known_statistics,
    with_statistics,
)
from wanvae.checkpoints.precision import storage_kinds, widen
from wanvae.checkpoints.tiny import TINY, infer_tiny_config, with_network_latents
from wanvae.config import Half, WanVAEConfig
from wanvae.engine.checkpoint import open_tensors
from wanvae.engine.config import from_json_dict, parse_json
from wanvae.engine.stored_tensors import StoredFile, StoredTensors
from wanvae.engine.text import first_few
from wanvae.errors import UserError
from wanvae.tiny_config import TinyVAEConfig

INFERRED = "architecture: inferred from the names and shapes of the tensors"
# What the metadata of a native checkpoint say it is, and the class of its config.
NATIVE_FORMATS: dict[str, type[WanVAEConfig] | type[TinyVAEConfig]] = {
    "wanvae": WanVAEConfig,
    "wanvae-tiny": TinyVAEConfig,
}
# What the metadata of a decoder alone say whose latents it decodes with: digests of an encoder.
DECODES = "decodes_latents_of"
# Beginnings of the names that belong to the other half of a model.
OTHER_ROOTS: Mapping[Half, str] = {"encoder": "conv2.", "decoder": "conv1."}
# Models in one file, above which it was written to keep readers busy.
MOST_MODELS = 100
# The largest part of a model in its file: quantized tensors grow, and tensors may share memory.
GROWTH = 8
ROOM = 2**20


def load_file(path: Path, key: str | None = None, dtype: torch.dtype | None = None) -> Checkpoint:
    """Reads a checkpoint from a file.

    Args:
        key: as for ``Source``.
        dtype: as for ``load``.

    Raises:
        CheckpointError: the file cannot be read.
        UserError: it holds no model, or several.
    """
    file = without_wrappers(open_tensors(path))
    if file.metadata.get("format") in NATIVE_FORMATS:
        return load_native(file, key)
    candidates = find_candidates(file.tensors, tuple(READERS))
    if len(candidates) > MOST_MODELS:
        raise UserError(f"it holds {len(candidates)} models, more than a checkpoint does")
    # A LoRA may hold the weights that it changes, too.
    loras = [n for n, tensor in file.tensors.outline.items() if is_lora({n: tensor})]
    candidates = [c for c in candidates if not any(map(c.owns, loras))]
    if not candidates:
        raise refusal(file.tensors)
    candidate = choose(candidates, file.tensors, key)
    owned = {n.removeprefix(candidate.prefix): n for n in file.tensors if candidate.owns(n)}
    stored = file.tensors.renamed(owned)
    check_growth(stored, file.size)
    quantized = {n: file.quantized[old] for n, old in owned.items() if old in file.quantized}
    tensors, precision = widen(stored, quantized, dtype)
    checkpoint = READERS[candidate.family](tensors)
    if isinstance(checkpoint.config, TinyVAEConfig):
        checkpoint = with_told_latents(checkpoint, checkpoint.config, stored, path)
    statistics, names = find_statistics(file.tensors, candidate.prefix, checkpoint.config.z_dim)
    if statistics is not None:
        checkpoint = replace_statistics(checkpoint, statistics)
    changes = (*notes_on_place(candidate, file, names), *precision)
    return replace(
        checkpoint,
        notes=(*changes, *checkpoint.notes),
        storage=Storage(file.container, storage_kinds(stored, quantized), candidate.prefix),
        changes=(*changes, *checkpoint.changes),
    )


def without_wrappers(file: StoredFile) -> StoredFile:
    """Returns a file whose tensors have the names of a model without wrapped parts."""
    names = names_without_wrappers(file.tensors)
    quantized = {new: file.quantized[old] for new, old in names.items() if old in file.quantized}
    return replace(file, tensors=file.tensors.renamed(names), quantized=quantized)


def load_native(file: StoredFile, key: str | None) -> Checkpoint:
    """Reads a file that ``save_native`` wrote."""
    refuse_key(key)
    config = read_native_config(file.metadata)
    notes = () if config.latents_mean or config.latents_std else (NO_STATISTICS,)
    storage = Storage(file.container, storage_kinds(file.tensors, {}))
    decodes = tuple(file.metadata.get(DECODES, "").split())
    return Checkpoint(config, file.tensors, Layout.NATIVE, notes, storage, decodes=decodes)


def read_native_config(metadata: Mapping[str, str]) -> WanVAEConfig | TinyVAEConfig:
    """Returns the config in the metadata of a native checkpoint."""
    kind = NATIVE_FORMATS[metadata["format"]]
    return from_json_dict(kind, parse_json(metadata.get("config", "")))


def read_official(tensors: StoredTensors) -> Checkpoint:
    """Reads tensors with official names, without a config."""
    tensors = with_axis_of_time(tensors)
    half = half_of(tensors)
    unused = [n for n in tensors if half is not None and n.startswith(OTHER_ROOTS[half])]
    tensors = tensors.renamed({name: name for name in tensors if name not in unused})
    config = infer_config(tensors.outline)
    notes: tuple[str, ...] = ()
    if half is not None:
        left = f"; left unread: {first_few(unused)}" if unused else ""
        notes = (f"half: the file holds only the {half} of a model{left}",)
    checkpoint = Checkpoint(config, tensors, Layout.WAN, (*notes, INFERRED), changes=notes)
    return replace_statistics(checkpoint, known_statistics(config))


def read_bare_diffusers(tensors: StoredTensors) -> Checkpoint:
    """Reads tensors with the names of diffusers, without a config."""
    tensors = from_diffusers(tensors, *count_stages_and_blocks(tensors))
    return replace(read_official(tensors), layout=Layout.DIFFUSERS)


def read_tiny(tensors: StoredTensors) -> Checkpoint:
    """Reads a tiny autoencoder with its published names."""
    config, note = infer_tiny_config(tensors.outline)
    return Checkpoint(config, tensors, Layout.TINY, (INFERRED, note))


def with_told_latents(
    checkpoint: Checkpoint, config: TinyVAEConfig, stored: StoredTensors, path: Path
) -> Checkpoint:
    """Returns the checkpoint of a tiny autoencoder with how its network has latents.

    The name of the file tells so, and whose latents they are, or the dtype tells so.

    Args:
        stored: the tensors as the file has them.
    """
    config, note = with_network_latents(config, stored.outline, path)
    # Tiny autoencoders of other models have 16 channels too.
    assumed = None if "taew" in path.name.lower() else "; ".join([*checkpoint.notes[1:], note])
    return replace(checkpoint, config=config, notes=(*checkpoint.notes, note), assumed=assumed)


# Families of models, and what reads the tensors of each, without the prefix of their names.
READERS: Mapping[Family, Callable[[StoredTensors], Checkpoint]] = {
    WAN: read_official,
    DIFFUSERS: read_bare_diffusers,
    TINY: read_tiny,
}


def replace_statistics(checkpoint: Checkpoint, statistics: Statistics) -> Checkpoint:
    """Returns a checkpoint with other latent statistics, and the note on them."""
    others = tuple(n for n in checkpoint.notes if not n.startswith("latent statistics: "))
    return replace(
        checkpoint,
        config=with_statistics(checkpoint.config, statistics),
        notes=(*others, statistics.note),
        assumed=statistics.note if statistics.assumed else None,
    )


def refuse_key(key: str | None) -> None:
    """Raises UserError if somebody names a key of a checkpoint that holds one model."""
    if key:
        raise UserError(f"it holds one model, so there is no key {key!r} to choose; leave it out")


def check_growth(tensors: StoredTensors, size: int) -> None:
    """Raises UserError if tensors would need much more memory than their file is large.

    Tensors in a pickle can claim any shape that repeats the same numbers.
    """
    total = sum(tensor.numel() * tensor.itemsize for tensor in tensors.outline.values())
    if total > GROWTH * size + ROOM:
        raise UserError(
            f"its tensors would take {total} bytes, but the file has {size}; it is damaged, or "
            "not meant to be loaded"
        )


def notes_on_place(
    candidate: Candidate, file: StoredFile, known: frozenset[str]
) -> tuple[str, ...]:
    """Returns notes on where in a file the model is, and on what else is there.

    Args:
        known: the names of other tensors that are read.
    """
    others = [n for n in file.tensors if not candidate.owns(n) and n not in known]
    others = [n for n in others if n.rsplit(".", 1)[-1] != "scaled_fp8"] + list(file.ignored)
    notes = []
    if candidate.prefix:
        notes.append(f"names: read without the prefix {candidate.prefix}")
    if others:
        count = f"{len(others)} other {'entry' if len(others) == 1 else 'entries'}"
        notes.append(f"left unread, because not of the model: {count}: {first_few(others)}")
    return tuple(notes)
