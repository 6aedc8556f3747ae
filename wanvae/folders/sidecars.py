"""What describes a video or image: captions beside it, rows of tables, and members of its sample.

These are text files and JSON files of its name, such as ``a.txt`` or ``a.mp4.json`` beside
``a.mp4``; its row in ``metadata.jsonl``, ``.csv`` or ``.parquet``; and, in a tar, the other members
of its sample, whose names are the same up to the first dot, as for ``webdataset``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from wanvae.engine.litter import is_litter, suffix_of
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.engine.storage.retries import RemoteError
from wanvae.errors import UserError
from wanvae.folders.caption import ROW
from wanvae.folders.listing import (
    CAPTION_SUFFIXES,
    MEDIA_SUFFIXES,
    METADATA,
    REQUESTS,
    File,
    by_folder,
    choose_files,
    stems_of,
)
from wanvae.folders.manifest import Entry, MediaFolder
from wanvae.folders.metadata import MetadataTables, decode, parse_plain
from wanvae.folders.tars import TAR_SUFFIX, find_members, split_key
from wanvae.video import FilePart, VideoError

# Bytes of the largest file that describes a video.
LARGEST = 2**20

Sidecars = dict[str, Any]


def find_descriptions(
    folder: Location, content: MediaFolder
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns captions and tables of metadata in a folder, and notes for people.

    The manifest of a folder at an address does not name them, so the files there are listed.

    Args:
        content: what is in the folder, as ``read_folder`` returns it.
    """
    if not isinstance(folder, RemotePath) or content.descriptions:
        return content.descriptions, ()
    try:
        paths = folder.files()
        why = "" if paths else "the server does not list them"
    except RemoteError as error:
        paths, why = {}, str(error)
    if why:
        return (), (f"captions and metadata in {folder} are left out, if there are any: {why}",)
    # A list of a web server has names as in addresses, but the manifest has them as on a disk.
    names = map(unquote, paths) if folder.is_on_web else paths
    return choose_files(by_folder(names)).descriptions, ()


class SidecarReader:
    """Reads what describes the videos and images of a folder.

    Args:
        folder: the folder.
        descriptions: captions and tables in it, by path.

    Raises:
        UserError: a table is damaged, or is a Parquet file and pyarrow is missing.
    """

    def __init__(self, folder: Location, descriptions: Sequence[str]) -> None:
        self._folder = folder
        is_table = [PurePosixPath(path).name in METADATA for path in descriptions]
        pairs = list(zip(descriptions, is_table, strict=True))
        self._captions = sorted(path for path, table in pairs if not table)
        self._tables = MetadataTables(folder, [path for path, table in pairs if table])
        # Captions at an address that are on their way, by number.
        self._waiting: dict[int, Future[bytes | None]] = {}
        self._pool = ThreadPoolExecutor(REQUESTS)
        self._damaged: dict[str, None] = {}
        self._left_out: Counter[str] = Counter()
        # The video before, because a video often has many clips, and the members of its tar.
        self._last: tuple[tuple[File, str | None] | None, Sidecars] = None, {}
        self._samples: tuple[str, dict[str, list[FilePart]]] = "", {}

    def __enter__(self) -> SidecarReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._tables.close()

    def read(self, entry: Entry) -> Sidecars:
        """Returns what describes a video: text and JSON by suffix, and its row as "metadata"."""
        if entry.place != self._last[0]:
            self._last = entry.place, self._read(entry)
        return self._last[1]

    def unmatched(self, names: Collection[str]) -> list[str]:
        """Returns the names in tables that are not among the ``names`` of videos."""
        return self._tables.unmatched(names)

    @property
    def notes(self) -> list[str]:
        """What people must know of the descriptions that were read so far, one line each."""
        others = (
            f"{count} files {suffix} in tars are neither text nor JSON: left out"
            for suffix, count in self._left_out.items()
        )
        return [*self._tables.notes, *self._damaged, *others]

    def _read(self, entry: Entry) -> Sidecars:
        found: Sidecars = {}
        if entry.member is None:
            for number in self._captions_of(entry.path):
                path = self._captions[number]
                key = suffix_of(path)[1:]
                # A caption of the whole name comes first, and counts.
                if key not in found:
                    self._add(found, key, path, self._read_caption(number))
        else:
            for part in self._sample_of(entry.path, entry.member):
                content = read_bytes(part.container, part.offset, part.size)
                if suffix_of(part.name) in CAPTION_SUFFIXES or is_text(content):
                    key = split_key(part.name)[1]
                    self._add(found, key, f"{entry.path}/{part.name}", content)
                elif part.name != entry.member:
                    self._left_out[suffix_of(part.name)] += 1
        if row := self._tables.row_of(entry.name):
            found[ROW] = row
        return found

    def _read_caption(self, number: int) -> bytes | None:
        """Returns the bytes of a caption, as ``read_bytes``. A server is asked for the next too."""
        if not isinstance(self._folder, RemotePath):
            return read_bytes(self._folder / self._captions[number])
        near = range(number, min(number + 2 * REQUESTS, len(self._captions)))
        self._waiting = {n: self._waiting[n] for n in near if n in self._waiting}
        for each in near:
            if each not in self._waiting:
                path = self._folder / self._captions[each]
                self._waiting[each] = self._pool.submit(read_bytes, path)
        return self._waiting[number].result()

    def _add(self, found: Sidecars, key: str, name: str, content: bytes | None) -> None:
        """Adds a file that describes a video, unless it is damaged."""
        try:
            if content is None:
                raise UserError(f"it cannot be read, or has more than {LARGEST} bytes")
            found[key] = parse_plain(content) if suffix_of(name) == ".json" else decode(content)
        except UserError as error:
            self._damaged[f"{name}: {error}; left out"] = None

    def _captions_of(self, path: str) -> list[int]:
        """Returns the numbers of captions beside a file, captions of its whole name first."""
        pure = PurePosixPath(path)
        found = []
        for stem in stems_of(pure.name):
            start = str(pure.with_name(f"{stem}."))
            for number in range(bisect_left(self._captions, start), len(self._captions)):
                caption = self._captions[number]
                if not caption.startswith(start):
                    break
                if PurePosixPath(caption).stem == stem:
                    found.append(number)
        return found

    def _sample_of(self, tar: str, member: str) -> list[FilePart]:
        """Returns the members of a tar that describe one of its videos."""
        if self._samples[0] != tar:
            samples: dict[str, list[FilePart]] = {}
            try:
                for part in find_members(self._folder / tar, describes):
                    samples.setdefault(split_key(part.name)[0], []).append(part)
            except VideoError as error:
                self._damaged[str(error)] = None
            self._samples = tar, samples
        return self._samples[1].get(split_key(member)[0], [])


def describes(name: str) -> bool:
    """Whether a member of a tar may describe a video of its sample."""
    return bool(split_key(name)[1]) and not (
        is_litter(name) or suffix_of(name) in {*MEDIA_SUFFIXES, TAR_SUFFIX}
    )


def read_bytes(path: Location, offset: int = 0, size: int = LARGEST + 1) -> bytes | None:
    """Returns bytes of a file; None if it cannot be read, or there are too many."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(min(size, LARGEST + 1))
    except OSError:
        return None
    return content if len(content) <= LARGEST else None


def is_text(content: bytes | None) -> bool:
    """Whether bytes are text."""
    try:
        return content is not None and "\0" not in decode(content)
    except UserError:
        return False
