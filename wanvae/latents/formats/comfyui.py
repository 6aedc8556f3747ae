"""Latents as ComfyUI saves them: ``NAME.latent``, a safetensors file.

The tensor is called ``latent_tensor`` and is ``(B, C, T, H, W)``, or ``(B, C, H, W)`` of images.
The nodes of ComfyUI itself save raw latents, and those of WanVideoWrapper normalized ones.
"""

from __future__ import annotations

from wanvae.latents.formats.base import Format, Found, Header

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
