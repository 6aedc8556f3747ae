"""Clips and files of a data set, before and after they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from os import SEEK_END
from typing import IO, Any

from wanvae.config import WanVAEConfig
from wanvae.dataset.records import IndexedClip
from wanvae.dataset.settings import DatasetOptions
from wanvae.engine.config import from_json_dict, parse_json
from wanvae.engine.digest import Stamp
from wanvae.errors import UserError
from wanvae.folders.clips import Clip
from wanvae.latents.file import VideoShape
from wanvae.latents.formats.layout import ClipFacts, Condition
from wanvae.latents.spool import LatentsSpool

# Bytes. Readers of safetensors allow no longer header.
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class LatentsFilePlan:
    """A file of latents, which is written as a whole.

    Attributes:
        name: its path, relative to the folder of the data set.
        clips: the clips in it.
        facts: what the layout of another program needs to know of each clip; empty for our own.
    """

    name: str
    clips: tuple[Clip, ...]
    facts: tuple[ClipFacts, ...] = ()

    @property
    def pixels(self) -> int:
        """Pixels of all clips together."""
        return sum(clip.pixels for clip in self.clips)


@dataclass(frozen=True)
class Timeline:
    """When the frames of a clip are shown, in seconds from the first frame of the video.

    Attributes:
        times: when each of them begins.
        end: when the last of them ends; None if it is not known.
    """

    times: tuple[float, ...]
    end: float | None


@dataclass(frozen=True)
class StoredClip:
    """A clip that is ready to be written.

    Attributes:
        name: name of the clip.
        metadata: metadata of a file with only this clip.
        spool: the latents.
        facts: as for ``LatentsFilePlan``; None for our own files.
        conditions: latents of its first frame and of its control, in the order of the settings.
    """

    name: str
    metadata: dict[str, str]
    spool: LatentsSpool
    facts: ClipFacts | None = None
    conditions: Mapping[Condition, LatentsSpool] = field(default_factory=dict)


def expected_size(clip: Clip, options: DatasetOptions, config: WanVAEConfig) -> int:
    """Returns the bytes of the latents of a clip, if its video is as long as its header says."""
    length = 1 + (clip.frames - 1) // config.temporal_factor
    space = prod(side // config.spatial_factor for side in clip.size)
    values = len(options.tensors) * config.z_dim * sum(options.lengths(length)) * space
    return values * options.torch_dtype.itemsize


def indexed_clip(
    metadata: Mapping[str, str], frames: int, shape: tuple[int, ...], file: str, offset: int
) -> IndexedClip:
    """Returns a clip by its metadata and its place in a file of latents."""
    video = from_json_dict(VideoShape, parse_json(metadata["video"]))
    origin = parse_json(metadata["clip"])
    return IndexedClip(
        name=origin["name"],
        source=video.source,
        start=origin["start"],
        fps=str(Fraction(video.rate)),
        frames=frames,
        height=video.height,
        width=video.width,
        file=file,
        offset=offset,
        shape=shape,
        stamp=from_json_dict(Stamp, origin["stamp"]) if "stamp" in origin else None,
        control=from_json_dict(Stamp, origin["control"]) if "control" in origin else None,
        cut_from=origin.get("cut_from", ""),
    )


def has_changed(stored: IndexedClip, planned: Clip) -> bool:
    """Whether the video of a clip, its scene or its control has changed since it was encoded.

    Clips of earlier versions, which do not tell the state of their video, count as unchanged.
    """
    if stored.cut_from != planned.cut_from:
        return True
    control = None if planned.control is None else planned.control.entry
    return any(
        stamp is not None and entry is not None and not stamp.matches(entry.stamp)
        for stamp, entry in ((stored.stamp, planned.entry), (stored.control, control))
    )


def read_header(content: IO[bytes], start: int) -> tuple[dict[str, Any], dict[str, str], int]:
    """Returns the tensors and metadata of safetensors in a file, and the first byte of their data.

    Args:
        start: the first byte of the safetensors.

    Raises:
        UserError: the file ends too early.
    """
    content.seek(start)
    size = int.from_bytes(content.read(8), "little")
    tensors = parse_json(content.read(min(size, LARGEST_HEADER)).decode())
    metadata = tensors.pop("__metadata__")
    start += 8 + size
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if content.seek(0, SEEK_END) < start + end:
        raise UserError("it ends too early")
    return tensors, metadata, start
