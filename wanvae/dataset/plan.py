"""The plan of a data set of latents: which files it has, and which of them are missing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from wanvae.checkpoints.formats import identify, weights_file
from wanvae.config import check_has
from wanvae.dataset import layouts
from wanvae.dataset.control import add_controls
from wanvae.dataset.files import index_file, plan_files
from wanvae.dataset.records import FAILURES, INDEX, IndexedClip, read_failures
from wanvae.dataset.settings import DATA_SET, SETTINGS, DatasetOptions, DatasetSettings
from wanvae.dataset.stored import LatentsFilePlan
from wanvae.engine.digest import digest_of_file
from wanvae.engine.files import is_in
from wanvae.engine.json_files import write_lines
from wanvae.engine.json_lines import JsonLines
from wanvae.engine.litter import describe_ignored
from wanvae.engine.output_folder import refuse_nested, take_folder
from wanvae.engine.text import first_few, writable
from wanvae.errors import UserError
from wanvae.folders.clips import Clip, find_clips, parse_cut
from wanvae.folders.excerpts import select
from wanvae.folders.failure import Failure
from wanvae.folders.manifest import read_folder
from wanvae.folders.sidecars import SidecarReader
from wanvae.latents.formats.layout import Layout
from wanvae.model import WanVAE


@dataclass(frozen=True)
class DatasetPlan:
    """The files of a data set, the same in all processes.

    Attributes:
        settings: the settings of the data set.
        files: all files.
        existing: the names of the files that are there already.
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
    existing: frozenset[str]
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
        """The files that are there."""
        return [file for file in self.files if file.name in self.existing]

    @property
    def missing(self) -> list[LatentsFilePlan]:
        """The files that are not there."""
        return [file for file in self.files if file.name not in self.existing]


def prepare(
    vae: WanVAE,
    checkpoint: str | PathLike[str],
    source: Path,
    destination: Path,
    options: DatasetOptions,
    held: ExitStack,
) -> DatasetPlan:
    """Plans the files of a data set, and takes the folder for it until ``held`` is closed.

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
    planned: Sequence[Clip] = found.clips
    unusable: list[Failure] = []
    if options.control is not None:
        control = Path(options.control).resolve()
        if is_in(control, source):
            raise UserError(
                f"the folder of controls, {control}, lies in {source}, so that its videos would be "
                "encoded as videos too: move it out"
            )
        options = replace(options, control=str(control))
        planned, unusable = add_controls(planned, control, destination)
    if layout is None:
        clips, notes, unnamed = planned, [], []
        files = list(plan_files(clips, options, vae.config))
    else:
        architecture = layout.architecture_of(options.architecture, vae.config.z_dim)
        layout.check_conditions(options.conditions, architecture)
        options = replace(options, architecture=architecture)
        clips, notes = layouts.choose_clips(planned, layout, vae.config)
        files, unnamed = layouts.plan_files(clips, options, vae.config, layout, source)
    if enlarged := sum(clip.is_enlarged for clip in clips) if options.buckets else 0:
        notes.append(f"{enlarged} clips are smaller than their bucket, and are enlarged")
    many = options.many
    vae.warn_of_statistics(stacklevel=2)
    settings = DatasetSettings(
        options=options,
        source=str(source),
        checkpoint=digest_of_file(weights_file(checkpoint)),
        compute_dtype=str(vae.encode_dtype).removeprefix("torch."),
        latents_mean=vae.config.latents_mean,
        latents_std=vae.config.latents_std,
        clips=digest_of_clips(clips) if many else "",
        model=identify(checkpoint),
        stamps=digest_of_stamps(clips) if many else "",
    )
    path = destination / SETTINGS
    if take_folder(path, settings, DATA_SET, DatasetSettings.differences, held):
        # Drops a line that a killed run left unfinished.
        write_lines(destination / FAILURES, read_failures(destination))
    existing = {file.name for file in files if (destination / file.name).exists()}
    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    index = open_index(destination)
    with SidecarReader(source, content.descriptions) as sidecars:
        redescribed = find_redescribed(index, files, sidecars)
        unmatched = sidecars.unmatched({entry.name for entry in content.entries})
    if unmatched:
        notes.append(
            f"tables of metadata describe files that are not there: {first_few(unmatched)}"
        )
    if layout is not None and content.descriptions:
        notes.append(
            f"captions and metadata are in {INDEX} alone, which {layout.program} does not read"
        )
    if not many:
        sources = {writable(entry.name) for entry in content.entries}
        gone = tuple(dict.fromkeys(c.source for c in index if c.source not in sources))
        stale = [
            file for file in files if file.name in existing and is_stale(destination, file, layout)
        ]
        existing -= {file.name for file in stale}
        recut = find_recut(index, files)
        changed = tuple(
            dict.fromkeys([*(clip.source for file in stale for clip in file.clips), *recut])
        )
        remove_outdated(destination, index, stale, files, layout, recut)
    return DatasetPlan(
        settings=settings,
        files=tuple(files),
        existing=frozenset(existing),
        broken=(*found.broken, *unusable, *unnamed),
        left_out=found.left_out,
        changed=changed,
        gone=gone,
        ignored=describe_ignored(content.ignored),
        notes=(*selection.notes, *notes),
        descriptions=content.descriptions,
        redescribed=redescribed,
    )


def open_index(folder: Path) -> Sequence[IndexedClip]:
    """Returns the clips in the index of a data set; none if there is no index that can be read."""
    with suppress(OSError, UserError):
        return JsonLines(folder / INDEX, IndexedClip, "delete it, and run it again")
    return []


def find_redescribed(
    index: Sequence[IndexedClip], files: Sequence[LatentsFilePlan], sidecars: SidecarReader
) -> tuple[str, ...]:
    """Returns the videos of clips in the index whose sidecars are not those in the index."""
    entries = {clip.name: clip.entry for file in files for clip in file.clips} if index else {}
    pairs = ((clip, entries.get(clip.name)) for clip in index)
    return tuple(
        dict.fromkeys(
            clip.source
            for clip, entry in pairs
            if entry is not None and sidecars.read(entry) != clip.sidecars
        )
    )


def is_stale(folder: Path, file: LatentsFilePlan, layout: Layout | None) -> bool:
    """Whether the video of a file with one clip, or its scene, has changed since it was encoded.

    Raises:
        UserError: the file is damaged.
    """
    (planned,), (stored,) = file.clips, index_file(folder, file.name, layout)
    if stored.cut_from != planned.cut_from:
        return True
    control = planned.control
    return (stored.stamp is not None and not stored.stamp.matches(planned.entry.stamp)) or (
        stored.control is not None
        and control is not None
        and not stored.control.matches(control.entry.stamp)
    )


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
    folder: Path,
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
    lines = (
        f"{c.name} {c.fps} {c.first} {c.frames} {c.scaled} {c.size}"
        + (f" {c.cut_from}\n" if c.cut_from else "\n")
        for c in with_controls(clips)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def with_controls(clips: Iterable[Clip]) -> Iterator[Clip]:
    """Yields each clip, and its control after it if it has one."""
    for clip in clips:
        yield clip
        if clip.control is not None:
            yield clip.control


def digest_of_stamps(clips: Sequence[Clip]) -> str:
    """Returns a digest of the stamps of the videos of clips."""
    stamps = (clip.entry.stamp for clip in with_controls(clips))
    lines = (f"{stamp.size} {stamp.mtime} {stamp.head}\n" for stamp in stamps)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
