"""Latents as musubi-tuner caches them: ``NAME_wan.safetensors`` with one tensor of a clip.

The tensor is called ``latents_TxHxW_DTYPE``, is ``(C, T, H, W)``, and is normalized. Others in the
file, like ``latents_image_TxHxW_DTYPE``, are conditions of a model.
"""

from __future__ import annotations

import re

from wanvae.latents.formats.base import Format, Found, Header, refuse_others

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
