"""Parts of a data set, which machines without a common disk encode, and the list of each part."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wanvae.dataset.control import with_controls
from wanvae.dataset.records import IndexedClip
from wanvae.dataset.stored import LatentsFilePlan
from wanvae.engine.config import check, from_json_dict, parse_json
from wanvae.engine.json_files import write_lines
from wanvae.engine.sharing import neighbouring_share
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.folders.clips import Clip
from wanvae.folders.failure import Failure

# The names of lists of parts.
LISTS = re.compile(r"index\.part-\d+-of-\d+\.jsonl")
# What is known of a clip. The greater number counts, if two lists know different things.
MISSING, FAILED, ENCODED = range(3)


@dataclass(frozen=True)
class DatasetPart:
    """The part of a data set that one machine encodes.

    Attributes:
        number: from 0 on.
        count: the number of parts.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def tag(self) -> str:
        """The part in names of files."""
        return f"part-{self.number:05}-of-{self.count:05}"

    @property
    def list_name(self) -> str:
        """The name of the list of the clips of the part."""
        return f"index.{self.tag}.jsonl"

    def choose(self, files: Sequence[LatentsFilePlan]) -> list[LatentsFilePlan]:
        """Returns the files of the part: neighbours, and about as much work as other parts have."""
        return neighbouring_share(files, [file.pixels for file in files], self.number, self.count)


def parse_part(text: str) -> DatasetPart:
    """Returns the part that a text like "3/16" names.

    Raises:
        UserError: it is another text, or there is no such part.
    """
    expected = "a part from 0 on and their number, like 3/16 for the fourth of 16"
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    check(match is not None, "part", text, expected)
    assert match is not None
    number, count = int(match[1]), int(match[2])
    check(count > 0, "part", text, expected)
    check(number < count, "part", text, f"{expected}; the last is {count - 1}/{count}")
    return DatasetPart(number, count)


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """The first line of the list of a part.

    Attributes:
        number: the number of the part.
        count: the number of parts.
        clips: the number of clips of the whole data set.
        plan: a digest of the list of all clips.
        broken: files of the source that cannot be read.
    """

    number: int
    count: int
    clips: int
    plan: str
    broken: tuple[Failure, ...]

    @property
    def part(self) -> DatasetPart:
        """The part."""
        return DatasetPart(self.number, self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartClip:
    """A further line of the list of a part: a clip, encoded or not.

    Attributes:
        position: the position of the clip in the whole data set.
        name: name of the clip.
        file: the file with its latents, relative to the folder of the data set.
        clip: the clip, if it is encoded.
        failure: why it cannot be encoded, if so.
    """

    position: int
    name: str
    file: str
    clip: IndexedClip | None = None
    failure: Failure | None = None

    @property
    def state(self) -> int:
        """``ENCODED``, ``FAILED`` or ``MISSING``."""
        if self.clip is not None:
            return ENCODED
        return MISSING if self.failure is None else FAILED


@dataclass(frozen=True)
class PartList:
    """The list of a part.

    Attributes:
        summary: the first line.
        clips: the other lines.
    """

    summary: PartSummary
    clips: tuple[PartClip, ...]


def write_part(
    folder: Location,
    part: DatasetPart,
    files: Sequence[LatentsFilePlan],
    encoded: Iterable[IndexedClip],
    failures: Iterable[Failure],
    broken: tuple[Failure, ...],
) -> list[Failure]:
    """Writes the list of a part, and returns the failures in it.

    Args:
        files: all files of the data set.
        encoded: the clips of the part that are there, with their sidecars.
        failures: clips that could not be encoded, of this part and perhaps of others.
        broken: files of the source that cannot be read.
    """
    known = {clip.name: clip for clip in encoded}
    failed = {failure.name: failure for failure in failures if failure.name not in known}
    own = {file.name for file in part.choose(files)}
    everything = [(clip.name, file.name) for file in files for clip in file.clips]
    clips = [
        PartClip(
            position=position, name=name, file=file, clip=known.get(name), failure=failed.get(name)
        )
        for position, (name, file) in enumerate(everything)
        if file in own
    ]
    summary = PartSummary(
        number=part.number,
        count=part.count,
        clips=len(everything),
        plan=digest_of_plan(files),
        broken=broken,
    )
    write_lines(folder / part.list_name, (summary, *clips))
    return [*(clip.failure for clip in clips if clip.failure is not None), *broken]


def digest_of_plan(files: Iterable[LatentsFilePlan]) -> str:
    """Returns a digest of the names of clips, what they are cut from, and where they are stored."""
    digest = hashlib.sha256()
    for file in files:
        for clip in with_controls(file.clips):
            digest.update(f"{describe_cut(clip)} {file.name}\n".encode())
    return digest.hexdigest()


def describe_cut(clip: Clip) -> str:
    """Returns the name of a clip, and what it is cut from, as digests take it."""
    cut = f"{clip.name} {clip.fps} {clip.first} {clip.frames} {clip.scaled} {clip.size}"
    return f"{cut} {clip.cut_from}" if clip.cut_from else cut


def find_lists(folder: Location) -> list[str]:
    """Returns the names of the lists of parts in a folder."""
    if isinstance(folder, RemotePath):
        names = list(folder.files())
    else:
        names = [path.name for path in folder.iterdir()]
    return sorted(name for name in names if LISTS.fullmatch(name))


def read_part(path: Location) -> PartList:
    """Returns the list of a part.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as lines:
        summary = from_json_dict(PartSummary, parse_json(next(lines, b"")))
        clips = tuple(from_json_dict(PartClip, parse_json(line)) for line in lines)
    return PartList(summary, clips)
