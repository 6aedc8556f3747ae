"""Which files of a directory hold a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from wanvae.checkpoints.diffusers_layout import (
    DIFFUSERS_CONFIG,
    DIFFUSERS_WEIGHTS,
    read_diffusers_json,
    weight_names,
)
from wanvae.checkpoints.hub import SINGLE_FILES
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.hub import SUFFIXES
from wanvae.engine.text import first_few
from wanvae.errors import UserError

# diffusion_pytorch_model.fp16.safetensors, and the list of parts of such a model.
VARIANT = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<one>\w+)\.(?:safetensors|bin)"
    r"|\.(?:safetensors|bin)\.index\.(?P<parts>\w+)\.json)"
)


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint in a directory.

    Attributes:
        file: the file with the tensors, or the index of the files with parts of them.
        notes: what was chosen, for people; one sentence each.
    """

    file: Path
    notes: tuple[str, ...] = ()


def find_config(directory: Path) -> Path | None:
    """Returns the config.json of the diffusers model in a directory; None if files stand alone.

    The model may be in the directory ``vae`` in it. A config.json of something else counts only if
    there is no file with the name of a published checkpoint.

    Raises:
        CheckpointError: the directory holds neither a config.json nor a file of weights.
    """
    configs = (directory / DIFFUSERS_CONFIG, directory / "vae" / DIFFUSERS_CONFIG)
    for config in configs:
        if config.is_file() and (is_vae(config) or not published_files(directory)):
            return config
    if not weight_files(directory):
        raise CheckpointError(
            f"{directory} is not a diffusers model, because it holds neither {DIFFUSERS_CONFIG} "
            f"nor vae/{DIFFUSERS_CONFIG}, and it holds no file of weights; name a checkpoint file "
            "instead"
        )
    return None


def is_vae(config: Path) -> bool:
    """Returns whether a config.json is of a VAE, and not of the transformer beside it."""
    try:
        read_diffusers_json(config)
    except UserError:
        return False
    return True


def find_weights(directory: Path, variant: str | None = None) -> Weights:
    """Returns the weights of the diffusers model whose config.json is in this directory.

    Args:
        variant: the variant, like "fp16"; None takes the plain files, or the only variant.

    Raises:
        CheckpointError: the weights, or this variant, are not there.
    """
    file = first_that_exists(directory, weight_names(variant))
    if file is not None:
        return Weights(file)
    variants = find_variants(directory)
    if variant is not None:
        held = f"only {', '.join(variants)}" if variants else "nor any other"
        raise CheckpointError(f"{directory} holds no variant {variant!r}, {held}; name another")
    if len(variants) > 1:
        raise CheckpointError(
            f"{directory} holds the variants {', '.join(variants)}; choose with --variant "
            f"{variants[0]} or from_pretrained(..., variant={variants[0]!r})"
        )
    if not variants:
        raise CheckpointError(
            f"{directory} holds neither {DIFFUSERS_WEIGHTS} nor another file of weights that "
            "diffusers writes; download it again"
        )
    (only,) = variants
    return replace(find_weights(directory, only), notes=(f"variant: {only}, the only one",))


def first_that_exists(directory: Path, names: Iterable[str]) -> Path | None:
    """Returns the first of some files that a directory holds; None if it holds none of them."""
    return next((directory / name for name in names if (directory / name).exists()), None)


def find_variants(directory: Path) -> list[str]:
    """Returns the variants of the diffusers model in a directory, in the order of the alphabet."""
    matches = (VARIANT.fullmatch(path.name) for path in directory.iterdir())
    return sorted({match["one"] or match["parts"] for match in matches if match})


def published_files(directory: Path) -> list[Path]:
    """Returns the files of a directory that have the name of a published checkpoint."""
    return [directory / name for name in SINGLE_FILES if (directory / name).is_file()]


def weight_files(directory: Path) -> list[Path]:
    """Returns the files of a directory that may be checkpoints."""
    return published_files(directory) or sorted(
        path for path in directory.iterdir() if path.is_file() and path.name.endswith(SUFFIXES)
    )


def find_single_file(directory: Path) -> Weights:
    """Returns the only checkpoint of a directory without a diffusers model.

    Raises:
        CheckpointError: there are several.
    """
    files = weight_files(directory)
    if len(files) > 1:
        names = first_few([path.name for path in files])
        raise CheckpointError(f"{directory} holds {len(files)} checkpoints ({names}); name one")
    return Weights(files[0], (f"file: {files[0].name}",))
