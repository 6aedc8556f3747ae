"""The index of a folder of videos, images and tars: what there is, how large and how long.

``wanvae index DIR`` writes it to ``DIR/wanvae-manifest.jsonl``, with one JSON object for each video
or image. Training on many files then does not have to open all of them before the first step.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

from tqdm import tqdm

from wanvae.engine.config import changed_values
from wanvae.engine.digest import Stamp, digest_of_head
from wanvae.engine.files import atomic_path
from wanvae.engine.litter import describe_ignored, suffix_of
from wanvae.engine.locking import locked
from wanvae.engine.memory import is_out_of_memory
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.engine.storage.retries import RemoteError
from wanvae.engine.workers import map_in_processes, map_in_threads
from wanvae.errors import UserError
from wanvae.folders.listing import (
    JOURNAL,
    MANIFEST,
    MEDIA_SUFFIXES,
    File,
    Listing,
    list_files,
    may_be_media,
)
from wanvae.folders.tars import TAR_SUFFIX, find_members, split_key
from wanvae.selection import analysis
from wanvae.selection.analysis import Analysis, analyse
from wanvae.selection.checks import Checks, decide
from wanvae.selection.excerpt import Excerpt
from wanvae.video import FilePart, VideoError, probe

# What a line raises that is not JSON, not text, or does not have the fields of an entry.
NO_ENTRY = (json.JSONDecodeError, UnicodeDecodeError, TypeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A video or image of the index, or a file that cannot be used.

    Attributes:
        path: the file, relative to the indexed folder, with "/" between its parts.
        size: bytes of the file.
        mtime: time of the last change of the file, in nanoseconds.
        head: the ``head`` of the stamp of the file, or of the member; empty if it is not known.
        member: name of the video or image inside the file, if the file is a tar.
        offset: first byte of the member in the tar.
        length: bytes of the member.
        width: pixels, as displayed.
        height: pixels, as displayed.
        frames: as the container counts them; where it does not, its packets are counted.
        fps: frames per second.
        is_image: whether it is a still image.
        hdr: "PQ", "HLG", "BT.2020" or "P3" for colours that are converted to SDR; None for SDR.
        error: why it cannot be used. The fields from ``width`` on then mean nothing.
        other: whether neither its name nor its content is one of a video or image.
        analysis: its scenes and bars, if ``wanvae index --scenes`` has looked for them.
        excerpt: the scene that the entry stands for, with its own frames, height and width; None
            for the whole video, as in a manifest.
    """

    path: str
    size: int
    mtime: int
    head: str = ""
    member: str | None = None
    offset: int = 0
    length: int = 0
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: float = 0.0
    is_image: bool = False
    hdr: str | None = None
    error: str | None = None
    other: bool = False
    analysis: Analysis | None = None
    excerpt: Excerpt | None = None

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.path if self.member is None else f"{self.path}/{self.member}"

    @property
    def label(self) -> str:
        """The name for messages, with the time of the scene."""
        return self.name + ("" if self.excerpt is None else f" from {self.excerpt.begin:.2f} s on")

    @property
    def place(self) -> tuple[File, str | None]:
        """What is the same for all scenes of one video, and for no other video."""
        return self.file, self.member

    @property
    def file(self) -> File:
        """The file that the entry is, or lies in."""
        return File(self.path, self.size, self.mtime)

    @property
    def stamp(self) -> Stamp:
        """What changes when the video or image changes. A tar changes as a whole."""
        return Stamp(size=self.size, mtime=self.mtime, head=self.head)

    def source(self, folder: Location) -> Location | FilePart:
        """Returns what to read, given the indexed folder."""
        path = folder / self.path
        if self.member is None:
            return path
        return FilePart(path, self.member, self.offset, self.length)


@dataclass(frozen=True)
class MediaFolder:
    """The videos and images of a folder, and what else is in it.

    Attributes:
        entries: videos, images and files that cannot be used, in the order of their paths.
        ignored: how many files of each suffix are no videos, images or tars.
        descriptions: captions beside videos and images, and tables of metadata, by path.
    """

    entries: Sequence[Entry]
    ignored: Counter[str]
    descriptions: tuple[str, ...] = ()


def load_entries(folder: Location) -> Sequence[Entry]:
    """Returns the entries of ``folder``, as ``read_folder`` does."""
    return read_folder(folder).entries


def read_folder(folder: Location) -> MediaFolder:
    """Returns what is in ``folder``. Files that its manifest does not know as they are are opened.

    Warns if there are such files, or if files of the manifest are gone. The manifest at an address
    is believed, because listing many files there takes long, and web servers cannot do it. Captions
    and tables of metadata there are not in the manifest; ``find_descriptions`` finds them.

    Raises:
        UserError: the manifest is damaged, or there is no such folder.
    """
    if isinstance(folder, RemotePath) and (folder / MANIFEST).exists():
        return without_others(read_manifest(folder), Listing([], Counter()))
    listing = list_files(folder)
    known: dict[File, list[Entry]] = {}
    if (folder / MANIFEST).exists():
        for entry in read_manifest(folder):
            known.setdefault(entry.file, []).append(entry)
        warn_of_changes(folder, listing.files, known)
    unknown = [file for file in listing.files if file not in known]
    known |= zip(unknown, probe_files(folder, unknown), strict=True)
    entries = [entry for file in listing.files for entry in known[file]]
    return without_others(entries, listing)


