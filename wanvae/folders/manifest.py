"""The index of a folder of videos, images and tar shards: what is there, how large and how long.

``wanvae index DIR`` writes it to ``DIR/wanvae-manifest.jsonl``, one JSON object per video or image,
so that training on many files need not open them all before the first step.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from wanvae.engine.files import atomic_path
from wanvae.errors import UserError
from wanvae.folders.tars import find_members
from wanvae.video import FilePart, VideoError, probe

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
SHARD_SUFFIX = ".tar"

MANIFEST = "wanvae-manifest.jsonl"
# What an index under way has found so far: for each file a line, the list of its entries.
JOURNAL = "wanvae-manifest.partial.jsonl"


class File(NamedTuple):
    """A file on disk, by which a change of it is noticed.

    path: below the folder that is indexed, with "/" between its parts.
    size: bytes.
    mtime: time of the last change, in nanoseconds.
    """

    path: str
    size: int
    mtime: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A video or image of the index, or a file that is none.

    Attributes:
        path: of the file, below the folder that is indexed, with "/" between its parts.
        size: bytes of the file.
        mtime: time of its last change, in nanoseconds.
        member: name of this entry in the file, if that is a tar.
        offset: first byte of the member in the tar.
        length: bytes of the member.
        width: pixels, as displayed.
        height: pixels, as displayed.
        frames: as the container counts them, 1 where it does not.
        fps: frames per second.
        is_image: whether it is a still image.
        error: why it cannot be used; the fields from ``width`` on mean nothing then.
    """

    path: str
    size: int
    mtime: int
    member: str | None = None
    offset: int = 0
    length: int = 0
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: float = 0.0
    is_image: bool = False
    error: str | None = None

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.path if self.member is None else f"{self.path}/{self.member}"

    @property
    def file(self) -> File:
        """The file that it is, or is in."""
        return File(self.path, self.size, self.mtime)

    def source(self, folder: Path) -> Path | FilePart:
        """What to read, given the folder that was indexed."""
        path = folder / self.path
        if self.member is None:
            return path
        return FilePart(path, self.member, self.offset, self.length)


def load_entries(folder: Path) -> list[Entry]:
    """The entries of the manifest of ``folder``; without one, every file is opened to find them.

    A manifest is taken at its word: files added since are not seen before it is written anew.

    Raises:
        ValueError: there is a manifest that cannot be understood, or no such folder.
    """
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    return [entry for entries in probe_files(folder, find_files(folder)) for entry in entries]


def read_manifest(folder: Path) -> list[Entry]:
    """The entries of a manifest, in the order of their paths.

    Raises:
        ValueError: it is none, or of another version of this package.
    """
    path = folder / MANIFEST
    with path.open(encoding="utf-8") as lines:
        try:
            return [Entry(**json.loads(line)) for line in lines]
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path} is not a manifest of this version ({error}); delete it and run "
                f"wanvae index {folder}"
            ) from error


def write_manifest(folder: Path, *, progress: bool = False) -> list[Entry]:
    """Index ``folder`` and write its manifest, whole or not at all; returns its entries.

    Files that are in the manifest and have not changed since are not opened again, nor those that
    an index before this one had come to when it was interrupted; but what could not be read is
    tried again, for a disk may be back.

    Args:
        progress: show a progress bar on stderr.

    Raises:
        ValueError: there is no such folder, it has no videos, images or tars, or its manifest is
            not one.
        OSError: the manifest cannot be written.
    """
    files = find_files(folder)
    if not files:
        suffixes = ", ".join(sorted(MEDIA_SUFFIXES | {SHARD_SUFFIX}))
        raise UserError(f"nothing to index in {str(folder)!r}: it has no files {suffixes}")
    known = known_entries(folder)
    unknown = [file for file in files if file not in known]
    journal = folder / JOURNAL
    with journal.open("a", encoding="utf-8") as lines:
        # Whatever was being written when it was interrupted is a line of its own, and ignored.
        lines.write("\n")
        found = probe_files(folder, unknown)
        bar = tqdm(found, total=len(unknown), unit="file", disable=not progress)
        for file, entries in zip(unknown, bar, strict=True):
            known[file] = entries
            lines.write(json.dumps([to_json(entry) for entry in entries]) + "\n")
            lines.flush()
    entries = [entry for file in files for entry in known[file]]
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(
            "".join(json.dumps(to_json(entry)) + "\n" for entry in entries), encoding="utf-8"
        )
    journal.unlink()
    return entries


