"""RGB frames in [-1, 1] to video and image files, which appear when they are complete."""

import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
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

from wanvae.engine.files import temporary_sibling
from wanvae.video.common import INTERPOLATION, RATES, VideoError, one_line_errors

_VIDEO_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
# Encoder, pixel format and options: lossless, or for JPEG the finest quantizer.
_IMAGE_ENCODERS = {
    ".png": ("png", "rgb24", {}),
    ".jpg": ("mjpeg", "yuvj444p", {"qmin": "1", "qmax": "1"}),
    ".jpeg": ("mjpeg", "yuvj444p", {"qmin": "1", "qmax": "1"}),
    ".webp": ("libwebp", "bgra", {"lossless": "1"}),
}
_FINE_TICKS = 90_000  # per second, the least precision of written times


class VideoWriter:
    """Writes frames to a file that gets its final name when the writer is closed.

    .mp4, .mov and .mkv hold H.264 (BT.709, limited range; 4:2:0, or 4:4:4 where a side is odd,
    which 4:2:0 cannot hold); .png, .jpg, .jpeg and .webp hold exactly one frame. `width` and
    `height` are in pixels, `fps` in frames per second, `crf` is x264's quality from 0 (best) to 51.

    As a context manager it completes the file at the end of the block. After an exception it
    deletes the unfinished file and keeps an earlier one. Raises VideoError if the suffix is not
    known, the folder is missing or not writable, the disk is full or no frame was written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        fps: Fraction,
        crf: int = 18,
    ) -> None:
        self.path = Path(path)
        self._size = width, height
        self._is_image = self.path.suffix.lower() in _IMAGE_ENCODERS
        with one_line_errors("write", self.path):
            self._check_target()
        if width < 1 or height < 1 or not RATES[0] <= fps <= RATES[1] or not 0 <= crf <= 51:
            given = f"size {width}x{height}, fps {fps}, crf {crf}"
            limits = f"fps {RATES[0]} to {RATES[1]} and crf 0 to 51"
            raise self._error(f"{given}; sizes must be positive, {limits}")
        fps = Fraction(fps).limit_denominator(_FINE_TICKS)
        # A whole number of ticks per frame keeps the rate exact; many ticks keep given times so.
        ticks = fps.numerator * max(1, _FINE_TICKS // fps.numerator)
        self._time_base = Fraction(1, ticks)
        self._step = int(ticks / fps)
        self._last_pts: int | None = None
        self._last_time: float | None = None
        self._reformatter = VideoReformatter()
        self._partial = temporary_sibling(self.path)
        self._container: OutputContainer | None = None
        try:
            with one_line_errors("write", self.path):
                self._partial.touch()  # FFmpeg would only find out at the first frame
                self._open(fps, crf)
        except BaseException:
            self._discard()
            raise

    def _check_target(self) -> None:
        if not self._is_image and self.path.suffix.lower() not in _VIDEO_FORMATS:
            known = " ".join([*_VIDEO_FORMATS, *_IMAGE_ENCODERS])
            raise self._error(f"its suffix is {self.path.suffix!r}; use one of {known}")
        if self.path.is_dir():
            raise self._error("it is a directory; give a file name")
        if not self.path.parent.is_dir():
            raise self._error(f"the folder {self.path.parent} does not exist; create it first")

    def _open(self, fps: Fraction, crf: int) -> None:
        suffix = self.path.suffix.lower()
        if self._is_image:
            codec, pixel_format, options = _IMAGE_ENCODERS[suffix]
            # "update" writes this one name instead of numbering the files.
            kind, container_options = "image2", {"update": "1"}
        else:
            even = all(side % 2 == 0 for side in self._size)
            codec, pixel_format = "libx264", "yuv420p" if even else "yuv444p"
            # swscale centres chroma samples; H.264 is taken as left-sited unless it says so.
            options = {"crf": str(crf), "chroma_sample_location": "center"}
            kind, container_options = _VIDEO_FORMATS[suffix], {}
        container = self._container = av.open(
            os.path.abspath(self._partial), "w", format=kind, options=container_options
        )
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height = self._size
        stream.pix_fmt = pixel_format
        context = stream.codec_context
        context.time_base = self._time_base
        if not self._is_image:
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = ColorPrimaries.BT709
            context.color_trc = ColorTrc.BT709
        self._stream = stream

    def write(self, frames: torch.Tensor, times: Sequence[float] | None = None) -> None:
        """Appends frames (3, T, H, W), RGB in [-1, 1], clamped and rounded to 8 bit.

        `times` are T increasing seconds; without them a frame follows the last after 1 / fps.
        Raises VideoError for another shape, times that do not increase, or a failure to write.
        """
        width, height = self._size
        if self._container is None:
            raise self._error("it is already closed; open a new writer")
        if frames.ndim != 4 or (frames.shape[0], *frames.shape[2:]) != (3, height, width):
            shape = tuple(frames.shape)
            raise self._error(f"frames are {shape}; they must be (3, T, {height}, {width})")
        if times is not None and len(times) != frames.shape[1]:
            raise self._error(f"{len(times)} times for {frames.shape[1]} frames; give one each")
        if self._is_image and frames.shape[1] + (self._last_pts is not None) > 1:
            raise self._error("an image holds one frame; give a video suffix for more")
        levels = ((frames.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        for index, pixels in enumerate(levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()):
            self._encode(self._container, pixels, None if times is None else times[index])

    def _encode(self, container: OutputContainer, pixels: np.ndarray, time: float | None) -> None:
        earliest = 0 if self._last_pts is None else self._last_pts + 1
        if time is None:
            pts = earliest - 1 + self._step if earliest else 0
        else:
            if self._last_time is not None and time <= self._last_time:
                raise self._error(f"time {time} s follows {self._last_time} s; times must increase")
            # Times closer than a tick still need a tick each.
            pts = max(earliest, round(Fraction(time) / self._time_base))
            self._last_time = time
        with one_line_errors("write", self.path):
            frame = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(pixels, format="rgb24"),
                format=self._stream.pix_fmt,
                dst_colorspace=Colorspace.ITU601 if self._is_image else Colorspace.ITU709,
                dst_color_range=ColorRange.JPEG if self._is_image else ColorRange.MPEG,
                interpolation=INTERPOLATION,
            )
            frame.pts, frame.time_base = pts, self._time_base
            container.mux(self._stream.encode(frame))
        self._last_pts = pts

    def close(self) -> None:
        """Completes the file and gives it its name; VideoError if it cannot or has no frame."""
        if self._container is None:
            return
        try:
            if self._last_pts is None:
                raise self._error("it was given no frames; write at least one")
            with one_line_errors("write", self.path):
                self._container.mux(self._stream.encode(None))
                self._container.close()
                os.replace(self._partial, self.path)
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
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

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
    """Writes frames (3, T, H, W) in [-1, 1] at `fps` per second; raises as VideoWriter does."""
    height, width = frames.shape[-2:]
    with VideoWriter(path, width=width, height=height, fps=fps, crf=crf) as writer:
        writer.write(frames)
