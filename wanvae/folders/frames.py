"""The frames of clips in the rate and size of the clips, one clip after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias, TypeVar

import torch.nn.functional as F
from torch import Tensor

from wanvae.engine.memory import is_out_of_memory
from wanvae.engine.storage.remote_path import Location
from wanvae.engine.storage.retries import RemoteError
from wanvae.errors import UserError
from wanvae.folders.clips import Clip
from wanvae.folders.manifest import Entry, head_of, reason
from wanvae.video import Frame, ReadOptions, VideoError, VideoReader
from wanvae.video.reading.options import AS_STORED

T = TypeVar("T")


class ClipError(UserError):
    """The frames of a clip cannot be read. The message says why in one line."""


# The results of one clip. An error, if there is one, is the last of them.
Row: TypeAlias = Iterator[tuple[Clip, T | ClipError]]


def read_clips(
    clips: Iterable[Clip],
    folder: Location,
    temporal_factor: int,
    *,
    alpha: bool = False,
    control: Location | None = None,
    options: ReadOptions = AS_STORED,
) -> Generator[tuple[Clip, Frame | ClipError], None, None]:
    """Yields the frames of each clip in turn, with times in seconds from the video's first frame.

    Each frame says when it ends, except a last frame after which the video is damaged.

    Frames that cannot be read are replaced by one error, which ends the clip. The frames of the
    control of a clip, if it has one, follow the frames of the clip.

    Args:
        folder: the indexed folder.
        temporal_factor: frames per latent after the first frame. The last frames of a whole video
            that do not fill such a group are dropped.
        alpha: whether frames are RGBA, opaque where a file has no alpha, or RGB.
        control: the indexed folder of controls.
        options: how pictures come out of the files.
    """
    with ExitStack() as held:
        cutters = [
            held.enter_context(closing(Cutter(place, alpha=alpha, options=options)))
            for place in (folder, control or folder)
        ]
        for clip in clips:
            for part, cutter in zip((clip, clip.control), cutters, strict=True):
                if part is not None:
                    yield from read_clip(part, cutter, temporal_factor)


def read_clip(
    clip: Clip, cutter: Cutter, temporal_factor: int
) -> Iterator[tuple[Clip, Frame | ClipError]]:
    """Yields the frames of a clip, and at their end the error if there is one.

    Raises:
        RemoteError: a server cannot be reached, which says nothing of the clip.
    """
    try:
        for frame in whole_groups(cutter.cut(clip), temporal_factor):
            yield clip, frame
    except Exception as error:  # a damaged file can raise anything
        if is_out_of_memory(error) or isinstance(error, RemoteError):
            raise
        cutter.close()
        yield clip, ClipError(reason(error, clip.entry.source(cutter.folder)))


def raised(row: Row[T]) -> Iterator[T]:
    """Yields the results of one clip, and raises the error among them."""
    for _, item in row:
        if isinstance(item, ClipError):
            raise item
        yield item


def whole_groups(frames: Iterator[Frame], size: int) -> Iterator[Frame]:
    """Yields the first frame, then whole groups of ``size`` frames, and drops the rest."""
    yield from islice(frames, 1)
    while len(group := list(islice(frames, size))) == size:
        yield from group


@dataclass(frozen=True)
class Damage:
    """The place where reading a video failed. Frames after it cannot be counted.

    Attributes:
        entry: the video.
        first: number of the first frame that cannot be read, or of a frame before it.
        error: why.
    """

    entry: Entry
    first: int
    error: VideoError

    def hits(self, clip: Clip) -> bool:
        """Whether a clip needs frames from there on."""
        counted = not (clip.resampled or clip.by_time)
        return counted and clip.entry.place == self.entry.place and clip.first >= self.first


class Cutter:
    """Cuts clips out of videos. Clips in a row of one video do not open the video again.

    A clip begins with the frame of its number. Frames are counted from the beginning of the video,
    because times do not tell numbers where the rate varies.

    Attributes:
        folder: the indexed folder.
    """

    def __init__(
        self, folder: Location, *, alpha: bool = False, options: ReadOptions = AS_STORED
    ) -> None:
        self.folder = folder
        self._alpha, self._options = alpha, options
        self._entry: Entry | None = None
        self._reader: VideoReader | None = None
        # The number of the next frame; -1 if it is not known.
        self._next = 0
        # Frames at another rate than the video's.
        self._resampled: Iterator[Frame] | None = None
        self._damage: Damage | None = None

    def cut(self, clip: Clip) -> Iterator[Frame]:
        """Yields the frames of a clip.

        Raises:
            VideoError: the frames cannot be read, or there are too few.
        """
        damage = self._damage
        if damage is not None and damage.hits(clip):
            raise damage.error
        count = 0
        try:
            frames = self._frames_from(self._open(clip.entry), clip)
            for frame in islice(frames, None if clip.whole else clip.frames):
                count += 1
                self._next += not clip.resampled and self._next >= 0
                yield Frame(fitted(frame.image, clip), frame.time, self._end(frame, clip, count))
        except VideoError as error:
            self._damage = Damage(clip.entry, clip.first + count, error)
            raise
        if count < clip.frames and not clip.whole:
            raise VideoError(f"only {count} of its {clip.frames} frames are there")

    def _end(self, frame: Frame, clip: Clip, count: int) -> float | None:
        """Returns when a frame ends, in seconds; None if the frame after it cannot be read.

        Args:
            count: how many frames of the clip there are with this one.

        Raises:
            VideoError: the clip needs the frame after it, which cannot be read.
        """
        if clip.resampled:
            return frame.time + float(1 / clip.fps)
        assert self._reader is not None
        try:
            return float(self._reader.next_time())
        except VideoError as error:
            if clip.whole or count < clip.frames:
                raise
            self._damage = Damage(clip.entry, clip.first + count, error)
            return None

    def _open(self, entry: Entry) -> VideoReader:
        """Returns the reader of a video."""
        if self._entry is not None and entry.place == self._entry.place and self._reader:
            return self._reader
        self.close()
        source = entry.source(self.folder)
        if entry.head and head_of(source) not in ("", entry.head):
            raise VideoError("it has changed since it was listed; run the command again")
        self._reader = reader = VideoReader(
            source, strict=True, alpha=self._alpha, options=self._options
        )
        self._entry = entry
        excerpt = entry.excerpt
        size = (entry.height, entry.width) if excerpt is None else excerpt.whole
        if (reader.info.height, reader.info.width) != size:
            raise VideoError(
                f"it has become {reader.info.width}x{reader.info.height} since it was indexed, or "
                "an older version indexed it: delete the manifest of the folder, and index it again"
            )
        return reader

    def _frames_from(self, reader: VideoReader, clip: Clip) -> Iterator[Frame]:
        """Returns the frames of the video from the start of a clip on."""
        if clip.resampled:
            if self._resampled is None or clip.first != self._next:
                self._resampled = reader.at_rate(clip.fps, clip.first)
            self._next = clip.first + clip.frames
            return self._resampled
        if clip.by_time:
            if clip.first:
                reader.seek(clip.start)
                self._next = -1
            return reader
        if not 0 <= self._next <= clip.first:
            self.close()
            reader = self._open(clip.entry)
        reader.skip(clip.first - self._next)
        self._next = clip.first
        return reader

    def close(self) -> None:
        """Closes the open video, if there is one."""
        if self._reader is not None:
            self._reader.close()
        self._entry, self._reader, self._resampled, self._next = None, None, None, 0


def fitted(image: Tensor, clip: Clip) -> Tensor:
    """Returns ``(C, H, W)`` without bars, scaled and cropped around the middle to a clip's size."""
    excerpt = clip.entry.excerpt
    if excerpt is not None and excerpt.box is not None:
        image = excerpt.box.cut_out(image)
    if image.shape[1:] != clip.scaled:
        image = F.interpolate(
            image[None], clip.scaled, mode="bilinear", antialias=True, align_corners=False
        )[0]
    height, width = clip.size
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]
