"""LoRAs of a VAE: small matrices that are added to its weights (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from wanvae.checkpoints.diffusers_layout import diffusers_names
from wanvae.checkpoints.formats import Checkpoint, load
from wanvae.checkpoints.pair import with_alpha_decoder
from wanvae.config import RGBA, WanVAEConfig
from wanvae.engine.checkpoint import (
    CheckpointError,
    digest_of_tensors,
    open_tensors,
    write_tensors,
)
from wanvae.engine.stored_tensors import StoredTensors
from wanvae.engine.text import first_few
from wanvae.errors import UserError

# The two matrices of a layer, as PEFT and as other trainers call them, and the number that scales
# them. Wan-Alpha names its convolutions "conv3D", and PEFT its adapter, mostly "default".
PART = re.compile(
    r"(?P<layer>.+?)(\.conv3D)?\."
    r"((?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))"
    r"(\.(?!weight$)\w+)?\.weight"
    r"|(?P<scaled>.+?)(\.conv3D)?\.alpha"
)
# Names of matrices of other kinds of adapters.
OTHERS = re.compile(r".*(lora_magnitude_vector|dora_scale|hada_w\d|lokr_w\d|lora_mid|diff_b?$).*")
# The models of Wan-Alpha: colour (foreground) and alpha.
COLOUR, ALPHA = "vae_fgr.", "vae_pha."
# What the metadata of our LoRAs say that they are, and of which model.
FORMAT = "wanvae-lora"
BASE, BASE_DIGEST = "base", "base_digest"
# Digits of a digest that people see.
SHORT = 8


@dataclass(frozen=True)
class Change:
    """The change of the weight of one layer: ``scale * up @ down``.

    Attributes:
        down: ``(rank, inputs of one output)``, with any axes after the first.
        up: ``(outputs, rank)``, perhaps with axes of size 1.
        scale: what the product is multiplied with.
    """

    down: Tensor
    up: Tensor
    scale: float

    def fits(self, weight: Tensor) -> bool:
        """Returns whether this is a change of a weight of this shape."""
        if min(self.up.dim(), self.down.dim(), weight.dim()) < 2:
            return False
        up, down = self.up.flatten(1), self.down.flatten(1)
        rank_fits = up.shape == (len(weight), len(down))
        return rank_fits and down.shape[1] == math.prod(weight.shape[1:])

    def apply(self, weight: Tensor) -> Tensor:
        """Returns the changed weight, in the dtype of ``weight``."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        change = self.scale * product.reshape(weight.shape)
        return (weight.float() + change).to(weight.dtype)


@dataclass(frozen=True)
class Base:
    """The model that a LoRA changes.

    Attributes:
        name: of its file, folder or repository.
        digest: of its tensors in float32, whatever the layout of the file.
    """

    name: str
    digest: str

    @classmethod
    def of(cls, path: str) -> Base:
        """Returns what identifies the checkpoint ``path``, of any layout.

        Raises:
            CheckpointError: it cannot be read.
        """
        name = Path(path).name if Path(path).exists() else path
        return cls(name, digest_of_base(load(path, dtype=torch.float32)))


def digest_of_base(base: Checkpoint) -> str:
    """Returns a digest of the tensors of a model in float32, as they are trained."""
    return digest_of_tensors(base.tensors.to(torch.float32), {})


def save_lora(
    path: str | PathLike[str],
    changes: Mapping[str, Change],
    base: Base,
    about: Mapping[str, str],
) -> None:
    """Writes a LoRA as a safetensors file with kohya's names, and the model that it belongs to.

    Args:
        changes: by the official names of their layers.
        about: more metadata.

    Raises:
        FileError: the file cannot be written.
    """
    tensors = {}
    for layer, change in changes.items():
        tensors[f"{layer}.lora_down.weight"] = change.down
        tensors[f"{layer}.lora_up.weight"] = change.up
        tensors[f"{layer}.alpha"] = torch.tensor(change.scale * len(change.down))
    metadata = {"format": FORMAT, BASE: base.name, BASE_DIGEST: base.digest, **about}
    write_tensors(path, tensors, metadata)


def load_lora(path: str | PathLike[str]) -> dict[str, Change]:
    """Returns the changes in a plain LoRA, by the names of their layers in the file.

    Raises:
        CheckpointError: the file cannot be read, or is no LoRA.
    """
    try:
        return read_changes(open_tensors(path).tensors, 1.0)[0]
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error


def merge_lora(base: Checkpoint, path: str | PathLike[str]) -> Checkpoint:
    """Returns a model with a LoRA added to its weights.

    The LoRA of Wan-Alpha changes the decoder of ``base`` to a decoder of colour and to a decoder of
    alpha; the result has both.

    Raises:
        CheckpointError: the file cannot be read, is no LoRA, or belongs to another model.
    """
    config = base.config
    if not isinstance(config, WanVAEConfig):
        raise CheckpointError(f"{path} changes a Wan VAE, and not a tiny autoencoder")
    file = open_tensors(path)
    tensors = file.tensors
    try:
        others = [name for name in tensors if OTHERS.fullmatch(name)]
        if others:
            raise UserError(f"only plain LoRAs can be merged, but it has {first_few(others)}")
        if any(name.startswith((COLOUR, ALPHA)) for name in tensors):
            return merge_pair(base, config, tensors)
        changes, unread = read_changes(tensors, 1.0)
        return replace(
            base,
            tensors=add(changes, base.tensors, config),
            notes=(*base.notes, *note_on(changes, unread), *note_on_base(base, file.metadata)),
        )
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error


