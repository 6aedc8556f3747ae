"""Latents that people save themselves: a tensor in a ``.pt`` or ``.safetensors`` file.

Pipelines of diffusers give normalized latents with ``output_type="latent"``, encoders raw ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from wanvae.latents.formats.base import Format, Found, Header

# What people call the tensor.
NAMES = ("latents", "latent", "samples")
# Axes of an image, of a video or a batch of images, and of a batch of videos.
DIMENSIONS = (3, 4, 5)


@dataclass(frozen=True)
class Pickle:
    """The content of a file that ``torch.save`` wrote.

    Attributes:
        path: the file.
        value: its content.
    """

    path: Path
    value: object


def tensor_in(value: object, place: str) -> object:
    """Returns what is at a place in the content of a pickle: a key, or "" for the content."""
    if not place:
        return value
    return value.get(place) if isinstance(value, dict) else None


def find_in_pickle(content: Pickle) -> list[Found]:
    """Returns the latents of a clip, or of several."""
    for place in ("", *NAMES):
        latents = tensor_in(content.value, place)
        if isinstance(latents, Tensor) and latents.dim() in DIMENSIONS:
            return [Found(place, tuple(latents.shape))]
    return []


def find_in_header(header: Header) -> list[Found]:
    """Returns the latents of a clip, or of several."""
    names = [name for name in NAMES if len(header.shapes.get(name, ())) in DIMENSIONS]
    return [Found(name, header.shapes[name]) for name in names[:1]]


PLAIN_PICKLE = Format("pt", "another program", None, find_in_pickle, ordered=False)
PLAIN_SAFETENSORS = Format("safetensors", "another program", None, find_in_header, ordered=False)
