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
        caption: caption of the video; empty if there is none.
        first_frame: latents of the first frame alone ``(z_dim, 1, H, W)``, like ``latents``; with 0
            in place of 1 where the data set has none.
        control: latents of a second video at the same times ``(z_dim, T, H, W)``, like ``latents``;
            with 0 in place of T where the data set has none.
    """

    latents: Tensor
    fps: float
    source: str
    caption: str
    first_frame: Tensor
    control: Tensor
