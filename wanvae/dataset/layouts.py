"""Files of a data set in the layout of another program: planning, writing and indexing them.

Each clip has a record in its file, which the program does not read. It says where the clip comes
from, as the metadata of our own files do.
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from os import SEEK_END
from pathlib import Path
from typing import IO, Any

from wanvae.config import WanVAEConfig
from wanvae.dataset.records import IndexedClip
from wanvae.dataset.settings import DatasetOptions
from wanvae.dataset.stored import (
    LatentsFilePlan,
    StoredClip,
    expected_size,
    indexed_clip,
    read_header,
)
from wanvae.engine.config import parse_json
from wanvae.engine.files import atomic_path
from wanvae.engine.storage.remote_path import Location
from wanvae.errors import UserError
from wanvae.folders.clips import Clip, safe_path
from wanvae.folders.failure import Failure
from wanvae.latents.formats import LAYOUTS, diffusion_pipe
from wanvae.latents.formats.layout import (
    RECORD,
    ClipFacts,
    Layout,
    read_archive_record,
)
from wanvae.latents.scale import has_statistics
from wanvae.video.rate import parse_rate

SHARD_SUFFIX = ".bin"
# The end of a file of many clips: the length of a list of its clips, which comes before, and this.
LIST_MAGIC = b"wanvae01"
LIST_END = struct.Struct(f"<Q{len(LIST_MAGIC)}s")


def layout_of(options: DatasetOptions) -> Layout | None:
    """Returns the layout of the files; None for our own."""
    return LAYOUTS.get(options.layout)


def facts_of(
    clip: Clip, options: DatasetOptions, config: WanVAEConfig, folder: Location
) -> ClipFacts:
    """Returns what the name and the metadata of the file of a clip depend on.

    Args:
        folder: the folder of videos, absolute or an address.
    """
    entry, factor = clip.entry, config.temporal_factor
    path = str(folder / entry.path)
    return ClipFacts(
        source=safe_path(clip.source),
        location=(None, path) if entry.member is None else (path, entry.member),
        first=clip.first,
        frames=1 + (clip.frames - 1) // factor * factor,
        is_image=entry.is_image,
        original=(entry.height, entry.width),
        size=clip.size,
        asked_frames=None if options.frames is None else clip.frames,
        asked_fps=None if options.fps is None else parse_rate(options.fps),
        architecture=options.architecture,
        dtype=options.dtype,
        first_frame=options.conditioning is not None,
    )


# Planning


def choose_clips(
    clips: Sequence[Clip], layout: Layout, config: WanVAEConfig
) -> tuple[list[Clip], list[str]]:
    """Returns the clips that a layout can hold, and notes for people about what it cannot hold."""
    notes = [f"{layout.program} stores no variance of the latents and no times of the frames"]
    if layout.note:
        notes.append(layout.note)
    statistics = has_statistics(config.latents_mean, config.latents_std)
    if layout.scale == "normalized" and not statistics:
        notes.append(
            "the model has no latent statistics, so its latents are normalized as they are"
        )
    if not layout.one_clip:
        return list(clips), notes
    first: dict[str, Clip] = {}
    for clip in clips:
        first.setdefault(clip.source, clip)
    if len(first) < len(clips):
        notes.append(
            f"{layout.program} stores one clip of each video: the first; "
            f"{len(clips) - len(first)} other clips are left out"
        )
    return list(first.values()), notes


def plan_files(
    clips: Sequence[Clip],
    options: DatasetOptions,
    config: WanVAEConfig,
    layout: Layout,
    folder: Location,
) -> tuple[list[LatentsFilePlan], list[Failure]]:
    """Returns the files for ``clips``, and the clips whose files would have names of others."""
    known = [(clip, facts_of(clip, options, config, folder)) for clip in clips]
    if layout.shards:
        return list(plan_shards(known, options, config, layout)), []
    files: dict[str, LatentsFilePlan] = {}
    failures = []
    for clip, facts in known:
        plan = LatentsFilePlan(layout.file_name(facts), (clip,), (facts,))
        other = files.setdefault(plan.name, plan)
        if other is not plan:
            why = f"{layout.program} would call its latents {plan.name}, like the latents of"
            reason = f"{why} {other.clips[0].source}; rename one of them"
            failures.append(Failure(clip.name, clip.source, reason))
    return list(files.values()), failures


def plan_shards(
    known: Iterable[tuple[Clip, ClipFacts]],
    options: DatasetOptions,
    config: WanVAEConfig,
    layout: Layout,
) -> Iterator[LatentsFilePlan]:
    """Yields files of many clips; clips with one name are neighbours."""
    groups: defaultdict[str, list[tuple[Clip, ClipFacts]]] = defaultdict(list)
    for clip, facts in known:
        groups[layout.file_name(facts)].append((clip, facts))
    for name, members in groups.items():
        number, waiting, size = 0, [], 0
        for member in members:
            waiting.append(member)
            size += expected_size(member[0], options, config)
            if size >= options.shard_size or member is members[-1]:
                clips, facts = zip(*waiting, strict=True)
                yield LatentsFilePlan(f"{name}{number}{SHARD_SUFFIX}", clips, facts)
                number, waiting, size = number + 1, [], 0


# Writing


def write_clips(path: Path, clips: Iterable[StoredClip], layout: Layout) -> None:
    """Writes a file. Without clips, writes a file only if it may hold many."""
    if layout.shards:
        write_shard(path, clips, layout)
        return
    for clip in clips:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            write_clip(file, clip, layout)


def write_shard(path: Path, clips: Iterable[StoredClip], layout: Layout) -> None:
    """Writes a file of many clips, one after the other, and a list of them at its end."""
    places = []
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for clip in clips:
            start = file.tell()
            write_clip(file, clip, layout)
            places.append((start, file.tell() - start))
        content = json.dumps(places).encode()
        file.write(content + LIST_END.pack(len(content), LIST_MAGIC))


def write_clip(file: IO[bytes], clip: StoredClip, layout: Layout) -> None:
    """Writes a clip with its record."""
    if clip.facts is None:
        raise RuntimeError("a clip for another program has no facts")
    record = {"frames": len(clip.spool.times), "shape": clip.spool.shape}
    described = json.dumps({**clip.metadata, **record})
    layout.write(file, clip.facts, clip.spool, described, clip.conditions)


def finish(folder: Path, names: Iterable[str], layout: Layout) -> None:
    """Writes what a program reads besides the files of clips.

    Args:
        folder: the folder of the data set.
        names: the names of all files that are there.
    """
    if not layout.shards:
        return
    shards: defaultdict[Path, dict[int, list[tuple[int, int]]]] = defaultdict(dict)
    for name in names:
        path = folder / name
        number = int(path.stem.removeprefix("shard_"))
        with path.open("rb") as content:
            shards[path.parent][number] = read_places(content)
    for inner, places in shards.items():
        diffusion_pipe.write_database(inner, places)


# Indexing


def index_clips(content: IO[bytes], name: str, layout: Layout) -> Iterator[IndexedClip]:
    """Yields the clips of a file.

    Args:
        name: its path, relative to the folder of the data set.

    Raises:
        UserError: it ends too early.
    """
    if layout.shards:
        for start, size in read_places(content):
            content.seek(start)
            record, offset = read_archive_record(BytesIO(content.read(size)))
            yield indexed_record(record, name, start + offset)
        return
    if name.endswith(".pt"):
        record, offset = read_archive_record(content)
    else:
        # The latents are the first tensor.
        _, metadata, offset = read_header(content, 0)
        record = parse_json(metadata[RECORD])
    yield indexed_record(record, name, offset)


def indexed_record(record: dict[str, Any], name: str, offset: int) -> IndexedClip:
    """Returns the clip of a record."""
    frames, shape = record["frames"], tuple(record["shape"])
    return indexed_clip(record, frames, shape, name, offset)


def read_places(content: IO[bytes]) -> list[tuple[int, int]]:
    """Returns offset and size of each clip in a file of many.

    Raises:
        UserError: the file ends too early.
    """
    end = content.seek(0, SEEK_END)
    if end >= LIST_END.size:
        content.seek(end - LIST_END.size)
        length, magic = LIST_END.unpack(content.read(LIST_END.size))
        if magic == LIST_MAGIC and length <= end - LIST_END.size:
            content.seek(end - LIST_END.size - length)
            return [(start, size) for start, size in parse_json(content.read(length))]
    raise UserError("it ends too early")
