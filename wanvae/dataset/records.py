"""The lists in the folder of a data set of latents, files with one JSON object on each line.

``index.jsonl`` lists the clips, and is written once all of them are done. ``failures.jsonl`` lists
the clips and files that could not be encoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanvae.engine.config import from_json_dict, parse_json
from wanvae.engine.digest import Stamp
from wanvae.engine.json_files import append_line, write_lines
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.errors import UserError
from wanvae.folders.caption import caption_of
from wanvae.folders.failure import Failure

INDEX = "index.jsonl"
FAILURES = "failures.jsonl"
# Where each process records its failures, if processes cannot write to one file together.
LOGS = ".failures"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedClip:
    """A clip of a data set, and the place of its latents.

    Attributes:
        name: name of the clip.
        source: name of the video.
        start: seconds from the first frame of the video to the first frame of the clip.
        fps: frames per second, as a fraction like "30000/1001". Where the rate varies inside the
            clip, its mean over the clip. The file has the time of each frame.
        frames: video frames of the clip.
        height: height of the frames in pixels.
        width: width of the frames in pixels.
        file: the file with the latents, relative to the folder of the data set.
        offset: first byte of the first tensor in the file. A second tensor follows it.
        shape: shape of each tensor, (z_dim, T, H, W).
        stamp: the state of the file of the video when it was encoded; None in data sets of earlier
            versions.
        control: the state of the file of its control; None if there is none.
        sidecars: what describes the video: texts and values of JSON by the suffix of their file,
            such as "txt", and its row of a table of metadata as "metadata".
        cut_from: the scene of the video that the clip is cut from: its first frame, its number of
            frames, and the part inside black bars; empty if it is the whole video.
    """

    name: str
    source: str
    start: float
    fps: str
    frames: int
    height: int
    width: int
    file: str
    offset: int
    shape: tuple[int, ...]
    stamp: Stamp | None = None
    control: Stamp | None = None
    sidecars: Mapping[str, Any] = field(default_factory=dict)
    cut_from: str = ""

    @property
    def caption(self) -> str | None:
        """The caption among the sidecars, as ``caption_of`` chooses it; None if there is none."""
        return caption_of(self.sidecars)


class FailureLog:
    """Records failures as they come, so that an interrupted run does not forget them.

    Args:
        folder: the folder of the data set.
        name: a name for the process, if it has a file of its own, as at an address, where files
            cannot grow; None for one file of all processes.
    """

    def __init__(self, folder: Location, name: str | None) -> None:
        self._folder = folder
        self._path = folder / FAILURES if name is None else folder / LOGS / f"{name}.jsonl"
        self._failures: list[Failure] | None = None

    def add(self, failure: Failure) -> None:
        """Records a failure."""
        if isinstance(self._path, Path):
            self._path.parent.mkdir(exist_ok=True)
            append_line(self._path, failure)
            return
        if self._failures is None:
            self._failures = read_failure_file(self._path)
        self._failures.append(failure)
        write_lines(self._path, self._failures)


def read_failures(folder: Location) -> list[Failure]:
    """Returns the recorded failures, without a line that a killed run left unfinished."""
    paths = [folder / FAILURES, *find_logs(folder)]
    return [failure for path in paths for failure in read_failure_file(path)]


def read_failure_file(path: Location) -> list[Failure]:
    """Returns the failures in a file; none if it is not there."""
    found = []
    with suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            with suppress(UserError):
                found.append(from_json_dict(Failure, parse_json(line)))
    return found


def find_logs(folder: Location) -> list[Location]:
    """Returns the files of processes with failures of their own."""
    logs = folder / LOGS
    if isinstance(logs, RemotePath):
        return [logs / name for name in sorted(logs.files())]
    return sorted(logs.glob("*.jsonl"))


def remove_logs(folder: Location) -> None:
    """Deletes these files, after ``failures.jsonl`` has what they tell."""
    for log in find_logs(folder):
        log.unlink(missing_ok=True)
    if isinstance(folder, Path):
        with suppress(OSError):
            (folder / LOGS).rmdir()
