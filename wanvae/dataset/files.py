"""Our own files of latents of a data set: which clips each one holds, writing and indexing them.

The list of clips alone decides which clip goes to which file, so the files do not depend on the
process that writes them. A file appears once it is complete.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from wanvae.config import WanVAEConfig
from wanvae.dataset.layouts import finish, index_clips, layout_of
from wanvae.dataset.records import INDEX, IndexedClip, remove_logs
from wanvae.dataset.settings import Container, DatasetOptions, DatasetSettings
from wanvae.dataset.stored import (
    LatentsFilePlan,
    StoredClip,
    Timeline,
    expected_size,
    indexed_clip,
    read_header,
)
from wanvae.engine.config import parse_json, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.engine.json_files import write_lines
from wanvae.engine.storage.remote_path import Location
from wanvae.engine.storage.retries import RemoteError
from wanvae.engine.storage.temporary_files import temporary_file_in
from wanvae.errors import UserError
from wanvae.folders.clips import Clip, writable_rate
from wanvae.folders.tars import TAR_SUFFIX, webdataset_key
from wanvae.latents.file import VideoShape, video_metadata
from wanvae.latents.formats.layout import Layout
from wanvae.latents.spool import safetensors_header

SUFFIX = ".safetensors"
# The format in the metadata of a safetensors file of many clips.
MANY_CLIPS_FORMAT = "wanvae-latents-shard"
# What reading a damaged file raises.
DAMAGE = (
    *(OSError, UserError, UnicodeDecodeError, KeyError, TypeError, ValueError, IndexError),
    *(tarfile.TarError, zipfile.BadZipFile),
)


def plan_files(
    clips: Sequence[Clip], options: DatasetOptions, config: WanVAEConfig
) -> Iterator[LatentsFilePlan]:
    """Yields the files for ``clips``, in the same order."""
    if options.container == "files":
        for clip in clips:
            yield LatentsFilePlan(clip.name + SUFFIX, (clip,))
        return
    suffix = TAR_SUFFIX if options.container == "tar" else SUFFIX
    number, waiting, size = 0, [], 0
    for clip in clips:
        waiting.append(clip)
        size += expected_size(clip, options, config)
        if size >= options.shard_size or clip is clips[-1]:
            yield LatentsFilePlan(f"shard-{number:05}{suffix}", tuple(waiting))
            number, waiting, size = number + 1, [], 0


def clip_metadata(clip: Clip, settings: DatasetSettings, timeline: Timeline) -> dict[str, str]:
    """Returns the metadata of a file with one clip: for ``wanvae decode``, and its origin."""
    height, width = clip.size
    times, end = timeline.times, timeline.end
    video = VideoShape(
        height=height, width=width, fps=str(rate_of_times(times, clip.fps)), source=clip.source
    )
    origin = {
        "name": clip.name,
        "start": times[0],
        "stamp": to_json_dict(clip.entry.stamp),
        "store": settings.options.store,
        "checkpoint": settings.checkpoint,
        "latents_mean": settings.latents_mean,
        "latents_std": settings.latents_std,
    }
    if clip.control is not None:
        origin["control"] = to_json_dict(clip.control.entry.stamp)
    if clip.cut_from:
        origin["cut_from"] = clip.cut_from
    normalized = settings.options.scale == "normalized"
    metadata = video_metadata(
        video,
        normalized=normalized,
        model=settings.model,
        encoders=settings.encoders,
        end=None if end is None else end - times[0],
    )
    return metadata | {"clip": json.dumps(origin)}


def rate_of_times(times: Sequence[float], fps: Fraction) -> Fraction:
    """Returns ``fps`` if frames at these times have this rate, else their mean rate.

    A time may be a quarter of a frame off.
    """
    expected = (times[0] + number / fps for number in range(len(times)))
    if all(abs(time - exact) * fps < 0.25 for time, exact in zip(times, expected, strict=True)):
        return fps
    return writable_rate(Fraction((len(times) - 1) / (times[-1] - times[0])))


# Writing


def write_single(path: Path, clips: Iterable[StoredClip]) -> None:
    """Writes the one clip to a file. Without a clip, writes no file."""
    for clip in clips:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            clip.spool.write_file(file, clip.metadata, [*clip.conditions.values()])


def write_tar(path: Path, clips: Iterable[StoredClip]) -> None:
    """Writes an uncompressed tar with one safetensors file for each clip."""
    taken: set[str] = set()
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
        for clip in clips:
            key = webdataset_key(clip.name, taken)
            taken.add(key)
            # Time and owner stay 0, so that the bytes do not depend on this run.
            member = tarfile.TarInfo(key + SUFFIX)
            with temporary_file_in(path.parent) as file:
                clip.spool.write_file(file, clip.metadata, [*clip.conditions.values()])
                member.size = file.tell()
                file.seek(0)
                tar.addfile(member, file)


def write_many(path: Path, clips: Iterable[StoredClip]) -> None:
    """Writes one safetensors file of all clips. A tensor is named ``clip/tensor``."""
    times, latents, metadata = {}, {}, {}
    times_content = bytearray()
    with atomic_path(path) as temporary, temporary_file_in(path.parent) as data:
        for clip in clips:
            metadata[clip.name] = clip.metadata
            times[f"{clip.name}/times"] = clip.spool.times_entry()
            times_content += clip.spool.times_content()
            for spool in (clip.spool, *clip.conditions.values()):
                for name, entry in spool.entries().items():
                    latents[f"{clip.name}/{name}"] = entry
                spool.copy_to(data)
        data.seek(0)
        with temporary.open("wb") as file:
            described = {"format": MANY_CLIPS_FORMAT, "clips": json.dumps(metadata)}
            file.write(safetensors_header(times | latents, described))
            file.write(times_content)
            shutil.copyfileobj(data, file)


WRITERS: dict[Container, Callable[[Path, Iterable[StoredClip]], None]] = {
    "files": write_single,
    "tar": write_tar,
    "safetensors": write_many,
}


def write_index(
    folder: Location, options: DatasetOptions, clips: Iterable[IndexedClip], files: Iterable[str]
) -> None:
    """Writes the index of a data set, and what another program reads besides the files of clips.

    Args:
        clips: the clips in the order of the data set.
        files: the names of all files that are there.
    """
    layout = layout_of(options)
    if layout is not None and isinstance(folder, Path):
        finish(folder, files, layout)
    remove_logs(folder)
    write_lines(folder / INDEX, clips, whole=False)


# Indexing


def index_file(folder: Location, name: str, layout: Layout | None = None) -> list[IndexedClip]:
    """Returns the clips in a file of latents.

    Args:
        folder: the folder of the data set.
        name: the path of the file, relative to the folder.
        layout: the layout of the file; None for our own.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / name
    try:
        with path.open("rb") as content:
            if layout is not None:
                return list(index_clips(content, name, layout))
            starts = find_starts(content, path.suffix)
            return [clip for start in starts for clip in index_tensors(content, start, name)]
    except RemoteError:
        raise
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and run encode-dataset again"
        ) from error


