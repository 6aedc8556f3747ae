"""The frames of clips, as they are encoded: in rate and size, one clip after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch.nn.functional as F
from torch import Tensor

from wanvae.engine.memory import is_out_of_memory
from wanvae.errors import UserError
from wanvae.folders.clips import Clip
from wanvae.folders.manifest import Entry, reason
from wanvae.video import Frame, VideoError, VideoReader

T = TypeVar("T")


class ClipError(UserError):
    """A clip whose frames cannot be read; the message says why in one line."""


# What comes of one clip.
Row: TypeAlias = Iterator[tuple[Clip, T | ClipError]]


def read_clips(
    clips: Iterable[Clip], folder: Path, temporal_factor: int
) -> Generator[tuple[Clip, Frame | ClipError], None, None]:
    """The frames of each clip in turn, 1 + 4n of them, with times in seconds from its first.

    In the place of frames that cannot be read is an error, the last of its clip.

    Args:
        folder: that the paths of videos are below.
        temporal_factor: frames that become one latent; of a whole video those that would fill a
            group of them only in part are dropped.
    """
    with closing(Cutter(folder)) as cutter:
        for clip in clips:
            try:
                for frame in whole_groups(cutter.cut(clip), temporal_factor):
                    yield clip, frame
            except Exception as error:  # a damaged file can raise anything
                if is_out_of_memory(error):
                    raise
                cutter.close()
                yield clip, ClipError(reason(error, clip.entry.source(folder)))


def raised(row: Row[T]) -> Iterator[T]:
    """What comes of one clip; raises the error that may be in its place."""
    for _, item in row:
        if isinstance(item, ClipError):
            raise item
        yield item


def whole_groups(frames: Iterator[Frame], size: int) -> Iterator[Frame]:
    """The first frame, and after it so many at a time; not the rest."""
    yield from islice(frames, 1)
    while len(group := list(islice(frames, size))) == size:
        yield from group


class Cutter:
    """Cuts clips out of videos; those that follow each other without opening the video again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entry: Entry | None = None
        self._reader: VideoReader | None = None
        # Frames at another rate than the video's, and the number of the next of them.
        self._resampled: Iterator[Frame] = iter(())
        self._next = -1

    def cut(self, clip: Clip) -> Iterator[Frame]:
        """The frames of a clip; VideoError if they cannot be read or are too few."""
        self._open(clip.entry)
        count, start = 0, 0.0
        for frame in islice(self._frames(clip), None if clip.whole else clip.frames):
            start = start if count else frame.time
            count += 1
            yield Frame(fitted(frame.image, clip), frame.time - start)
        if count < clip.frames and not clip.whole:
            raise VideoError(f"only {count} of its {clip.frames} frames are there")

    def _open(self, entry: Entry) -> None:
        if entry == self._entry:
            return
        self.close()
        self._reader = VideoReader(entry.source(self._folder), strict=True)
        self._entry = entry
        info = self._reader.info
        if (info.height, info.width) != (entry.height, entry.width):
            raise VideoError(f"it has become {info.width}x{info.height} since it was indexed")

    def _frames(self, clip: Clip) -> Iterator[Frame]:
        """The frames of the video from the start of a clip on."""
        if not clip.resampled:
            if clip.first:
                self._reader.seek(clip.start)
            return self._reader
        if clip.first != self._next:
            self._resampled = self._reader.at_rate(clip.fps, clip.first)
        self._next = clip.first + clip.frames
        return self._resampled

    def close(self) -> None:
        """Close the video that is open, if any."""
        if self._reader is not None:
            self._reader.close()
        self._entry, self._reader, self._next = None, None, -1


def fitted(image: Tensor, clip: Clip) -> Tensor:
    """``(3, H, W)`` scaled, and cropped around the middle, to the size of a clip."""
    if image.shape[1:] != clip.scaled:
        image = F.interpolate(
            image[None], clip.scaled, mode="bilinear", antialias=True, align_corners=False
        )[0]
    height, width = clip.size
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]
