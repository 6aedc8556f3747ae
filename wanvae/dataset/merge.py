"""Joins the parts of a data set that several machines have encoded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from wanvae.dataset.files import write_index
from wanvae.dataset.parts import (
    ENCODED,
    MISSING,
    DatasetPart,
    PartClip,
    PartList,
    find_lists,
    read_part,
)
from wanvae.dataset.records import FAILURES
from wanvae.dataset.settings import DATA_SET, SETTINGS, DatasetSettings, read_settings
from wanvae.dataset.unfinished import unfinished_name
from wanvae.engine.files import atomic_path
from wanvae.engine.json_files import write_lines
from wanvae.engine.output_folder import take_folder
from wanvae.engine.storage.remote_path import Location
from wanvae.engine.storage.retries import RemoteError
from wanvae.errors import UserError
from wanvae.folders.failure import Failure
from wanvae.folders.listing import REQUESTS

# Bytes that are copied at once.
BLOCK = 2**23


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """The results of joining parts.

    Attributes:
        clips: number of clips in the index.
        failures: clips and files that could not be encoded.
        missing: names of clips that no part has.
        unlisted: number of clips of parts that are not there, whose names are not known.
        absent: the parts that are not there.
        twice: number of clips that several parts have.
        copied: number of files that were copied into the folder.
        notes: what people should check.
    """

    clips: int
    failures: tuple[Failure, ...]
    missing: tuple[str, ...]
    unlisted: int
    absent: tuple[DatasetPart, ...]
    twice: int
    copied: int
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether all clips were encoded or tried."""
        return not self.missing and not self.unlisted


@dataclass(frozen=True)
class FoundPart:
    """The list of a part.

    Attributes:
        folder: where it is.
        content: the list.
    """

    folder: Location
    content: PartList


# The folder of a part, and a line of its list.
Found: TypeAlias = tuple[Location, PartClip]


def merge_parts(folders: Sequence[Location], destination: Location) -> MergeReport:
    """Joins the parts in folders to one data set.

    The files of other folders are copied to ``destination``, or linked, if both are on one disk.
    The index is written once no clip is missing, and is then the same as of one machine that
    encodes everything. Until then ``encode_dataset`` encodes into ``destination`` what is missing.

    Args:
        folders: folders that ``encode_dataset`` wrote with a part. Some may have several parts.
        destination: a new folder, one of ``folders``, or the folder of an earlier attempt.

    Raises:
        UserError: there are no parts, the parts have different settings, models or lists of clips,
            two parts have different latents of one clip, or another job works in ``destination``.
        FileError: a file cannot be written.
        RemoteError: a server cannot be reached.
    """
    settings, notes = same_settings(folders)
    parts = [
        FoundPart(folder, content) for folder in dict.fromkeys(folders) for content in lists(folder)
    ]
    check_plans(parts)
    chosen, twice, redescribed = choose_clips(parts)
    if redescribed:
        notes.append(
            f"{redescribed} clips have other captions or metadata in another part; those of the "
            "first part that has them are taken"
        )
    summary = parts[0].content.summary
    failures = [clip.failure for _, clip in chosen if clip.failure is not None]
    failures.extend(summary.broken)
    index = [clip.clip for _, clip in chosen if clip.clip is not None]
    with ExitStack() as held:
        take_folder(destination / SETTINGS, settings, DATA_SET, describe_differences, held)
        copied = copy_files(chosen, destination)
        report = MergeReport(
            clips=len(index),
            failures=tuple(failures),
            missing=tuple(clip.name for _, clip in chosen if clip.state == MISSING),
            unlisted=summary.clips - len(chosen),
            absent=absent_parts(parts),
            twice=twice,
            copied=copied,
            notes=tuple(notes),
        )
        write_lines(destination / FAILURES, failures)
        if report.complete:
            names = dict.fromkeys(clip.file for _, clip in chosen)
            write_index(destination, settings.options, index, names)
        return report


def same_settings(folders: Sequence[Location]) -> tuple[DatasetSettings, list[str]]:
    """Returns the settings of all folders, and what people should check.

    Raises:
        UserError: a folder has other settings than the first.
    """
    settings, notes = read_settings(folders[0]), []
    for folder in folders[1:]:
        other = read_settings(folder)
        if different := describe_differences(settings, other):
            raise UserError(
                f"{folder} was written with other settings than {folders[0]}: "
                f"{'; '.join(different)}; encode one of them again"
            )
        if other.source != settings.source:
            notes.append(
                f"{folder} is of the videos in {other.source}, {folders[0]} is of "
                f"{settings.source}: see that they are the same"
            )
        elif other.options.control != settings.options.control:
            notes.append(
                f"{folder} is of the controls in {other.options.control}, {folders[0]} is of "
                f"{settings.options.control}: see that they are the same"
            )
        elif other.stamps != settings.stamps:
            notes.append(
                f"the videos of {folder} have other times than the videos of {folders[0]}, as "
                "copies have: see that they are the same"
            )
    return settings, notes


