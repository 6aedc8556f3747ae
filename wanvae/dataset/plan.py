"""The plan of a data set of latents: which files it has, and which of them are missing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

from wanvae.checkpoints.formats import digest_of_model, digests_of_encoder, load, weights_file
from wanvae.config import check_has
from wanvae.dataset import layouts
from wanvae.dataset.control import add_controls, with_controls
from wanvae.dataset.files import index_file, plan_files
from wanvae.dataset.parts import DatasetPart, describe_cut
from wanvae.dataset.records import FAILURES, INDEX, IndexedClip, read_failures
from wanvae.dataset.settings import DATA_SET, SETTINGS, DatasetOptions, DatasetSettings
from wanvae.dataset.stored import LatentsFilePlan, has_changed
from wanvae.dataset.unfinished import unfinished_name
from wanvae.engine.digest import digest_of_file
from wanvae.engine.files import remove_temporaries
from wanvae.engine.json_files import write_lines
from wanvae.engine.json_lines import JsonLines
from wanvae.engine.litter import describe_ignored
from wanvae.engine.output_folder import refuse_nested, take_folder
from wanvae.engine.storage.remote_path import Location, RemotePath, location
from wanvae.engine.text import first_few, writable
from wanvae.errors import UserError
from wanvae.folders.clips import Clip, find_clips, parse_cut
from wanvae.folders.excerpts import select
from wanvae.folders.failure import Failure
from wanvae.folders.listing import REQUESTS
from wanvae.folders.manifest import read_folder
from wanvae.folders.sidecars import SidecarReader, find_descriptions
from wanvae.latents.formats.layout import Layout
from wanvae.model import WanVAE

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetPlan:
    """The files of a data set, the same in all processes.

    Attributes:
        settings: the settings of the data set.
        files: all files.
        part: the part of the data set that this run encodes; None is all of it.
        own: the files of the part.
        existing: the names of the files of the part that are there already.
        unfinished: the names of the files of the part that are there in part.
        broken: files of the source that cannot be read.
        left_out: videos, images and scenes that are too small or too short for a clip, one line
            each.
        changed: videos and images that have changed since some of their clips were encoded, or
            whose scenes have.
        gone: videos and images that have clips in the index, but are not in the source any more.
        ignored: how many files of the source are no videos, images or tars, by suffix; or empty.
        notes: what people must know of clips that become larger, of the files of a layout, and of
            captions and metadata.
        descriptions: captions and tables of metadata of the source, by path.
        redescribed: videos and images that have clips in the index, but are described in another
            way now.
    """

    settings: DatasetSettings
    files: tuple[LatentsFilePlan, ...]
    part: DatasetPart | None
    own: tuple[LatentsFilePlan, ...]
    existing: frozenset[str]
    unfinished: frozenset[str]
    broken: tuple[Failure, ...]
    left_out: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    ignored: str
    notes: tuple[str, ...]
    descriptions: tuple[str, ...]
    redescribed: tuple[str, ...]

    @property
    def kept(self) -> list[LatentsFilePlan]:
        """The files of the part that are there."""
        return [file for file in self.own if file.name in self.existing]

    @property
    def missing(self) -> list[LatentsFilePlan]:
        """The files of the part that are not there."""
        return [file for file in self.own if file.name not in self.existing]


def prepare(
    vae: WanVAE,
    checkpoint: str | PathLike[str],
    source: Location,
    destination: Location,
    options: DatasetOptions,
    part: DatasetPart | None,
    held: ExitStack,
) -> DatasetPlan:
    """Plans the files of a data set, and takes the folder for it until ``held`` is closed.

    With a part, the folder is only taken for it, and other parts may be encoded into it.

    Raises:
        UserError: there is nothing to encode, the options do not fit the model, or the folder
            belongs to other settings or another job works in it.
        FileError: the folder cannot be written.
    """
    check_has(vae.config, "encoder")
    refuse_nested(source, destination)
    cut = parse_cut(
        options.frames,
        options.fps,
        options.resize,
        vae.config,
        shorter=options.shorter,
        buckets=options.buckets,
    )
    content = read_folder(source)
    selection = select(content.entries)
    found = find_clips(selection.entries, cut, vae.config)
    if not found.clips:
        skipped = f"; {len(selection.left_out)} scenes are left out" if selection.left_out else ""
        raise UserError(
            f"nothing to encode in {source}: {len(found.broken)} files cannot be read, and "
            f"{len(found.left_out)} are too small or too short for a clip{skipped}; give other "
            "videos, or other --frames or --resize"
        )
    source = source.resolve()
    layout = layouts.layout_of(options)
    if layout is not None and layout.shards and isinstance(destination, RemotePath):
        raise UserError(
            f"{layout.program} reads its database only on a disk, so it cannot be written to "
            f"{destination}; name a local folder"
        )
    planned: Sequence[Clip] = found.clips
    unusable: list[Failure] = []
    if options.control is not None:
        control = location(options.control).resolve()
        options = replace(options, control=str(control))
        planned, unusable = add_controls(planned, control, source, destination)
    if layout is None:
        clips, notes, unnamed = planned, [], []
        files = list(plan_files(clips, options, vae.config))
    else:
        architecture = layout.architecture_of(options.architecture, vae.config.z_dim)
        layout.check_conditions(options.conditions, architecture)
        options = replace(options, architecture=architecture)
        clips, notes = layouts.choose_clips(planned, layout, vae.config)
        files, unnamed = layouts.plan_files(clips, options, vae.config, layout, source)
    enlarged = sum(clip.is_enlarged for clip in clips)
    if options.buckets and enlarged:
        notes.append(f"{enlarged} clips are smaller than their bucket, and are enlarged")
    many = options.many
    vae.warn_of_statistics(stacklevel=2)
    loaded = load(checkpoint)
    settings = DatasetSettings(
        options=options,
        source=str(source),
        checkpoint=digest_of_file(weights_file(checkpoint)),
        compute_dtype=str(vae.encode_dtype).removeprefix("torch."),
        latents_mean=vae.config.latents_mean,
        latents_std=vae.config.latents_std,
        clips=digest_of_clips(clips) if many else "",
        model=digest_of_model(loaded),
        stamps=digest_of_stamps(clips) if many else "",
        encoders=digests_of_encoder(loaded),
    )
    path = destination / SETTINGS
    share = "" if part is None else part.tag
    own = files if part is None else part.choose(files)
    if take_folder(path, settings, DATA_SET, DatasetSettings.differences, held, share):
        if part is None:
            # Drops a line that a killed run left unfinished.
            write_lines(destination / FAILURES, read_failures(destination))
        elif isinstance(destination, Path):
            names = {file.name for file in own}
            remove_temporaries(destination, names | set(map(unfinished_name, names)))
    present = find_present(destination, own, options)
    existing = {file.name for file in own if file.name in present}
    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    descriptions, undescribed = find_descriptions(source, content)
    notes.extend(undescribed)
    with SidecarReader(source, descriptions) as sidecars:
        index, redescribed = read_index(destination, files, sidecars)
        unmatched = sidecars.unmatched({entry.name for entry in content.entries})
    if unmatched:
        notes.append(
            f"tables of metadata describe files that are not there: {first_few(unmatched)}"
        )
    if layout is not None and descriptions:
        notes.append(
            f"captions and metadata are in {INDEX} alone, which {layout.program} does not read"
        )
    if not many:
        sources = {writable(entry.name) for entry in content.entries}
        gone = tuple(dict.fromkeys(c.source for c in index if c.source not in sources))
        kept = [file for file in own if file.name in existing]
        outdated = map_files(lambda file: is_stale(destination, file, layout), kept, destination)
        stale = [file for file, is_old in zip(kept, outdated, strict=True) if is_old]
        existing -= {file.name for file in stale}
        recut = find_recut(index, files)
        changed = tuple(
            dict.fromkeys([*(clip.source for file in stale for clip in file.clips), *recut])
        )
        remove_outdated(destination, index, stale, files, layout, recut)
    return DatasetPlan(
        settings=settings,
        files=tuple(files),
        part=part,
        own=tuple(own),
        existing=frozenset(existing),
        unfinished=frozenset(
            file.name
            for file in own
            if file.name not in existing and unfinished_name(file.name) in present
        ),
        broken=(*found.broken, *unusable, *unnamed),
        left_out=found.left_out,
        changed=changed,
        gone=gone,
        ignored=describe_ignored(content.ignored),
        notes=(*selection.notes, *notes),
        descriptions=descriptions,
        redescribed=redescribed,
    )


def find_present(
    folder: Location, files: Sequence[LatentsFilePlan], options: DatasetOptions
) -> set[str]:
    """Returns which of the files are in a folder, by name, and which unfinished ones."""
    names = [file.name for file in files]
    if options.many:
        names.extend([unfinished_name(name) for name in names])
    if isinstance(folder, RemotePath):
        # One list takes less time than a question for each file.
        return set(names) & folder.files().keys()
    return {name for name in names if (folder / name).exists()}


def map_files(
    function: Callable[[LatentsFilePlan], T], files: Sequence[LatentsFilePlan], folder: Location
) -> list[T]:
    """Returns the results of ``function`` for files of a folder. A server is asked for several."""
    if not isinstance(folder, RemotePath):
        return [function(file) for file in files]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(function, files))


def open_index(folder: Location) -> Sequence[IndexedClip]:
    """Returns the clips in the index of a data set; none if there is no index that can be read."""
    with suppress(OSError, UserError):
        return JsonLines(folder / INDEX, IndexedClip, "delete it, and run it again")
    return []


def read_index(
    folder: Location, files: Sequence[LatentsFilePlan], sidecars: SidecarReader
) -> tuple[list[IndexedClip], tuple[str, ...]]:
    """Returns the clips in the index of a data set, and the videos whose sidecars have changed.

    The clips are without their sidecars, which may be long.

    Args:
        files: all files of the data set now.
        sidecars: reads the sidecars of now.
    """
    lines = open_index(folder)
    entries = {clip.name: clip.entry for file in files for clip in file.clips} if lines else {}
    index: list[IndexedClip] = []
    redescribed: dict[str, None] = {}
    for clip in lines:
        entry = entries.get(clip.name)
        if entry is not None and sidecars.read(entry) != clip.sidecars:
            redescribed[clip.source] = None
        index.append(replace(clip, sidecars={}))
    return index, tuple(redescribed)


def is_stale(folder: Location, file: LatentsFilePlan, layout: Layout | None) -> bool:
    """Whether the one clip of a file must be encoded again, as ``has_changed`` says.

    Raises:
        UserError: the file is damaged.
    """
    (planned,), (stored,) = file.clips, index_file(folder, file.name, layout)
    return has_changed(stored, planned)


def find_recut(index: Sequence[IndexedClip], files: Sequence[LatentsFilePlan]) -> tuple[str, ...]:
    """Returns the videos of an index whose clips begin elsewhere now, because of their scenes."""
    clips = [clip for file in files for clip in file.clips]
    planned = {clip.name for clip in clips}
    scenes = {clip.source for clip in clips if clip.cut_from}
    sources = {clip.source for clip in clips}
    return tuple(
        dict.fromkeys(
            clip.source
            for clip in index
            if clip.name not in planned
            and clip.source in sources
            and (clip.cut_from or clip.source in scenes)
        )
    )


def remove_outdated(
    folder: Location,
    index: Sequence[IndexedClip],
    stale: Sequence[LatentsFilePlan],
    files: Sequence[LatentsFilePlan],
    layout: Layout | None,
    recut: Sequence[str] = (),
) -> None:
    """Deletes the latents of videos that have changed, and the index, which names them.

    Args:
        index: the clips that the data set had.
        stale: files of clips that are there and must be encoded again.
        files: all files of the data set now. A video that has become shorter had more. In the
            layout of another program, a video that has changed may have files of other names.
        layout: the layout of another program; None is our own.
        recut: videos whose clips begin elsewhere now.
    """
    sources = set(recut) | {
        c.source for file in (stale if layout is None else files) for c in file.clips
    }
    names = {clip.file for clip in index if clip.source in sources}
    names -= {file.name for file in files}
    names |= {file.name for file in stale}
    for name in (INDEX, *names) if names else ():
        (folder / name).unlink(missing_ok=True)


def digest_of_clips(clips: Sequence[Clip]) -> str:
    """Returns a digest of the names of clips, and of what they are cut from."""
    lines = (f"{describe_cut(clip)}\n" for clip in with_controls(clips))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_of_stamps(clips: Sequence[Clip]) -> str:
    """Returns a digest of the stamps of the videos of clips."""
    stamps = (clip.entry.stamp for clip in with_controls(clips))
    lines = (f"{stamp.size} {stamp.mtime} {stamp.head}\n" for stamp in stamps)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
