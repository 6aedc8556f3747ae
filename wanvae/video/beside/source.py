"""What a file holds beside its pictures: sound, subtitles, chapters and tags such as a title."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction

import av

from wanvae.video.common import Source, VideoError, is_pipe, one_line_errors, opened
from wanvae.video.reading.reader import VideoReader
from wanvae.video.reading.streams import is_picture


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What is carried from a file into a written video, beside its pictures.

    Attributes:
        source: the file.
        start: where the written video begins in the times of the file, in seconds.
        end: where it ends; None takes all to the end of the file.
        sound: whether sound is carried.
    """

    source: Source
    start: Fraction
    end: Fraction | None = None
    sound: bool = True

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"the end, {self.end} s, must follow the start, {self.start} s")

    @property
    def length(self) -> Fraction | None:
        """Seconds of the written video; None if it goes on to the end of the file."""
        return None if self.end is None else self.end - self.start


def beside_of(
    reader: VideoReader, start: float | Fraction = 0, end: float | None = None
) -> Beside | None:
    """Returns what lies beside a part of the pictures of a reader.

    Images have nothing beside them, and a pipe cannot be read once more: these give None.

    Args:
        start: seconds from the first frame of the file to the first frame of the part.
        end: seconds from the first frame of the file to the end of the part; None takes the rest.
    """
    if reader.is_of_images or is_pipe(reader.path):
        return None
    origin = reader.origin
    last = None if end is None else origin + Fraction(end)
    return Beside(source=reader.path, start=origin + Fraction(start), end=last)


def sound_of(
    path: str | os.PathLike[str], start: float | Fraction, end: float | Fraction
) -> Beside:
    """Returns what lies beside a part of a file that has sound, with or without a video.

    Args:
        start, end: seconds from the first frame, or from time 0 of a file without a video.

    Raises:
        VideoError: the file cannot be read, has no sound or is a pipe, which is read only once.
    """
    if is_pipe(path):
        raise VideoError(f"cannot read the sound of {path}: it is read twice; name a file")
    with one_line_errors("read", path), av.open(opened(path), metadata_errors="replace") as file:
        if not file.streams.audio:
            raise VideoError(f"{path} has no sound; name a file that has")
        has_video = not all(map(is_picture, file.streams.video))
    if not has_video:
        return Beside(source=path, start=Fraction(start), end=Fraction(end))
    with VideoReader(path) as reader:
        origin = reader.origin
    return Beside(source=path, start=origin + Fraction(start), end=origin + Fraction(end))
