"""Latents as ai-toolkit caches them: ``_latent_cache/NAME_HASH.safetensors``.

The tensor is called ``latent``, is ``(C, T, H, W)`` or, of an image, ``(C, H, W)``, and is
normalized. ``first_frame_latent`` and ``num_frames`` may follow.
"""

from __future__ import annotations

from wanvae.latents.formats.base import Format, Found, Header, refuse_others

TENSOR = "latent"
# How models of ai-toolkit are called that have latents of Wan or Qwen-Image.
MODELS = ("wan", "qwen_image", "krea2")


def find(header: Header) -> list[Found]:
    """Returns the latents of a clip."""
    if TENSOR not in header.shapes:
        return []
    refuse_others(header.metadata.get("latent_space_version", ""), MODELS, str(header.path))
    shape = header.shapes[TENSOR]
    return [Found(TENSOR, shape, axes="CHW" if len(shape) == 3 else "CTHW")]


AI_TOOLKIT = Format("ai-toolkit", "ai-toolkit", "normalized", find)
