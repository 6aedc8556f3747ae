"""The files that hold the latents of a data set: which clips are in each, writing, finding them.

Which file a clip is in follows from the list of clips alone, so files do not depend on who writes
them. Each file appears once it is complete.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from os import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from wanvae.config import WanVAEConfig
from wanvae.dataset.records import IndexedClip
from wanvae.dataset.settings import Container, DatasetOptions, DatasetSettings
from wanvae.engine.config import from_json_dict, parse_json
from wanvae.engine.files import atomic_path
from wanvae.errors import UserError
from wanvae.folders.clips import Clip
from wanvae.latents.file import VideoShape, video_metadata
from wanvae.latents.spool import LatentsSpool, safetensors_header

SUFFIX = ".safetensors"
# In the metadata of a safetensors file of many clips.
SHARD_FORMAT = "wanvae-latents-shard"
# Bytes; readers of safetensors allow no more.
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Unit:
    """A file of latents, which is written as a whole.

    Attributes:
        file: below the folder of the data set.
        clips: in it.
    """

    file: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class StoredClip:
    """A clip to write.

    Attributes:
        name: of the clip.
        metadata: of a file that has this clip alone.
        spool: its latents.
    """

    name: str
    metadata: dict[str, str]
    spool: LatentsSpool


def plan_units(
    clips: Sequence[Clip], options: DatasetOptions, config: WanVAEConfig
) -> Iterator[Unit]:
    """The files for ``clips``, in the same order."""
    if options.container == "files":
        for clip in clips:
            yield Unit(clip.name + SUFFIX, (clip,))
        return
    suffix = ".tar" if options.container == "tar" else SUFFIX
    number, waiting, size = 0, [], 0
    for clip in clips:
        waiting.append(clip)
        size += expected_size(clip, options, config)
        if size >= options.shard_size or clip is clips[-1]:
            yield Unit(f"shard-{number:05}{suffix}", tuple(waiting))
            number, waiting, size = number + 1, [], 0


def expected_size(clip: Clip, options: DatasetOptions, config: WanVAEConfig) -> int:
    """Bytes of the latents of a clip, if its video is as long as its header says."""
    length = 1 + (clip.frames - 1) // config.temporal_factor
    space = prod(side // config.spatial_factor for side in clip.size)
    values = len(options.tensors) * config.z_dim * length * space
    return values * options.torch_dtype.itemsize


def clip_metadata(clip: Clip, settings: DatasetSettings) -> dict[str, str]:
    """The metadata of a file of a clip: what ``wanvae decode`` needs, and where it comes from."""
    height, width = clip.size
    video = VideoShape(height=height, width=width, fps=str(clip.fps), source=clip.source)
    origin = {
        "name": clip.name,
        "start": float(clip.start),
        "store": settings.options.store,
        "checkpoint": settings.checkpoint,
        "latents_mean": settings.latents_mean,
        "latents_std": settings.latents_std,
    }
    normalized = settings.options.scale == "normalized"
    return video_metadata(video, normalized=normalized) | {"clip": json.dumps(origin)}


# Writing


def write_single(path: Path, clips: Iterable[StoredClip]) -> None:
    """Write the only clip there may be as a file."""
    for clip in clips:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            clip.spool.write_file(file, clip.metadata)


def write_tar(path: Path, clips: Iterable[StoredClip]) -> None:
    """Write an uncompressed tar of a safetensors file for each clip."""
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
        for clip in clips:
            # Time and owner are left at 0, so that the bytes tell nothing of this run.
            member = tarfile.TarInfo(clip.name + SUFFIX)
            with TemporaryFile(dir=path.parent) as file:
                clip.spool.write_file(file, clip.metadata)
                member.size = file.tell()
                file.seek(0)
                tar.addfile(member, file)


def write_shard(path: Path, clips: Iterable[StoredClip]) -> None:
    """Write a safetensors file of all clips; the names of tensors begin with that of their clip."""
    times, latents, metadata = {}, {}, {}
    times_content = bytearray()
    with atomic_path(path) as temporary, TemporaryFile(dir=path.parent) as data:
        for clip in clips:
            metadata[clip.name] = clip.metadata
            times[f"{clip.name}/times"] = clip.spool.times_entry()
            times_content += clip.spool.times_content()
            for name, entry in clip.spool.entries().items():
                latents[f"{clip.name}/{name}"] = entry
            clip.spool.copy_to(data)
        data.seek(0)
        with temporary.open("wb") as file:
            described = {"format": SHARD_FORMAT, "clips": json.dumps(metadata)}
            file.write(safetensors_header(times | latents, described))
            file.write(times_content)
            shutil.copyfileobj(data, file)


WRITERS: dict[Container, Callable[[Path, Iterable[StoredClip]], None]] = {
    "files": write_single,
    "tar": write_tar,
    "safetensors": write_shard,
}


# Finding


def index_file(folder: Path, file: str) -> list[IndexedClip]:
    """The clips in a file of latents below ``folder``.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / file
    try:
        with path.open("rb") as content:
            if path.suffix == ".tar":
                with tarfile.open(fileobj=content, mode="r:") as tar:
                    starts = [member.offset_data for member in tar]
            else:
                starts = [0]
            return [clip for start in starts for clip in index_tensors(content, start, file)]
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and run encode-dataset again"
        ) from error


def index_tensors(content: IO[bytes], start: int, file: str) -> Iterator[IndexedClip]:
    """The clips of safetensors that begin at a byte of a file."""
    content.seek(start)
    size = int.from_bytes(content.read(8), "little")
    tensors = parse_json(content.read(min(size, LARGEST_HEADER)).decode())
    metadata = tensors.pop("__metadata__")
    start += 8 + size
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if content.seek(0, SEEK_END) < start + end:
        raise UserError("it ends too early")
    if metadata["format"] == SHARD_FORMAT:
        for name, described in parse_json(metadata["clips"]).items():
            yield indexed(tensors, f"{name}/", described, file, start)
    else:
        yield indexed(tensors, "", metadata, file, start)


def indexed(
    tensors: Mapping[str, Any], prefix: str, metadata: Mapping[str, str], file: str, start: int
) -> IndexedClip:
    """A clip whose tensors have names that begin with ``prefix``, and data from ``start`` on."""
    video = from_json_dict(VideoShape, parse_json(metadata["video"]))
    origin = parse_json(metadata["clip"])
    first = next(tensors[prefix + name] for name in ("mean", "latents") if prefix + name in tensors)
    return IndexedClip(
        name=origin["name"],
        source=video.source,
        start=origin["start"],
        fps=str(Fraction(video.rate)),
        frames=tensors[f"{prefix}times"]["shape"][0],
        height=video.height,
        width=video.width,
        file=file,
        offset=start + first["data_offsets"][0],
        shape=tuple(first["shape"]),
    )