def merge_pair(base: Checkpoint, config: WanVAEConfig, tensors: StoredTensors) -> Checkpoint:
    """Returns ``base`` with a decoder of colour and a decoder of alpha, by a LoRA of Wan-Alpha."""
    if config.alpha_decoder:
        raise UserError("it makes a decoder of alpha, but the model has one already")
    decoders, notes = [], []
    for prefix in (COLOUR, ALPHA):
        # Only the decoders were trained. Each product is divided by its rank (lora_alpha is 1).
        own = tensors.under(prefix)
        changes, unread = read_changes(own.renamed({n: n for n in own if "decoder" in n}), None)
        decoders.append(add(changes, base.tensors, config))
        notes.extend(f"{prefix}*: {note}" for note in note_on(changes, unread))
    config = replace(config, alpha_decoder=True, out_channels=RGBA)
    merged = with_alpha_decoder(*decoders)
    return replace(base, config=config, tensors=merged, notes=(*base.notes, *notes))


def read_changes(
    tensors: StoredTensors, scale: float | None
) -> tuple[dict[str, Change], list[str]]:
    """Returns the changes by the names of their layers in the file, and what else is there.

    Args:
        scale: the scale of changes without a number ``alpha``; None is 1 / rank.

    Raises:
        UserError: there is no LoRA, or a matrix is missing.
    """
    parts: dict[str, dict[str, str]] = {}
    unread = []
    for name in tensors:
        match = PART.fullmatch(name)
        if match is None:
            unread.append(name)
            continue
        layer = match["layer"] or match["scaled"]
        kind = "down" if match["down"] else "up" if match["up"] else "alpha"
        parts.setdefault(layer, {})[kind] = name
    incomplete = [layer for layer, names in parts.items() if not {"down", "up"} <= names.keys()]
    if incomplete:
        raise UserError(f"one of the two matrices is missing for {first_few(incomplete)}")
    if not parts:
        raise UserError(f"it is no LoRA: it has {first_few(unread) or 'no tensors'}")
    changes = {}
    for layer, names in parts.items():
        down, up = tensors[names["down"]], tensors[names["up"]]
        rank = max(1, len(down))
        if "alpha" in names:
            changes[layer] = Change(down, up, float(tensors[names["alpha"]]) / rank)
        else:
            changes[layer] = Change(down, up, 1 / rank if scale is None else scale)
    return changes, unread


def add(
    changes: Mapping[str, Change], tensors: StoredTensors, config: WanVAEConfig
) -> StoredTensors:
    """Returns tensors with changes added to them.

    Raises:
        UserError: a layer is not of the model, or has another shape.
    """
    names = find_weights(changes, tensors, config)
    by_weight = {name: changes[layer] for layer, name in names.items()}
    for name, change in by_weight.items():
        weight = tensors.outline[name]
        if not change.fits(weight):
            raise UserError(
                f"its matrices for {name} are {tuple(change.up.shape)} and "
                f"{tuple(change.down.shape)}, which do not fit a weight {tuple(weight.shape)}"
            )
    dtypes = {name: tensors.outline[name].dtype for name in by_weight}
    return tensors.changed(dtypes, lambda name, tensor: by_weight[name].apply(tensor))


def find_weights(
    layers: Iterable[str], tensors: Iterable[str], config: WanVAEConfig
) -> dict[str, str]:
    """Returns the name of the weight of each layer of a LoRA, whatever is before the layer's name.

    Layers may have their official names or the names of diffusers, with dots or with underscores.

    Raises:
        UserError: the model has no such layer.
    """
    weights = [name for name in tensors if name.endswith(".weight")]
    theirs = {}
    if config.decoder_res_blocks is None:  # diffusers has no other depth
        stages, blocks = len(config.dim_mult), config.num_res_blocks
        theirs = diffusers_names(stages, blocks, config.stage_shortcuts)
    known = {}
    for weight in weights:
        for name in filter(None, (weight, theirs.get(weight))):
            known["_" + name.removesuffix(".weight").replace(".", "_")] = weight
    longest_first = sorted(known, key=len, reverse=True)
    found, strange = {}, []
    for layer in layers:
        flat = "_" + layer.replace(".", "_")
        name = next((name for name in longest_first if flat.endswith(name)), None)
        if name is None:
            strange.append(layer)
        else:
            found[layer] = known[name]
    if strange:
        raise UserError(
            f"{len(strange)} of its layers are not of this model: {first_few(strange)}; it is a "
            "LoRA of another model"
        )
    return found


def note_on(changes: Mapping[str, Change], unread: list[str]) -> tuple[str, ...]:
    """Returns notes on what was merged, and on what else is in the file."""
    ranks = sorted({len(change.down) for change in changes.values()})
    rank = ranks[0] if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    merged = f"merged a LoRA of rank {rank} into {len(changes)} layers"
    left = f"{len(unread)} other entries of the LoRA left unread: {first_few(unread)}"
    return (merged, left) if unread else (merged,)


def note_on_base(base: Checkpoint, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Returns a note if a LoRA says that it belongs to another model than ``base``."""
    expected = metadata.get(BASE_DIGEST)
    if expected is None:
        return ()
    found, name = digest_of_base(base), metadata.get(BASE, "a model")
    if expected == found:
        return ()
    return (
        f"the LoRA was trained on {name} (digest {expected[:SHORT]}), but it is merged into a "
        f"model with other weights (digest {found[:SHORT]}), so results may be worse",
    )