def warn_of_changes(folder: Location, files: Sequence[File], known: Collection[File]) -> None:
    """Warns if the files of a folder are not the files of its manifest."""
    new = sum(file not in known for file in files)
    paths = {file.path for file in files}
    gone = len({file.path for file in known} - paths)
    if new or gone:
        warnings.warn(
            f"{folder / MANIFEST} is not up to date: {new} files were added or changed, and {gone} "
            f"are gone; the files are taken as they are now. Run wanvae index {folder} to list "
            "them",
            stacklevel=3,
        )


def without_others(entries: Iterable[Entry], listing: Listing) -> MediaFolder:
    """Returns the entries that are videos, images or broken ones, and counts the others.

    Members of tars that describe videos do not count.
    """
    used, others = [], []
    for entry in entries:
        (others if entry.other else used).append(entry)
    samples = {sample_of(entry) for entry in others if entry.member} and set(map(sample_of, used))
    others = Counter(suffix_of(entry.name) for entry in others if sample_of(entry) not in samples)
    return MediaFolder(used, listing.ignored + others, listing.descriptions)


def sample_of(entry: Entry) -> tuple[str, str]:
    """Returns the file of an entry, and what the members of its sample have in common."""
    return entry.path, split_key(entry.member)[0] if entry.member else ""


def read_manifest(folder: Location) -> list[Entry]:
    """Returns the entries of a manifest, in the order of their paths.

    Raises:
        UserError: the manifest is damaged, or of another version of this package.
    """
    path = folder / MANIFEST
    with path.open("r", encoding="utf-8") as lines:
        try:
            return [entry_of(json.loads(line)) for line in lines]
        except NO_ENTRY as error:
            raise UserError(
                f"{path} is not a manifest of this version ({error}); delete it and run "
                f"wanvae index {folder}"
            ) from error


def write_manifest(
    folder: Location, *, progress: bool = False, checks: Checks | None = None, workers: int = 1
) -> MediaFolder:
    """Indexes ``folder``, writes its manifest as a whole or not at all, and returns its content.

    Unchanged files of the manifest are not opened again, and neither are files that an interrupted
    index has found. Files that could not be read are tried again, because a disk may be back.

    Args:
        progress: show a progress bar on stderr.
        checks: look for scenes in each video that is not analysed yet, and decide which are left
            out; None keeps the analyses that there are.
        workers: number of processes that look for scenes.

    Raises:
        UserError: there is no such folder, it has no videos, images or tars, its manifest is
            damaged, or another process indexes it.
        OSError: the manifest cannot be written.
        RemoteError: a server cannot be reached, or takes no files.
    """
    if isinstance(folder, RemotePath):
        folder.check_writable()
    listing = list_files(folder)
    if not listing.files:
        ignored = describe_ignored(listing.ignored)
        raise UserError(
            f"nothing to index in {str(folder)!r}: it has no videos, images or tars"
            + (f", only {ignored}" if ignored else "")
        )
    # Object stores know no locks.
    with nullcontext() if isinstance(folder, RemotePath) else locked(folder):
        return index_files(folder, listing, progress=progress, checks=checks, workers=workers)


def index_files(
    folder: Location, listing: Listing, *, progress: bool, checks: Checks | None, workers: int
) -> MediaFolder:
    """Writes the manifest of the files of a folder, as ``write_manifest`` says."""
    files, known = listing.files, known_entries(folder)
    unknown = [
        file
        for file in files
        if file not in known or (checks is not None and not all(map(is_analysed, known[file])))
    ]
    with open_journal(folder) as lines:
        # Ends a line that an interruption left unfinished; such a line is ignored.
        lines.write("\n")
        if checks is None:
            found = probe_files(folder, unknown)
        else:
            found = analyse_files(folder, unknown, known, workers)
        bar = tqdm(found, total=len(unknown), unit="file", disable=not progress)
        for file, entries in zip(unknown, bar, strict=True):
            known[file] = entries
            lines.write(json.dumps([to_json(entry) for entry in entries]) + "\n")
            lines.flush()
    entries = [entry for file in files for entry in known[file]]
    if checks is not None:
        decided = decide(
            [each.analysis for each in entries], [each.name for each in entries], checks
        )
        entries = [replace(a, analysis=b) for a, b in zip(entries, decided, strict=True)]
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(
            "".join(json.dumps(to_json(entry)) + "\n" for entry in entries), encoding="utf-8"
        )
    if not isinstance(folder, RemotePath):
        (folder / JOURNAL).unlink()
    return without_others(entries, listing)


def open_journal(folder: Location) -> IO[str]:
    """Opens the journal of an index. Files at an address cannot grow, so there it is lost."""
    if isinstance(folder, RemotePath):
        return open(os.devnull, "w", encoding="utf-8")
    return (folder / JOURNAL).open("a", encoding="utf-8")


