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
from wanvae.errors import UserError
from wanvae.folders.caption import caption_of
from wanvae.folders.failure import Failure

INDEX = "index.jsonl"
FAILURES = "failures.jsonl"


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


def read_failures(folder: Path) -> list[Failure]:
    """Returns the recorded failures, without a line that a killed run left unfinished."""
    found = []
    with suppress(FileNotFoundError):
        for line in (folder / FAILURES).read_bytes().splitlines():
            with suppress(UserError):
                found.append(from_json_dict(Failure, parse_json(line)))
    return found
