"""A clip to train on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LatentClip(NamedTuple):
    """A clip to train on.

    Attributes:
        latents: ``(z_dim, T, H, W)``, float32, normalized.
        fps: frames per second of the video; NaN for a cache of another program.
        source: name of the video.
    """

    latents: Tensor
    fps: float
    source: str
