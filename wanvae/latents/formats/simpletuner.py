"""Latents as SimpleTuner caches them: ``SHA256.pt``, a tensor that ``torch.save`` wrote.

The tensor is ``(C, T, H, W)`` and normalized. The name of the file is the SHA-256 of the name of
the video without its suffix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import IO

from torch import Tensor

from wanvae.latents.formats.base import Format, Found
from wanvae.latents.formats.layout import ClipFacts, Condition, Layout, write_archive
from wanvae.latents.formats.plain import Pickle, find_in_pickle
from wanvae.latents.spool import LatentsSpool

HASHED_NAME = re.compile(r"[0-9a-f]{64}\.pt")


def find(content: Pickle) -> list[Found]:
    """Returns the latents of a clip."""
    hashed = HASHED_NAME.fullmatch(content.path.name)
    bare = isinstance(content.value, Tensor)
    return find_in_pickle(content) if hashed and bare else []


SIMPLETUNER = Format("simpletuner", "SimpleTuner", "normalized", find, ordered=False)


def file_name(facts: ClipFacts) -> str:
    """Returns the path of the file of a clip."""
    digest = hashlib.sha256(facts.path.stem.encode()).hexdigest()
    return str(facts.path.parent / f"{digest}.pt")


def write(
    file: IO[bytes],
    facts: ClipFacts,
    spool: LatentsSpool,
    record: str,
    conditions: Mapping[Condition, LatentsSpool],
) -> None:
    """Writes the file of a clip."""
    write_archive(file, spool.tensor(), record)


SIMPLETUNER_LAYOUT = Layout(
    name="simpletuner",
    program="SimpleTuner",
    scale="normalized",
    store="mean",
    dtype="bfloat16",
    file_name=file_name,
    write=write,
    one_clip=True,
    note="name the folder as cache_dir_vae, and keep hash_filenames, which is the default",
)
