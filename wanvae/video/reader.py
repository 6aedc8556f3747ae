"""Video and image files to RGB frames in [-1, 1] with their times.

Colours are converted as the tags of the file say, times are the times in the file, and only a few
frames are in memory at a time.
"""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, dropwhile, islice

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from wanvae.video.common import INTERPOLATION, Source, VideoError, address, one_line_errors, reason

_DEFAULT_RATE = Fraction(25)
_ALLOWED_SHORTFALL = 0.5  # seconds; containers round or pad their durations
_NEAR = 1  # second; decoding so many frames is cheaper than going back to a keyframe
# FFmpeg's codes for a matrix that is not one of YUV: "RGB", "unspecified" and "reserved".
_UNTAGGED_MATRICES = (0, 2, 3)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file says about its video before all of it is decoded.

    Attributes:
        width, height: pixels as displayed, after rotation metadata. Pixels that are not square stay
            as they are.
        fps: frames per second on average; 25 if the file does not say, 1 for a still image.
        frames: the count in the container, or an estimate from its duration; None if the file has
            neither. Good for a progress bar, not for the size of an array.
        is_image: whether the file is a still image.
        estimated: whether the container does not count its frames, so that `frames` is not exact.
    """

    width: int
    height: int
    fps: Fraction
    frames: int | None
    is_image: bool
    estimated: bool = False


@dataclass(frozen=True)
class Frame:
    """One picture: `image` (3, H, W) float32 RGB in [-1, 1], `time` in seconds from the first."""

    image: torch.Tensor
    time: float


class VideoReader:
    """Iterates once over the frames of a video or image file, decoding as it goes.

    It reads any container and pixel format that FFmpeg reads, from a file or a part of a file.
    Frames are upright: rotation metadata (video or EXIF) is applied, but mirroring looks like
    rotation. Alpha is dropped. Times are the timestamps of the file, or frame number / fps without
    timestamps, and always increase. A damaged or incomplete file ends at its last good frame with a
    UserWarning; if `strict`, with a VideoError.

    Raises VideoError if the file cannot be opened or not one frame of it can be decoded.
    """

    info: VideoInfo

    def __init__(self, path: Source, *, strict: bool = False) -> None:
        self.path = path
        self._strict = strict
        self._open()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        with one_line_errors("read", self.path):
            # Metadata in a wrong encoding is no reason to refuse the pictures.
            self._container = av.open(address(self.path), metadata_errors="replace")
        stream = self._container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            self.close()
            raise VideoError(f"cannot read {self.path}: it has no video; give a video or image")
        stream.thread_type = "AUTO"
        self._stream = stream
        self._tick = stream.time_base or Fraction(1, av.time_base)

    def _start(self) -> None:
        """Decode the first frame, the only sure source of the size."""
        self._reformatter = VideoReformatter()
        self._damage: str | None = None
        self._reached: Fraction | None = None  # time of the last frame that was decoded
        frames = self._raw_frames()
        first = next(frames, None)
        if first is None:
            reason = self._damage or "it is empty; encode it again"
            raise VideoError(f"cannot read {self.path}: no frame could be decoded ({reason})")
        self._origin: int | None = first.pts
        self._coded_size = first.width, first.height
        self.info = self._describe(first)
        self._frames = self._timed(chain([first], frames))

    def _describe(self, first: av.VideoFrame) -> VideoInfo:
        name = self._container.format.name
        if name == "image2" or name.endswith("_pipe"):
            fps, frames, is_image, estimated = Fraction(1), 1, True, False
        else:
            fps, is_image = self._rate(), False
            duration = self._duration()
            if duration is not None and "matroska" in name:
                # Counted from time 0, at which the first frame need not be.
                duration -= (self._origin or 0) * self._tick
            estimate = None if duration is None else max(1, round(duration * fps))
            frames, estimated = self._stream.frames or estimate, not self._stream.frames
        sideways = round(first.rotation / 90) % 2 == 1
        width, height = self._coded_size[::-1] if sideways else self._coded_size
        return VideoInfo(
            width=width,
            height=height,
            fps=fps,
            frames=frames,
            is_image=is_image,
            estimated=estimated,
        )

    def _rate(self) -> Fraction:
        rates = [self._stream.average_rate, self._stream.guessed_rate, self._stream.base_rate]
        if self._origin is None:
            # There is nothing to average, and FFmpeg reports 25. Its guess reads the header.
            rates = rates[1:]
        return next((rate for rate in rates if rate), _DEFAULT_RATE)

    def _duration(self) -> Fraction | None:
        """The duration of this stream in seconds that the container says; None if it does not."""
        if self._stream.duration:
            return self._stream.duration * self._tick
        # The container gives the duration of its longest stream, which may be another one.
        if self._container.duration and len(self._container.streams) == 1:
            return Fraction(self._container.duration, av.time_base)
        return None

    def _raw_frames(self) -> Iterator[av.VideoFrame]:
        """Frames as decoded. After damage, the frames still in the decoder, then no more."""
        try:
            for frame in self._container.decode(self._stream):
                if isinstance(frame, av.VideoFrame):
                    yield frame
        except FFmpegError as error:
            self._damage = reason(error)
            with suppress(FFmpegError):
                yield from self._stream.decode(None)

    def _timed(self, frames: Iterator[av.VideoFrame]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Frames with their times in seconds. Warns after the last frame if frames are missing."""
        time, length = None, 0
        for frame in frames:
            time = self._reached = self._time(frame, time)
            length = frame.duration or 0
            yield time, frame
        if time is None:
            return
        if self._damage is None and self._origin is not None and not self.info.is_image:
            end = (self._origin + length) * self._tick + time
            missing = (self._duration() or end) - end
            if missing > max(_ALLOWED_SHORTFALL, 1 / self.info.fps):
                self._damage = f"it ends {float(missing):.1f} s early"
        if self._damage is not None:
            damage = f"damaged or cut short: {self._damage}; frames after {float(time):.2f} s are"
            if self._strict:
                raise VideoError(f"cannot read {self.path}: it is {damage} missing")
            warnings.warn(f"{self.path} is {damage} missing", stacklevel=2)

    def _time(self, frame: av.VideoFrame, previous: Fraction | None) -> Fraction:
        if frame.pts is None or self._origin is None:
            return Fraction(0) if previous is None else previous + 1 / self.info.fps
        tick = self._tick
        time = (frame.pts - self._origin) * tick
        # A repeated or backward timestamp moves on by one tick, so that times always increase.
        return time if previous is None or time > previous else previous + tick

    def seek(self, start: float | Fraction) -> None:
        """Continues with the first frame at or after `start` seconds from the first frame.

        Decoding goes on if `start` is near, or resumes at a keyframe before it. Only a file without
        timestamps is decoded from its beginning. Raises VideoError if the container cannot seek.
        """
        wanted = Fraction(start)
        # Timestamps are rounded to ticks, which may be as coarse as the frames themselves.
        earliest = wanted - min(self._tick, 1 / (2 * self.info.fps))
        if self._reached is None or not self._reached < earliest <= self._reached + _NEAR:
            self._seek_before(wanted)
        self._frames = dropwhile(lambda timed: timed[0] < earliest, self._frames)

    def _seek_before(self, start: Fraction) -> None:
        """Continues with a frame at or before `start` seconds from the first frame."""
        tick, back = self._tick, Fraction(0)
        while self._origin is not None and back < start:
            target = self._origin + int((start - back) / tick)
            with one_line_errors("seek in", self.path):
                self._container.seek(target, stream=self._stream)
            frames = self._timed(self._raw_frames())
            first = list(islice(frames, 1))
            if first and first[0][0] <= start:
                self._frames = chain(first, frames)
                break
            back = 2 * back + 1  # some containers land on a keyframe shown only after `start`
        else:
            self._container.close()
            self._open()
            self._frames = self._timed(self._raw_frames())

    def skip(self, count: int) -> None:
        """Passes over the next `count` frames, which are decoded but not converted."""
        for _ in islice(self._frames, count):
            pass

    def at_rate(self, fps: Fraction, first: int = 0) -> Iterator[Frame]:
        """The frames shown at `first / fps`, `(first + 1) / fps`, ... seconds from the first frame.

        They go on to the end of the video; the last frame lasts as long as an average one. Frames
        between the wanted ones are decoded but not converted. Raises as `seek`.
        """
        if first:
            self._seek_before(first / fps)
        # Timestamps are rounded to ticks, which may be as coarse as the frames themselves.
        rounding = min(self._tick / 2, 1 / (8 * self.info.fps))
        shown, number, end = None, first, Fraction(0)
        for time, frame in self._frames:
            while shown is not None and number / fps < time - rounding:
                yield Frame(self._image(shown), float(number / fps))
                number += 1
            shown = frame
            end = time + 1 / self.info.fps
        while shown is not None and number / fps < end - rounding:
            yield Frame(self._image(shown), float(number / fps))
            number += 1

    def __iter__(self) -> "VideoReader":
        return self

    def __next__(self) -> Frame:
        time, frame = next(self._frames)
        return Frame(self._image(frame), float(time))

    def _image(self, frame: av.VideoFrame) -> torch.Tensor:
        """(3, H, W) RGB in [-1, 1], upright and of the size in `info`."""
        if not frame.format.is_rgb and frame.colorspace in _UNTAGGED_MATRICES:
            # Untagged video is by custom BT.709 when high definition and BT.601 below, as players
            # take it; the still image formats are defined with BT.601.
            high = frame.height >= 720 and not self.info.is_image
            frame.colorspace = Colorspace.ITU709 if high else Colorspace.ITU601
        width, height = self._coded_size  # a stream that changes size is scaled back to its first
        with one_line_errors("read", self.path):
            picture = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format="rgb24" if _bits(frame) == 8 else "rgb48le",
                interpolation=INTERPOLATION,
            )
        black, white = _levels(frame)
        pixels = torch.from_numpy(picture.to_ndarray().astype(np.float32)).permute(2, 0, 1)
        image = ((pixels - black) / ((white - black) / 2) - 1).clamp_(-1, 1)
        return torch.rot90(image, round(frame.rotation / 90), dims=(1, 2)).contiguous()

    def close(self) -> None:
        """Closes the file; no more frames follow."""
        self._frames = iter(())
        self._container.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self.close()


