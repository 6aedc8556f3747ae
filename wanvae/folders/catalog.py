"""A manifest that opens in a moment, however long it is.

``wanvae index`` writes a table beside the manifest: the numbers that choose videos for training,
and a digest of the names in each folder. If the names are still the same, neither the manifest has
to be parsed nor the files have to be looked at, one by one. A file that has changed in its place is
not noticed, until ``wanvae index`` is run again. A manifest with scenes gets no table, because its
scenes choose the clips, and not its videos.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import compress
from pathlib import Path
from typing import overload

import numpy as np

from wanvae.engine.config import parse_json
from wanvae.engine.files import atomic_path
from wanvae.engine.json_lines import JsonLines
from wanvae.engine.litter import LITTER, suffix_of
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.errors import UserError
from wanvae.folders.listing import JOURNAL, MANIFEST, TABLE, size_and_time, walk
from wanvae.folders.manifest import (
    Entry,
    MediaFolder,
    read_folder,
    read_manifest,
    write_manifest,
)
from wanvae.folders.tars import TAR_SUFFIX
from wanvae.selection.checks import Checks

# What the table has of each entry.
NUMBERS = np.dtype(
    [
        *((name, np.uint32) for name in ("width", "height", "frames")),
        ("fps", np.float64),
        ("size", np.uint64),
        *((name, np.bool_) for name in ("is_image", "is_hdr", "is_broken", "is_other")),
    ]
)
# Names that do not count for the digest of a folder, besides hidden ones.
PASSED_OVER = LITTER | {MANIFEST, JOURNAL, TABLE}
# What a table raises that is damaged or of another version.
DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, UserError, zipfile.BadZipFile)


class Entries(Sequence[Entry]):
    """The entries of a manifest, each of which is parsed when it is asked for.

    Args:
        lines: the manifest.
        numbers: the numbers of its entries.

    Attributes:
        numbers: the numbers of the entries that are videos or images, or broken ones.
    """

    def __init__(self, lines: JsonLines[Entry], numbers: np.ndarray) -> None:
        self._lines = lines
        self._places = np.flatnonzero(~numbers["is_other"])
        self.numbers = numbers[self._places]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._lines[int(self._places[index])]

    def names(self) -> Iterator[str]:
        """Yields the name of each entry for messages, without parsing whole lines."""
        wanted = np.zeros(len(self._lines), bool)
        wanted[self._places] = True
        return map(name_in, compress(self._lines.lines(), wanted.tobytes()))


def name_in(line: bytes) -> str:
    """Returns the name in a line of a manifest, as ``Entry.name`` is.

    A line of a table has no objects in it, so without escapes each quote is one of a field.
    """
    path = line.partition(b'{"path": "')[2].partition(b'"')[0]
    if not path or b"\\" in line:
        values = json.loads(line)
        member = values.get("member")
        return values["path"] if member is None else f"{values['path']}/{member}"
    member = line.partition(b', "member": "')[2].partition(b'"')[0]
    return (path + b"/" + member if member else path).decode()


def numbers_of(entries: Iterable[Entry]) -> np.ndarray:
    """Returns the numbers of entries, as in a table."""
    if isinstance(entries, Entries):
        return entries.numbers
    return np.fromiter(map(numbers_in, entries), NUMBERS)


def numbers_in(entry: Entry) -> tuple[float, ...]:
    """Returns the numbers of an entry, in the order of ``NUMBERS``."""
    size = entry.size if entry.member is None else entry.length
    flags = entry.is_image, entry.hdr is not None, entry.error is not None, entry.other
    return entry.width, entry.height, entry.frames, entry.fps, size, *flags


def names_of(entries: Sequence[Entry]) -> Iterator[str]:
    """Returns the names of entries for messages."""
    return entries.names() if isinstance(entries, Entries) else (entry.name for entry in entries)


def open_folder(folder: Location) -> MediaFolder:
    """Returns what is in ``folder``, as ``read_folder``, in a moment if its table is up to date.

    A folder at an address has no table, and its manifest is read as a whole.
    """
    found = None if isinstance(folder, RemotePath) else open_table(folder)
    return found or read_folder(folder)


def open_table(folder: Path) -> MediaFolder | None:
    """Returns what is in ``folder`` by its table; None without one that is up to date."""
    try:
        with (folder / TABLE).open("rb") as file, np.load(file) as table:
            facts = parse_json(table["facts"].tobytes())
            numbers = table["numbers"]
        names, tars = facts["names"].items(), facts["tars"].items()
        up_to_date = (
            facts["fields"] == entry_fields()
            and numbers.dtype == NUMBERS
            and facts["manifest"] == list(size_and_time(folder / MANIFEST))
            and all(digest_of_names(folder / path) == digest for path, digest in names)
            and all(list(size_and_time(folder / path)) == state for path, state in tars)
        )
        lines = JsonLines(folder / MANIFEST, Entry, f"run wanvae index {folder} again")
    except DAMAGE:
        return None
    if not up_to_date or len(lines) != len(numbers):
        return None
    return MediaFolder(Entries(lines, numbers), Counter(facts["ignored"]))


def index_folder(
    folder: Location, *, progress: bool = False, checks: Checks | None = None, workers: int = 1
) -> MediaFolder:
    """Writes the manifest of a folder, as ``write_manifest``, and on a disk its table.

    Takes the arguments of ``write_manifest``.

    Raises:
        UserError: as ``write_manifest``.
        OSError: the manifest or the table cannot be written.
        RemoteError: a server cannot be reached, or takes no files.
    """
    if isinstance(folder, RemotePath):
        return write_manifest(folder, progress=progress, checks=checks, workers=workers)
    # Names that come later make the table out of date.
    names = read_names(folder)
    content = write_manifest(folder, progress=progress, checks=checks, workers=workers)
    write_table(folder, names, content.ignored)
    return content


def write_table(folder: Path, names: Mapping[str, str], ignored: Mapping[str, int]) -> None:
    """Writes the table of the manifest of a folder, or deletes it if the manifest has scenes.

    Args:
        names: a digest of the names in each folder, from before it was searched.
        ignored: how many files of each suffix are no videos, images or tars.

    Raises:
        FileError: the table cannot be written.
    """
    state = size_and_time(folder / MANIFEST)
    entries = read_manifest(folder)
    if any(entry.analysis is not None for entry in entries):
        (folder / TABLE).unlink(missing_ok=True)
        return
    facts = {
        "fields": entry_fields(),
        "manifest": state,
        "names": names,
        "tars": {e.path: (e.size, e.mtime) for e in entries if suffix_of(e.path) == TAR_SUFFIX},
        "ignored": ignored,
    }
    with atomic_path(folder / TABLE) as temporary, temporary.open("wb") as file:
        described = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        np.savez(file, numbers=numbers_of(entries), facts=described)


def entry_fields() -> list[str]:
    """Returns the names of the fields of entries, which tell the version of a table."""
    return [field.name for field in fields(Entry)]


def read_names(folder: Path) -> dict[str, str]:
    """Returns a digest of the names in a folder and in each of its subfolders, by path."""
    return {place: digest_of_names(folder / place) for place, _ in walk(folder)}


def digest_of_names(folder: Path) -> str:
    """Returns the SHA-256 of the names in a folder, in hexadecimal; empty if it cannot be read."""
    try:
        names = sorted(filter(counts, os.listdir(folder)))
    except OSError:
        return ""
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def counts(name: str) -> bool:
    """Whether a name counts for the digest of its folder."""
    return name[0] != "." and name.lower() not in PASSED_OVER