def known_entries(folder: Location) -> dict[File, list[Entry]]:
    """Returns the entries of manifest and journal by file, without files to try again."""
    known: dict[File, list[Entry]] = {}
    if (folder / MANIFEST).exists():
        for entry in read_manifest(folder):
            known.setdefault(entry.file, []).append(entry)
    if (folder / JOURNAL).exists():
        for line in (folder / JOURNAL).read_bytes().splitlines():
            with suppress(*NO_ENTRY):
                entries = [entry_of(values) for values in json.loads(line)]
                known[entries[0].file] = entries
    return {
        file: entries
        for file, entries in known.items()
        if all(entry.error is None or entry.other for entry in entries)
    }


def to_json(entry: Entry) -> dict[str, object]:
    """Returns the fields of an entry that differ from their defaults."""
    changed = changed_values(entry)
    if entry.analysis is not None:
        changed["analysis"] = analysis.to_json(entry.analysis)
    return changed


def entry_of(values: dict[str, Any]) -> Entry:
    """Returns the entry with these fields.

    Raises:
        TypeError: it is none.
    """
    if "analysis" in values:
        values["analysis"] = analysis.from_json(values["analysis"])
    return Entry(**values)


def probe_files(folder: Location, files: Sequence[File]) -> Iterator[list[Entry]]:
    """Returns the entries of each file, in order. Several files are opened at once.

    Threads are enough, because FFmpeg and the disk take nearly all of the time, without holding
    Python's lock.
    """
    workers = min(32, 2 * (os.cpu_count() or 1))
    return map_in_threads(partial(probe_file, folder), files, workers)


def is_analysed(entry: Entry) -> bool:
    """Whether there is nothing to look for in an entry, or it is done."""
    if entry.error is not None or entry.other:
        return True
    found = entry.analysis
    return found is not None and found.version == analysis.VERSION and bool(found.scenes)


def analyse_files(
    folder: Location, files: Sequence[File], known: Mapping[File, list[Entry]], workers: int
) -> Iterator[list[Entry]]:
    """Yields the entries of each file with their analyses, in order.

    Args:
        known: the entries of files that are not opened to know them.
    """
    items = ((file, known.get(file)) for file in files)
    workers = max(1, min(workers, len(files)))
    for entries, notices in map_in_processes(partial(analyse_file, folder), items, workers):
        for notice in notices:
            warnings.warn(notice, stacklevel=2)
        yield entries


def analyse_file(
    folder: Location, item: tuple[File, list[Entry] | None]
) -> tuple[list[Entry], list[str]]:
    """Returns the entries of a file with their analyses, and what the reader warns of."""
    file, entries = item
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        entries = probe_file(folder, file) if entries is None else entries
        entries = [each if is_analysed(each) else analysed(each, folder) for each in entries]
    return entries, list(dict.fromkeys(str(notice.message) for notice in notices))


def analysed(entry: Entry, folder: Location) -> Entry:
    """Returns ``entry`` with its analysis. Of a video that cannot be read, nothing is used."""
    source = entry.source(folder)
    try:
        return replace(entry, analysis=analyse(source))
    except RemoteError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if is_out_of_memory(error):
            raise
        return replace(entry, analysis=Analysis(damage=reason(error, source)))


def probe_file(folder: Location, file: File) -> list[Entry]:
    """Returns the entry of a file; for a tar, the entries of its videos and images."""
    itself = Entry(path=file.path, size=file.size, mtime=file.mtime)
    path = folder / file.path
    if suffix_of(file.path) != TAR_SUFFIX:
        return [probed(itself, folder)]
    entries = []
    try:
        for part in find_members(path, may_be_media):
            member = replace(itself, member=part.name, offset=part.offset, length=part.size)
            entries.append(probed(member, folder))
    except VideoError as error:
        entries.append(replace(itself, error=reason(error, path)))
    if all(entry.other for entry in entries):
        entries.append(replace(itself, error="there are no videos or images in it"))
    return entries


def probed(entry: Entry, folder: Location) -> Entry:
    """Returns ``entry`` with the size, length and rate that its file tells, or with the error."""
    source = entry.source(folder)
    head = head_of(source)
    try:
        info = probe(source)
    except RemoteError:
        raise
    except Exception as error:  # a damaged file can raise anything
        other = suffix_of(entry.name) not in MEDIA_SUFFIXES
        return replace(entry, head=head, error=reason(error, source), other=other)
    return replace(
        entry,
        head=head,
        width=info.width,
        height=info.height,
        frames=info.frames or 1,
        fps=float(info.fps),
        is_image=info.is_image,
        hdr=info.hdr,
    )


def head_of(source: Location | FilePart) -> str:
    """Returns the ``head`` of the stamp of a video or image."""
    if isinstance(source, FilePart):
        return digest_of_head(source.container, source.offset, source.size)
    return digest_of_head(source)


def reason(error: Exception, source: Location | FilePart) -> str:
    """Returns an error in one line, without the name of the file that could not be read.

    The line names the kind of an error that neither this package nor the system raises on purpose.
    """
    message = " ".join(str(error).removeprefix(f"cannot read {source}: ").split())
    if isinstance(error, (UserError, OSError)) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