def known_entries(folder: Path) -> dict[File, list[Entry]]:
    """The entries that manifest and journal have, by file; without files that had an error."""
    known: dict[File, list[Entry]] = {}
    if (folder / MANIFEST).exists():
        for entry in read_manifest(folder):
            known.setdefault(entry.file, []).append(entry)
    if (folder / JOURNAL).exists():
        for line in (folder / JOURNAL).read_bytes().splitlines():
            with suppress(ValueError, TypeError):
                entries = [Entry(**entry) for entry in json.loads(line)]
                known[entries[0].file] = entries
    return {
        file: entries
        for file, entries in known.items()
        if all(entry.error is None for entry in entries)
    }


def to_json(entry: Entry) -> dict[str, object]:
    """The fields of an entry that differ from their defaults."""
    values = {field.name: (getattr(entry, field.name), field.default) for field in fields(entry)}
    return {name: value for name, (value, default) in values.items() if value != default}


def find_files(folder: Path) -> list[File]:
    """Videos, images and tars below ``folder`` by their names, sorted; hidden ones are left out.

    Links to folders are followed, so that one folder may be spread over several disks. Warns of
    folders that cannot be searched.

    Raises:
        VideoError: there is no such folder.
    """
    if not folder.is_dir():
        raise VideoError(f"no usable video in {str(folder)!r}: it is not a folder; check the path")
    found, visited = [], set()
    for place, folders, names in os.walk(folder, onerror=warn_of_folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(place, name)
            wanted = path.suffix.lower() in MEDIA_SUFFIXES | {SHARD_SUFFIX}
            if wanted and not name.startswith("."):
                found.append(File(path.relative_to(folder).as_posix(), *size_and_time(path)))
    return sorted(found)


def warn_of_folder(error: OSError) -> None:
    warnings.warn(f"{error.filename} cannot be searched: {error.strerror}", stacklevel=2)


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change in nanoseconds; zeros for a link to nowhere."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def probe_files(folder: Path, files: Sequence[File]) -> Iterator[list[Entry]]:
    """The entries of each file, in order; several are opened at once.

    Threads do: nearly all of the time goes to FFmpeg and to the disk, which do not hold Python up.
    """
    pool = ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)))
    try:
        yield from pool.map(lambda file: probe_file(folder, file), files)
    finally:
        pool.shutdown(cancel_futures=True)


def probe_file(folder: Path, file: File) -> list[Entry]:
    """The entry of a file; of a tar, those of the videos and images in it."""
    itself = Entry(path=file.path, size=file.size, mtime=file.mtime)
    path = folder / file.path
    if path.suffix.lower() != SHARD_SUFFIX:
        return [probed(itself, folder)]
    entries = []
    try:
        for part in find_members(path, MEDIA_SUFFIXES):
            place = {"member": part.name, "offset": part.offset, "length": part.size}
            entries.append(probed(replace(itself, **place), folder))
    except VideoError as error:
        entries.append(replace(itself, error=reason(error, path)))
    return entries or [replace(itself, error="there are no videos or images in it")]


def probed(entry: Entry, folder: Path) -> Entry:
    """``entry`` with what its file says, or with the error."""
    source = entry.source(folder)
    try:
        info = probe(source)
    except Exception as error:  # a damaged file can raise anything
        return replace(entry, error=reason(error, source))
    return replace(
        entry,
        width=info.width,
        height=info.height,
        frames=info.frames or 1,
        fps=float(info.fps),
        is_image=info.is_image,
    )


def reason(error: Exception, source: Path | FilePart) -> str:
    """An error in one line, without the name of what could not be read."""
    message = str(error).removeprefix(f"cannot read {source}: ")
    return " ".join(message.split()) or type(error).__name__
