"""The lists in the folder of a data set of latents, each a file with a JSON object a line.

``index.jsonl`` has the clips, and is there once all are done; ``failures.jsonl`` has those that
could not be encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wanvae.engine.config import from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.errors import UserError

INDEX = "index.jsonl"
FAILURES = "failures.jsonl"

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedClip:
    """A clip of a data set, and where its latents lie.

    Attributes:
        name: of the clip.
        source: of its video.
        start: seconds from the first frame of the video.
        fps: frames per second, as a fraction like "30000/1001".
        frames: of the video.
        height: of them, in pixels.
        width: likewise.
        file: with its latents, below the folder of the data set.
        offset: of the first byte of the first tensor in it; the second follows.
        shape: of each tensor, (z_dim, T, H, W).
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


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip that could not be encoded, or a file with none.

    Attributes:
        name: of the clip.
        source: of its video.
        reason: in one line.
    """

    name: str
    source: str
    reason: str


def read_lines(path: Path, cls: type[T]) -> list[T]:
    """The values of ``cls`` in a file with a JSON object a line; ValueError if one is no such."""
    with path.open("rb") as lines:
        return [from_json_dict(cls, parse_json(line)) for line in lines]


def write_lines(path: Path, values: Iterable[object]) -> None:
    """Write dataclasses, each as JSON on a line."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(to_json_dict(value)) + "\n" for value in values)


def append_line(path: Path, failure: Failure) -> None:
    """Record a failure as soon as it is known."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(failure)) + "\n")


def read_failures(folder: Path) -> list[Failure]:
    """The recorded failures; a line that was being written when a run was killed is left out."""
    found = []
    with suppress(FileNotFoundError):
        for line in (folder / FAILURES).read_bytes().splitlines():
            with suppress(UserError):
                found.append(from_json_dict(Failure, parse_json(line)))
    return found
