"""Files of many clips that an interruption leaves unfinished: the next run goes on with them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import IO

import torch

from wanvae.dataset.files import DAMAGE, find_clip_tensors, find_starts, indexed
from wanvae.dataset.records import IndexedClip
from wanvae.dataset.settings import DatasetOptions
from wanvae.dataset.stored import LatentsFilePlan, has_changed
from wanvae.engine.storage.remote_path import Location
from wanvae.engine.storage.retries import RemoteError
from wanvae.latents.spool import LatentsSpool

PREFIX = "unfinished-"


@dataclass(frozen=True)
class SavedClip:
    """A clip in a file that is not finished.

    Attributes:
        path: the file.
        clip: the clip, and the place of its latents. The latents of its conditions follow.
        times: the times of its frames.
        metadata: as in a file with only this clip.
    """

    path: Location
    clip: IndexedClip
    times: tuple[float, ...]
    metadata: dict[str, str]

    def copy_to(self, spools: Sequence[LatentsSpool], options: DatasetOptions) -> None:
        """Puts the clip into the first spool, and its conditions into the others, in order."""
        channels, length, *space = self.clip.shape
        with self.path.open("rb") as file:
            file.seek(self.clip.offset)
            for spool, each in zip(spools, options.lengths(length), strict=True):
                shape = len(options.tensors) * channels, each, *space
                content = bytearray(file.read(prod(shape) * options.torch_dtype.itemsize))
                spool.write(torch.frombuffer(content, dtype=options.torch_dtype).view(shape))
        spools[0].times.extend(self.times)


def unfinished_name(name: str) -> str:
    """Returns the name that a file has before it is finished."""
    path = PurePosixPath(name)
    return str(path.with_name(PREFIX + path.name))


def read_unfinished(folder: Location, file: LatentsFilePlan) -> dict[str, SavedClip]:
    """Returns the clips in the unfinished file that an interrupted run has left, by name.

    Clips of videos that have changed are left out. A damaged file has no clips.
    """
    path = folder / unfinished_name(file.name)
    planned = {clip.name: clip for clip in file.clips}
    try:
        with path.open("rb") as content:
            saved = list(saved_clips(path, content))
    except RemoteError:
        raise
    except DAMAGE:
        return {}
    found = {each.clip.name: each for each in saved}
    return {
        name: each
        for name, each in found.items()
        if name in planned and not has_changed(each.clip, planned[name])
    }


def saved_clips(path: Location, content: IO[bytes]) -> Iterator[SavedClip]:
    """Yields the clips of a file of many clips."""
    for start in find_starts(content, path.suffix):
        for prefix, tensors, metadata, data in find_clip_tensors(content, start):
            content.seek(data + tensors[f"{prefix}times"]["data_offsets"][0])
            times = array("d", content.read(8 * tensors[f"{prefix}times"]["shape"][0]))
            clip = indexed(tensors, prefix, metadata, path.name, data)
            yield SavedClip(path, clip, tuple(times), dict(metadata))