def find_starts(content: IO[bytes], suffix: str) -> list[int]:
    """Returns where the safetensors in a file begin."""
    if suffix != TAR_SUFFIX:
        return [0]
    with tarfile.open(fileobj=content, mode="r:") as tar:
        return [member.offset_data for member in tar]


def index_tensors(content: IO[bytes], start: int, name: str) -> Iterator[IndexedClip]:
    """Yields the clips of the safetensors that begin at byte ``start`` of the file ``name``."""
    for prefix, tensors, metadata, data in find_clip_tensors(content, start):
        yield indexed(tensors, prefix, metadata, name, data)


def find_clip_tensors(
    content: IO[bytes], start: int
) -> Iterator[tuple[str, dict[str, Any], Mapping[str, str], int]]:
    """Yields the clips of the safetensors that begin at byte ``start`` of a file.

    Each is the beginning of the names of its tensors, the tensors of all clips, the metadata of the
    clip, and the first byte of the data.
    """
    tensors, metadata, start = read_header(content, start)
    if metadata["format"] == MANY_CLIPS_FORMAT:
        for clip, described in parse_json(metadata["clips"]).items():
            yield f"{clip}/", tensors, described, start
    else:
        yield "", tensors, metadata, start


def indexed(
    tensors: Mapping[str, Any], prefix: str, metadata: Mapping[str, str], file: str, start: int
) -> IndexedClip:
    """Returns the clip whose tensors have names with this prefix, and data from ``start`` on."""
    first = tensors[prefix + ("mean" if f"{prefix}mean" in tensors else "latents")]
    frames, offset = tensors[f"{prefix}times"]["shape"][0], start + first["data_offsets"][0]
    return indexed_clip(metadata, frames, tuple(first["shape"]), file, offset)
