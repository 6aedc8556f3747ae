"""RGB and RGBA frames in [-1, 1] to video and image files, which appear when they are complete."""

import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    VideoReformatter,
)
from av.video.stream import VideoStream

from wanvae.video.common import INTERPOLATION, RATES, VideoError, one_line_errors
from wanvae.video.ending import Ending
from wanvae.video.formats import Format, find_format, known_suffixes
from wanvae.video.target import find_target

_FINE_TICKS = 90_000  # per second, the least precision of written times
# Seconds of one unit of time in containers that do not count in the units of the encoder.
_COARSE_TICKS = {"matroska": Fraction(1, 1000), "webm": Fraction(1, 1000)}


class VideoWriter:
    """Writes frames to a file that gets its final name when the writer is closed.

    .mp4, .mov and .mkv hold H.264 (BT.709, limited range; 4:2:0, or 4:4:4 where a side is odd,
    which 4:2:0 cannot hold); .webm holds VP9; .apng is lossless. .png, .jpg, .jpeg and .webp hold
    exactly one frame, and numbered images like "frames/%05d.png" one frame each; their folder is
    created if it is missing. "frames/" means "frames/%05d.png".

    With `alpha` frames are RGBA, and colours are not premultiplied. .webm then holds VP9 with
    alpha, .mov ProRes 4444 (10 bit); .apng, .png and .webp are as above, but .webp does not keep
    the colours of pixels that are fully transparent. Other formats hold no alpha.

    `width` and `height` are in pixels, `fps` in frames per second. `crf` is the quality of H.264
    and VP9 from 0 (best) to 51.

    As a context manager it completes the file at the end of the block. After an exception it
    deletes the unfinished file and keeps an earlier one. Raises VideoError if the suffix is not
    known or holds no alpha, the folder is missing or not writable, numbered images are there
    already, the disk is full or no frame was written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        fps: Fraction,
        crf: int = 18,
        alpha: bool = False,
    ) -> None:
        folder = os.fspath(path).endswith(("/", os.sep))
        self.path = Path(path, "%05d.png") if folder else Path(path)
        self.alpha = alpha
        self._size = width, height
        self._format = self._find_format()
        with one_line_errors("write", self.path):
            self._target = find_target(self.path)
        if width < 1 or height < 1 or not RATES[0] <= fps <= RATES[1] or not 0 <= crf <= 51:
            given = f"size {width}x{height}, fps {fps}, crf {crf}"
            limits = f"fps {RATES[0]} to {RATES[1]} and crf 0 to 51"
            raise self._error(f"{given}; sizes must be positive, {limits}")
        fps = Fraction(fps).limit_denominator(_FINE_TICKS)
        # A whole number of ticks per frame keeps the rate exact; many ticks keep given times so.
        ticks = fps.numerator * max(1, _FINE_TICKS // fps.numerator)
        self._time_base = Fraction(1, ticks)
        self._step = int(ticks / fps)
        tick = _COARSE_TICKS.get(self._format.container, self._time_base)
        if fps * tick > 1:
            raise self._error(
                f"it counts time in 1/{tick.denominator} s, too coarse for {fps} frames per "
                "second; write .mp4 or .mov"
            )
        self._least_step = ceil(tick / self._time_base)
        self._last_pts: int | None = None
        self._last_time: float | None = None
        self._end: float | None = None
        self._ending = Ending(self._least_step)
        self._reformatter = VideoReformatter()
        self._container: OutputContainer | None = None
        try:
            with one_line_errors("write", self.path):
                self._target.begin()
                self._open(fps, crf)
        except BaseException:
            self._discard()
            raise

    def _find_format(self) -> Format:
        suffix = self.path.suffix
        found = find_format(suffix, alpha=self.alpha)
        if found is not None:
            return found
        known = " ".join(known_suffixes(alpha=self.alpha))
        if self.alpha and find_format(suffix, alpha=False) is not None:
            raise self._error(
                f"{suffix} holds no alpha; use one of {known} (one image, or numbered images like "
                "frames/%05d.png), or write without alpha"
            )
        raise self._error(f"its suffix is {suffix!r}; use one of {known}")

    def _open(self, fps: Fraction, crf: int) -> None:
        format, many = self._format, self._target.holds_many
        options = dict(format.container_options)
        if format.is_image and not many:
            options["update"] = "1"  # writes this one name instead of numbering the files
        container = self._container = av.open(
            os.path.abspath(self._target.partial),
            "w",
            format=format.container,
            options=options,
        )
        quality = {"crf": str(crf)} if format.has_quality else {}
        stream = container.add_stream(
            format.encoder, rate=fps, options={**quality, **format.options}
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = self._size
        stream.pix_fmt = format.pixel_format(*self._size, alpha=self.alpha)
        context = stream.codec_context
        context.time_base = self._time_base
        self._is_yuv = stream.pix_fmt.startswith("yuv") and not format.is_image
        if self._is_yuv:
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = ColorPrimaries.BT709
            context.color_trc = ColorTrc.BT709
        self._stream = stream

    def write(self, frames: torch.Tensor, times: Sequence[float] | None = None) -> None:
        """Appends frames (3, T, H, W), RGB in [-1, 1], clamped and rounded to 8 bit.

        With `alpha` they are (4, T, H, W), RGBA; alpha goes from -1, transparent, to 1, opaque.

        `times` are T increasing seconds; without them a frame follows the last after 1 / fps.
        Raises VideoError for another shape, times that do not increase, or a failure to write.
        """
        width, height = self._size
        channels = 4 if self.alpha else 3
        if self._container is None:
            raise self._error("it is already closed; open a new writer")
        if frames.ndim != 4 or (frames.shape[0], *frames.shape[2:]) != (channels, height, width):
            shape, wanted = tuple(frames.shape), f"({channels}, T, {height}, {width})"
            raise self._error(f"frames are {shape}; they must be {wanted}")
        if times is not None and len(times) != frames.shape[1]:
            raise self._error(f"{len(times)} times for {frames.shape[1]} frames; give one each")
        one = self._format.is_image and not self._target.holds_many
        if one and frames.shape[1] + (self._last_pts is not None) > 1:
            raise self._error(
                "an image holds one frame; give a video suffix or numbered images, like "
                "frames/%05d.png, for more"
            )
        levels = ((frames.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        for index, pixels in enumerate(levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()):
            self._encode(self._container, pixels, None if times is None else times[index])

    def _encode(self, container: OutputContainer, pixels: np.ndarray, time: float | None) -> None:
        last = self._last_pts
        if time is None:
            pts = 0 if last is None else last + self._step
        else:
            if self._last_time is not None and time <= self._last_time:
                raise self._error(f"time {time} s follows {self._last_time} s; times must increase")
            pts = round(Fraction(time) / self._time_base)
            # Times closer than a tick of the container still need a tick each.
            pts = max(0, pts) if last is None else max(last + self._least_step, pts)
            self._last_time = time
        with one_line_errors("write", self.path):
            frame = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(pixels, format="rgba" if self.alpha else "rgb24"),
                format=self._stream.pix_fmt,
                dst_colorspace=Colorspace.ITU709 if self._is_yuv else Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG if self._is_yuv else ColorRange.JPEG,
                interpolation=INTERPOLATION,
            )
            if self._is_yuv:  # some encoders take the tags of frames
                frame.color_primaries = ColorPrimaries.BT709
                frame.color_trc = ColorTrc.BT709
            frame.pts, frame.time_base = pts, self._time_base
            self._ending.show(pts)
            container.mux(list(self._ending.pass_on(self._stream.encode(frame))))
        self._last_pts = pts

    def end_at(self, time: float) -> None:
        """Says when the last frame ends, in seconds; otherwise it lasts 1 / fps. Images do not end.

        Raises VideoError if it begins later.
        """
        if self._last_time is not None and time <= self._last_time:
            raise self._error(f"its last frame is at {self._last_time} s, and cannot end at {time}")
        self._end = time

    def close(self) -> None:
        """Completes the file and gives it its name; VideoError if it cannot or has no frame."""
        if self._container is None:
            return
        try:
            if self._last_pts is None:
                raise self._error("it was given no frames; write at least one")
            with one_line_errors("write", self.path):
                end = self._last_pts + self._step
                if self._end is not None:
                    end = round(Fraction(self._end) / self._time_base)
                self._container.mux(list(self._ending.finish(self._stream.encode(None), end)))
                self._container.close()
                self._target.complete()
            self._container = None
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        """Deletes the unfinished file."""
        container, self._container = self._container, None
        with suppress(FFmpegError, OSError):
            if container is not None:
                container.close()
        self._target.discard()

    def _error(self, reason: str) -> VideoError:
        return VideoError(f"cannot write {self.path}: {reason}")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def write_video(
    path: str | os.PathLike[str], frames: torch.Tensor, fps: Fraction, crf: int = 18
) -> None:
    """Writes frames (3, T, H, W) in [-1, 1] at `fps` per second; raises as VideoWriter does.

    Frames (4, T, H, W) are RGBA.
    """
    height, width = frames.shape[-2:]
    alpha = frames.shape[0] == 4
    with VideoWriter(path, width=width, height=height, fps=fps, crf=crf, alpha=alpha) as writer:
        writer.write(frames)
