"""Latents as ComfyUI saves them: ``NAME.latent``, a safetensors file.

The tensor is called ``latent_tensor`` and is ``(B, C, T, H, W)``, or ``(B, C, H, W)`` of images.
The nodes of ComfyUI itself save raw latents, and the nodes of WanVideoWrapper save normalized ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

from wanvae.latents.formats.base import Format, Found, Header
from wanvae.latents.formats.layout import RECORD, ClipFacts, Condition, Layout, write_safetensors
from wanvae.latents.spool import LatentsSpool

TENSOR = "latent_tensor"
# An empty tensor that says that the latents have the scale of their model.
MARKER = "latent_format_version_0"


def find(header: Header) -> list[Found]:
    """Returns the latents of a batch of clips."""
    if TENSOR not in header.shapes:
        return []
    shape = header.shapes[TENSOR]
    return [Found(TENSOR, shape, axes="BCHW" if len(shape) == 4 else "BCTHW")]


COMFYUI = Format("comfyui", "ComfyUI", None, find)


def file_name(facts: ClipFacts) -> str:
    """Returns the name of the file of a clip. The node that loads latents looks into one folder."""
    name = facts.source.replace("/", "_")
    clip = "" if facts.is_image or facts.asked_frames is None else f".{facts.first:05d}"
    return f"{name}{clip}.latent"


def write(
    file: IO[bytes],
    facts: ClipFacts,
    spool: LatentsSpool,
    record: str,
    conditions: Mapping[Condition, LatentsSpool],
) -> None:
    """Writes the file of a clip."""
    metadata = {"prompt": "", RECORD: record}
    others = {MARKER: ("F32", (0,), b"")}
    write_safetensors(file, spool, TENSOR, (1, *spool.shape), metadata, others)


COMFYUI_LAYOUT = Layout(
    name="comfyui",
    program="ComfyUI",
    scale="raw",
    store="mean",
    dtype="float32",
    file_name=file_name,
    write=write,
    note="copy the files into the folder input of ComfyUI, and load them with the node LoadLatent",
)
