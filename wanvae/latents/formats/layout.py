"""What programs expect of files of latents that they read as if they had cached them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import PurePosixPath
from typing import IO, Any, Literal

import torch
from torch import Tensor

from wanvae.errors import UserError
from wanvae.latents.scale import Scale
from wanvae.latents.spool import LatentsSpool, TensorEntry, safetensors_header

# Where a file says what this package knows of its clip: a text in the metadata of safetensors, and
# a file in the archive that torch.save writes.
RECORD = "wanvae"
ARCHIVED_RECORD = "archive/wanvae.json"
# What may be stored of a clip besides its own latents.
Condition = Literal["first_frame", "control"]
# How people name conditions, and the options that ask for them.
WORDS: dict[Condition, str] = {
    "first_frame": "the latents of a first frame alone",
    "control": "the latents of a control",
}
OPTIONS: dict[Condition, str] = {
    "first_frame": "--conditioning first_frame",
    "control": "--control",
}
# The first tensor in an archive that torch.save writes.
FIRST_TENSOR = "archive/data/0"


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What names and metadata of files depend on.

    Attributes:
        source: path of the video or image in its folder, with "/" between its parts.
        location: the tar that the video is in, or None, and the path of the video.
        first: number of the first frame.
        frames: number of frames.
        is_image: whether it is a still image.
        original: height and width of the video.
        size: height and width of the frames that were encoded.
        asked_frames: frames of each clip; None for whole videos.
        asked_fps: frames per second that clips are resampled to; None keeps the rate.
        architecture: the model, as the program calls it.
        dtype: the dtype of the latents, such as "bfloat16".
        first_frame: whether the latents of the first frame alone are stored too.
    """

    source: str
    location: tuple[str | None, str]
    first: int
    frames: int
    is_image: bool
    original: tuple[int, int]
    size: tuple[int, int]
    asked_frames: int | None
    asked_fps: Fraction | None
    architecture: str
    dtype: str
    first_frame: bool = False

    @property
    def path(self) -> PurePosixPath:
        """The path of the video."""
        return PurePosixPath(self.source)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How to write files that a program reads as if it had cached them.

    Attributes:
        name: its name, for the option.
        program: the name of the program, for people.
        scale: the scale that the program stores.
        store: what the program stores: the mean, or a sample.
        dtype: the dtype that the program stores without other settings.
        file_name: returns the path of the file of a clip.
        write: writes the latents of a clip, with a record of them, to a file. Last come latents of
            its first frame and of its control, as the layout has a place for them.
        architectures: the model, as the program calls it, by channels; empty if names and metadata
            do not depend on it.
        one_clip: whether the program keeps only one clip of each video.
        shards: whether a file holds many clips. ``file_name`` then returns the path without the
            number of the file and the suffix.
        note: what people must know to use the files; empty if there is nothing.
        conditions: what a file has a place for besides the latents of a clip, and for which models,
            as the program calls them; none means all.
    """

    name: str
    program: str
    scale: Scale
    store: Literal["mean", "sample"]
    dtype: Literal["float32", "bfloat16"]
    file_name: Callable[[ClipFacts], str]
    write: Callable[
        [IO[bytes], ClipFacts, LatentsSpool, str, Mapping[Condition, LatentsSpool]], None
    ]
    architectures: Mapping[int, str] = field(default_factory=dict)
    one_clip: bool = False
    shards: bool = False
    note: str = ""
    conditions: Mapping[Condition, tuple[str, ...]] = field(default_factory=dict)

    def architecture_of(self, asked: str, channels: int) -> str:
        """Returns the model that latents are for, as the program calls it.

        Args:
            asked: the model that people name; empty if they name none.
            channels: channels of the latents.

        Raises:
            UserError: the program has no such model, or does not tell models apart.
        """
        if asked and not self.architectures:
            raise UserError(f"{self.program} does not tell models apart; leave out --architecture")
        if asked or not self.architectures:
            return asked
        if channels not in self.architectures:
            raise UserError(
                f"no model of {self.program} is known whose latents have {channels} channels; name "
                "it with --architecture"
            )
        return self.architectures[channels]

    def check_conditions(self, asked: Sequence[Condition], architecture: str) -> None:
        """Raises UserError if files of the layout have no place for what is asked for."""
        for condition in asked:
            models = self.conditions.get(condition)
            if models is None or (models and architecture not in models):
                of = f" of {architecture}" if models else ""
                raise UserError(
                    f"{self.program} has no place for {WORDS[condition]} in its files{of}: leave "
                    f"out {OPTIONS[condition]}, or write --layout wanvae"
                )


# Writing


def write_safetensors(
    file: IO[bytes],
    spool: LatentsSpool,
    name: str,
    shape: Sequence[int],
    metadata: Mapping[str, str],
    others: Mapping[str, tuple[str, Sequence[int], bytes]] | None = None,
    conditions: Mapping[str, LatentsSpool] | None = None,
) -> None:
    """Writes a safetensors file of the only tensor of ``spool``, under another name and shape.

    Args:
        others: more tensors by name: dtype, shape and content.
        conditions: more latents, of one tensor each, by name. They follow ``spool``.
    """
    ((entry, size),) = spool.entries().values()
    tensors: dict[str, TensorEntry] = {name: ({**entry, "shape": list(shape)}, size)}
    others, conditions = others or {}, conditions or {}
    for other, latents in conditions.items():
        (tensors[other],) = latents.entries().values()
    for other, (dtype, sides, content) in others.items():
        tensors[other] = ({"dtype": dtype, "shape": list(sides)}, len(content))
    file.write(safetensors_header(tensors, metadata))
    for latents in (spool, *conditions.values()):
        latents.copy_to(file)
    for _, _, content in others.values():
        file.write(content)


def write_archive(file: IO[bytes], content: Tensor | dict[str, Any], record: str) -> None:
    """Writes what ``torch.save`` writes, with a record that it does not read."""
    archive = io.BytesIO()
    torch.save(content, archive)
    with zipfile.ZipFile(archive, "a") as entries:
        # A fixed time, so that the bytes do not depend on this run.
        entries.writestr(zipfile.ZipInfo(ARCHIVED_RECORD), record)
    file.write(archive.getbuffer())


# Reading records


def read_archive_record(archive: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Returns the record in an archive of ``torch.save``, and the first byte of its latents."""
    with zipfile.ZipFile(archive) as entries:
        record = json.loads(entries.read(ARCHIVED_RECORD))
        start = entries.getinfo(FIRST_TENSOR).header_offset
    # A local header has 30 bytes, and tells the lengths of name and extra field in the last four.
    archive.seek(start + 26)
    lengths = archive.read(4)
    name, extra = (int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
    return record, start + 30 + name + extra
