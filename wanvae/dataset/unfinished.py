"""Files of many clips that an interruption leaves unfinished: the next run goes on with them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import IO

import torch

from wanvae.dataset.control import with_controls
from wanvae.dataset.files import DAMAGE, find_clip_tensors, find_starts, first_tensor
from wanvae.dataset.settings import DatasetOptions
from wanvae.dataset.stored import LatentsFilePlan
from wanvae.engine.config import from_json_dict, parse_json
from wanvae.engine.digest import Stamp
from wanvae.engine.storage.remote_path import Location
from wanvae.engine.storage.retries import RemoteError
from wanvae.folders.clips import Clip
from wanvae.latents.spool import LatentsSpool

PREFIX = "unfinished-"


@dataclass(frozen=True)
class SavedClip:
    """A clip in a file that is not finished.

    Attributes:
        path: the file.
        offset: the first byte of its latents. The latents of its conditions follow.
        shape: the shape of each of its tensors.
        times: the times of its frames.
        metadata: as in a file with only this clip.
    """

    path: Location
    offset: int
    shape: tuple[int, ...]
    times: tuple[float, ...]
    metadata: dict[str, str]

    def copy_to(self, spools: Sequence[LatentsSpool], options: DatasetOptions) -> None:
        """Puts the clip into the first spool, and its conditions into the others, in order."""
        channels, length, *space = self.shape
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for spool, each in zip(spools, options.lengths(length), strict=True):
                shape = len(options.tensors) * channels, each, *space
                content = bytearray(prod(shape) * options.torch_dtype.itemsize)
                content[:] = file.read(len(content))
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
            found = dict(saved_clips(path, content))
    except RemoteError:
        raise
    except DAMAGE:
        return {}
    return {
        name: clip for name, clip in found.items() if name in planned and is_of(clip, planned[name])
    }


def is_of(saved: SavedClip, clip: Clip) -> bool:
    """Whether neither the video of a clip nor its control has changed since it was encoded."""
    origin = parse_json(saved.metadata["clip"])
    stamps = [origin[name] for name in ("stamp", "control") if name in origin]
    entries = [part.entry for part in with_controls([clip])]
    return len(stamps) == len(entries) and all(
        from_json_dict(Stamp, stamp).matches(entry.stamp)
        for stamp, entry in zip(stamps, entries, strict=True)
    )


def saved_clips(path: Location, content: IO[bytes]) -> Iterator[tuple[str, SavedClip]]:
    """Yields names and clips of a file of many clips."""
    for start in find_starts(content, path.suffix):
        for prefix, tensors, metadata, data in find_clip_tensors(content, start):
            content.seek(data + tensors[f"{prefix}times"]["data_offsets"][0])
            times = array("d", content.read(8 * tensors[f"{prefix}times"]["shape"][0]))
            first = first_tensor(tensors, prefix)
            name = parse_json(metadata["clip"])["name"]
            yield (
                name,
                SavedClip(
                    path,
                    data + first["data_offsets"][0],
                    tuple(first["shape"]),
                    tuple(times),
                    dict(metadata),
                ),
            )