def probe(path: Source) -> VideoInfo:
    """What the file says about its video; raises VideoError as VideoReader does."""
    with VideoReader(path) as reader:
        return reader.info


def read_video(path: Source) -> tuple[torch.Tensor, VideoInfo]:
    """All frames (3, T, H, W), float32 RGB in [-1, 1], and the info; raises as VideoReader."""
    with VideoReader(path) as reader:
        return torch.stack([frame.image for frame in reader], dim=1), reader.info


def read_clip(path: Source, start: float, frames: int, stride: int = 1) -> torch.Tensor:
    """`frames` frames (3, T, H, W) in [-1, 1]: every `stride`-th from `start` seconds on.

    Seeks to the keyframe before `start` and decodes forward from there. Raises VideoError if the
    file cannot be read or holds fewer frames than that.
    """
    if start < 0 or frames < 1 or stride < 1:
        raise VideoError(
            f"cannot read {path}: start {start} must be 0 or more, "
            f"frames {frames} and stride {stride} 1 or more"
        )
    with VideoReader(path) as reader:
        if start > 0:
            reader.seek(start)
        # Frames between the wanted ones are decoded but not converted.
        wanted = islice(reader._frames, 0, (frames - 1) * stride + 1, stride)
        images = [reader._image(frame) for _, frame in wanted]
    if len(images) < frames:
        raise VideoError(
            f"cannot read {path}: {frames} frames asked for from {start} s with stride {stride}, "
            f"only {len(images)} are there; start earlier or ask for fewer"
        )
    return torch.stack(images, dim=1)


def _bits(frame: av.VideoFrame) -> int:
    """Bits per sample, 8 to 16: swscale does not distinguish fewer or more."""
    return min(max(8, *(component.bits for component in frame.format.components)), 16)


def _levels(frame: av.VideoFrame) -> tuple[int, int]:
    """The levels of black and white after swscale converts this frame to rgb24 or rgb48."""
    bits = _bits(frame)
    unit = 1 if bits == 8 else 256
    gray = frame.format.name.startswith("gray")
    if gray and frame.color_range == ColorRange.MPEG:
        return 16 * unit, 235 * unit  # gray is copied as if it were always full range
    if bits == 8:
        return 0, 255
    if frame.format.is_rgb:
        return 0, 65535
    # Deep YUV and gray are shifted up, not stretched: white stays short of 65535.
    if gray or frame.color_range == ColorRange.JPEG:
        return 0, (2**bits - 1) << (16 - bits)
    return 0, 255 * unit