def describe_differences(ours: DatasetSettings, theirs: DatasetSettings) -> list[str]:
    """Says in words what of ``theirs`` is not the same, besides the place and times of videos."""
    options = theirs.options
    if None not in (options.control, ours.options.control):
        options = replace(options, control=ours.options.control)
    return ours.differences(
        replace(theirs, options=options, source=ours.source, stamps=ours.stamps)
    )


def lists(folder: Location) -> Iterator[PartList]:
    """Yields the lists of the parts in a folder.

    Raises:
        UserError: there is none, or one is damaged.
    """
    names = find_lists(folder)
    if not names:
        raise UserError(
            f"{folder} has no list of a part; encode with --part, or run it again, if it was "
            "interrupted before it could write the list"
        )
    for name in names:
        try:
            yield read_part(folder / name)
        except RemoteError:
            raise
        except UserError as error:
            raise UserError(
                f"{folder / name} is damaged ({error}); run encode-dataset --part there again"
            ) from error


def check_plans(parts: Sequence[FoundPart]) -> None:
    """Raises UserError if the parts are not of one list of clips."""
    first = parts[0]
    for part in parts[1:]:
        if part.content.summary.plan != first.content.summary.plan:
            raise UserError(
                f"part {part.content.summary.part} in {part.folder} is of other clips than part "
                f"{first.content.summary.part} in {first.folder}, because videos were added, "
                "removed or changed in between; run encode-dataset --part again in both"
            )


def choose_clips(parts: Iterable[FoundPart]) -> tuple[list[Found], int, int]:
    """Returns each clip once, in the order of the data set.

    A clip that is encoded counts before one that is not, and then the first.

    Returns:
        The clips, how many of them several parts have, and how many have different sidecars there.

    Raises:
        UserError: two parts have different latents of one clip.
    """
    chosen: dict[int, Found] = {}
    twice = redescribed = 0
    for part in parts:
        for clip in part.content.clips:
            folder, other = chosen.setdefault(clip.position, (part.folder, clip))
            if other is clip:
                continue
            if clip.clip is not None and other.clip is not None:
                twice += 1
                redescribed += clip.clip.sidecars != other.clip.sidecars
                if replace(clip.clip, sidecars={}) != replace(other.clip, sidecars={}):
                    raise UserError(
                        f"{folder} and {part.folder} have different latents of {clip.name}; "
                        "delete the list of the part that is older, and merge again"
                    )
            elif clip.state > other.state:
                chosen[clip.position] = part.folder, clip
    return [chosen[position] for position in sorted(chosen)], twice, redescribed


def absent_parts(parts: Sequence[FoundPart]) -> tuple[DatasetPart, ...]:
    """Returns the parts that have no list, for the largest number of parts."""
    count = max(part.content.summary.count for part in parts)
    there = {part.content.summary.part for part in parts}
    every = (DatasetPart(number, count) for number in range(count))
    return tuple(part for part in every if part not in there)


def copy_files(clips: Iterable[Found], destination: Location) -> int:
    """Copies the files of clips that are not there yet, and returns how many.

    Raises:
        UserError: a file is not where its list says.
    """
    places: dict[str, Location] = {}
    for folder, clip in sorted(clips, key=lambda found: -found[1].state):
        places.setdefault(clip.file, folder)
    needed = {clip.file for _, clip in clips if clip.state == ENCODED}

    def copy(file: str) -> bool:
        folder = places[file]
        if folder == destination:
            return False
        done = copy_file(folder / file, destination / file)
        if done is None and file in needed:
            raise UserError(
                f"{folder / file} is not there, although the list of its part names it; copy the "
                "whole folder here"
            )
        if done is None:
            copy_file(folder / unfinished_name(file), destination / unfinished_name(file))
        return bool(done)

    with ThreadPoolExecutor(REQUESTS) as pool:
        return sum(pool.map(copy, places))


def copy_file(source: Location, target: Location) -> bool | None:
    """Copies a file, or links it.

    Returns:
        False if ``target`` is there already, None if ``source`` is not there.
    """
    size = size_of(source)
    if size is None:
        return None
    if size_of(target) == size:
        return False
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Path) and isinstance(target, Path):
        with suppress(OSError):
            os.link(source, target)
            return True
    with atomic_path(target) as temporary, temporary.open("wb") as file, source.open("rb") as old:
        shutil.copyfileobj(old, file, BLOCK)
    return True


def size_of(path: Location) -> int | None:
    """Returns the bytes of a file; None if it is not there."""
    try:
        return path.stat().st_size if isinstance(path, Path) else path.status().size
    except FileNotFoundError:
        return None
