"""Opening the latents of one video, whichever program wrote them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from wanvae.latents.cached import CachedClip, find_cache, is_own, pick
from wanvae.latents.file import LatentsFile, read_latents

LOGGER = logging.getLogger("wanvae")


@contextmanager
def open_latents(
    path: str | PathLike[str], channels: int | None = None, entry: str | None = None
) -> Iterator[LatentsFile]:
    """Opens the latents of a video: of this package, or of a program that ``formats`` lists.

    Args:
        path: a file, or a folder of another program.
        channels: channels of the model that decodes them; None if it is not known.
        entry: the name of the clip, where there are several.

    Raises:
        CheckpointError: there are no latents, there are several without ``entry``, they have other
            channels, or a file cannot be read.
    """
    path = Path(path)
    if not path.is_dir() and is_own(path):
        with read_latents(path) as latents:
            yield latents
        return
    clip = pick(path, find_cache(path, channels).clips, entry)
    if clip.ambiguous:
        LOGGER.warning("%s: its latents are read as a video (z_dim, T, H, W), not as images", path)
    yield latents_of(clip)


def latents_of(clip: CachedClip) -> LatentsFile:
    """Returns the latents of a clip of another program."""
    channels, length, height, width = clip.shape
    return LatentsFile(
        channels=channels,
        length=length,
        height=height,
        width=width,
        video=None,
        times=(),
        normalized=None if clip.scale is None else clip.scale == "normalized",
        model="",
        encoders=(),
        program=clip.program,
        start=None,
        end=None,
        _slices=clip.load(),
    )
