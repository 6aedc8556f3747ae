"""Latents as musubi-tuner caches them: ``NAME_wan.safetensors`` with one tensor of a clip.

The tensor is called ``latents_TxHxW_DTYPE``, is ``(C, T, H, W)``, and is normalized. Others in the
file, like ``latents_image_TxHxW_DTYPE``, are conditions of a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import IO

from wanvae.engine.config import check
from wanvae.latents.formats.base import Format, Found, Header, refuse_others
from wanvae.latents.formats.layout import RECORD, ClipFacts, Condition, Layout, write_safetensors
from wanvae.latents.spool import LatentsSpool

NAME = re.compile(r"latents_\d+x\d+x\d+_\w+")
# Architectures of musubi-tuner with latents of Wan2.1 or Qwen-Image.
ARCHITECTURES = ("wan", "qwen_image", "krea2")


def find(header: Header) -> list[Found]:
    """Returns the latents of a clip."""
    found = [name for name in header.shapes if NAME.fullmatch(name)]
    if found:
        refuse_others(header.metadata.get("architecture", ""), ARCHITECTURES, str(header.path))
    return [Found(name, header.shapes[name], axes="CTHW") for name in found]


MUSUBI = Format("musubi", "musubi-tuner", "normalized", find)


def file_name(facts: ClipFacts) -> str:
    """Returns the name of the file of a clip. Images have the size that they had."""
    stem, architecture = facts.path.stem, facts.architecture
    height, width = facts.original if facts.is_image else facts.size
    if not facts.is_image:
        stem = f"{stem}_{facts.first:05d}-{facts.frames:03d}"
    return f"{stem}_{width:04d}x{height:04d}_{architecture}.safetensors"


def write(
    file: IO[bytes],
    facts: ClipFacts,
    spool: LatentsSpool,
    record: str,
    conditions: Mapping[Condition, LatentsSpool],
) -> None:
    """Writes the file of a clip.

    Raises:
        UserError: musubi-tuner has no such architecture.
    """
    _, length, height, width = spool.shape
    pixels = facts.original if facts.is_image else facts.size
    metadata = {
        "architecture": full_name(facts.architecture),
        "width": str(pixels[1]),
        "height": str(pixels[0]),
        "format_version": "1.0.1",
        **({} if facts.is_image else {"frame_count": str(facts.frames)}),
        RECORD: record,
    }
    name = f"latents_{length}x{height}x{width}_{facts.dtype}"
    controls = {name.replace("_", "_control_", 1): latents for latents in conditions.values()}
    write_safetensors(file, spool, name, spool.shape, metadata, conditions=controls)


def full_name(architecture: str) -> str:
    """Returns the long name of an architecture by the short name at the end of names of files."""
    names = {"wan": "wan", "qi": "qwen_image", "kr2": "krea2"}
    check(architecture in names, "architecture", architecture, " or ".join(names))
    return names[architecture]


MUSUBI_LAYOUT = Layout(
    name="musubi",
    program="musubi-tuner",
    scale="normalized",
    store="mean",
    dtype="bfloat16",
    file_name=file_name,
    write=write,
    architectures={16: "wan"},
    conditions={"control": ("wan",)},
)
