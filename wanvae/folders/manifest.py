"""The index of a folder of videos, images and tars: what there is, how large and how long.

``wanvae index DIR`` writes it to ``DIR/wanvae-manifest.jsonl``, with one JSON object for each video
or image. Training on many files then does not have to open all of them before the first step.
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
from wanvae.folders.tars import TAR_SUFFIX, find_members
from wanvae.video import FilePart, VideoError, probe

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
INDEXED_SUFFIXES = MEDIA_SUFFIXES | {TAR_SUFFIX}

MANIFEST = "wanvae-manifest.jsonl"
# What an unfinished index has found so far: one line for each file, a list of its entries.
JOURNAL = "wanvae-manifest.partial.jsonl"
# What a line raises that is not JSON, not text, or does not have the fields of an entry.
NO_ENTRY = (json.JSONDecodeError, UnicodeDecodeError, TypeError)


class File(NamedTuple):
    """A file on disk, with what changes when the file changes.

    path: relative to the indexed folder, with "/" between its parts.
    size: bytes.
    mtime: time of the last change, in nanoseconds.
    """

    path: str
    size: int
    mtime: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A video or image of the index, or a file that cannot be used.

    Attributes:
        path: the file, relative to the indexed folder, with "/" between its parts.
        size: bytes of the file.
        mtime: time of the last change of the file, in nanoseconds.
        member: name of the video or image inside the file, if the file is a tar.
        offset: first byte of the member in the tar.
        length: bytes of the member.
        width: pixels, as displayed.
        height: pixels, as displayed.
        frames: as the container counts them; 1 where it does not count them.
        fps: frames per second.
        is_image: whether it is a still image.
        error: why it cannot be used. The fields from ``width`` on then mean nothing.
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
        """The name for messages."""
        return self.path if self.member is None else f"{self.path}/{self.member}"

    @property
    def file(self) -> File:
        """The file that the entry is, or lies in."""
        return File(self.path, self.size, self.mtime)

    def source(self, folder: Path) -> Path | FilePart:
        """Returns what to read, given the indexed folder."""
        path = folder / self.path
        if self.member is None:
            return path
        return FilePart(path, self.member, self.offset, self.length)


def load_entries(folder: Path) -> list[Entry]:
    """Returns the entries of the manifest of ``folder``. Without a manifest, opens every file.

    A manifest is trusted: files that were added later are not seen until it is written again.

    Raises:
        UserError: the manifest is damaged, or there is no such folder.
    """
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    return [entry for entries in probe_files(folder, find_files(folder)) for entry in entries]


def read_manifest(folder: Path) -> list[Entry]:
    """Returns the entries of a manifest, in the order of their paths.

    Raises:
        UserError: the manifest is damaged, or of another version of this package.
    """
    path = folder / MANIFEST
    with path.open(encoding="utf-8") as lines:
        try:
            return [Entry(**json.loads(line)) for line in lines]
        except NO_ENTRY as error:
            raise UserError(
                f"{path} is not a manifest of this version ({error}); delete it and run "
                f"wanvae index {folder}"
            ) from error


def write_manifest(folder: Path, *, progress: bool = False) -> list[Entry]:
    """Indexes ``folder``, writes its manifest as a whole or not at all, and returns its entries.

    Unchanged files of the manifest are not opened again, and neither are files that an interrupted
    index has found. Files that could not be read are tried again, because a disk may be back.

    Args:
        progress: show a progress bar on stderr.

    Raises:
        UserError: there is no such folder, it has no videos, images or tars, or its manifest is
            damaged.
        OSError: the manifest cannot be written.
    """
    files = find_files(folder)
    if not files:
        suffixes = ", ".join(sorted(INDEXED_SUFFIXES))
        raise UserError(f"nothing to index in {str(folder)!r}: it has no files {suffixes}")
    known = known_entries(folder)
    unknown = [file for file in files if file not in known]
    journal = folder / JOURNAL
    with journal.open("a", encoding="utf-8") as lines:
        # Ends a line that an interruption left unfinished; such a line is ignored.
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
    """Returns the entries of manifest and journal by file, without files that have an error."""
    known: dict[File, list[Entry]] = {}
    if (folder / MANIFEST).exists():
        for entry in read_manifest(folder):
            known.setdefault(entry.file, []).append(entry)
    if (folder / JOURNAL).exists():
        for line in (folder / JOURNAL).read_bytes().splitlines():
            with suppress(*NO_ENTRY):
                entries = [Entry(**entry) for entry in json.loads(line)]
                known[entries[0].file] = entries
    return {
        file: entries
        for file, entries in known.items()
        if all(entry.error is None for entry in entries)
    }


def to_json(entry: Entry) -> dict[str, object]:
    """Returns the fields of an entry that differ from their defaults."""
    values = {field.name: (getattr(entry, field.name), field.default) for field in fields(entry)}
    return {name: value for name, (value, default) in values.items() if value != default}


def find_files(folder: Path) -> list[File]:
    """Returns the videos, images and tars in ``folder`` by their names, sorted, not hidden ones.

    Subfolders are searched. Links to folders are followed, so that one folder may be spread over
    several disks. Warns of folders that cannot be searched.

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
            if path.suffix.lower() in INDEXED_SUFFIXES and not name.startswith("."):
                found.append(File(path.relative_to(folder).as_posix(), *size_and_time(path)))
    return sorted(found)


def warn_of_folder(error: OSError) -> None:
    """Warns of a folder that cannot be searched."""
    warnings.warn(f"{error.filename} cannot be searched: {error.strerror}", stacklevel=2)


def size_and_time(path: Path) -> tuple[int, int]:
    """Returns bytes and the time of the last change in nanoseconds; zeros for a broken link."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def probe_files(folder: Path, files: Sequence[File]) -> Iterator[list[Entry]]:
    """Yields the entries of each file, in order. Several files are opened at once.

    Threads are enough, because FFmpeg and the disk take nearly all of the time, without holding
    Python's lock.
    """
    pool = ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)))
    try:
        yield from pool.map(lambda file: probe_file(folder, file), files)
    finally:
        pool.shutdown(cancel_futures=True)


def probe_file(folder: Path, file: File) -> list[Entry]:
    """Returns the entry of a file; for a tar, the entries of its videos and images."""
    itself = Entry(path=file.path, size=file.size, mtime=file.mtime)
    path = folder / file.path
    if path.suffix.lower() != TAR_SUFFIX:
        return [probed(itself, folder)]
    entries = []
    try:
        for part in find_members(path, MEDIA_SUFFIXES):
            member = replace(itself, member=part.name, offset=part.offset, length=part.size)
            entries.append(probed(member, folder))
    except VideoError as error:
        entries.append(replace(itself, error=reason(error, path)))
    return entries or [replace(itself, error="there are no videos or images in it")]


def probed(entry: Entry, folder: Path) -> Entry:
    """Returns ``entry`` with the size, length and rate that its file tells, or with the error."""
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
    """Returns an error in one line, without the name of the file that could not be read.

    The line names the kind of an error that neither this package nor the system raises on purpose.
    """
    message = " ".join(str(error).removeprefix(f"cannot read {source}: ").split())
    if isinstance(error, (UserError, OSError)) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
