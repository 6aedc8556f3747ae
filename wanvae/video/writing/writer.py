"""RGB and RGBA frames in [-1, 1] to video and image files, which appear when they are complete."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction

import av
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

from wanvae.video.beside.carrier import Carrier
from wanvae.video.beside.source import Beside
from wanvae.video.common import (
    INTERPOLATION,
    RATES,
    Notices,
    VideoError,
    one_line_errors,
    unwritable,
)
from wanvae.video.writing.deep import deep_picture
from wanvae.video.writing.ending import Ending, LastPictures
from wanvae.video.writing.formats import Encoding, check_size
from wanvae.video.writing.output import Destination, find_format, find_target, path_of
from wanvae.video.writing.palette import Palettes
from wanvae.video.writing.planar import planar_picture
from wanvae.video.writing.schedule import Schedule

_RGB = 0  # FFmpeg's number of the matrix of RGB
_HIGH_DEFINITION = 720  # lines from which on players take untagged video as BT.709


class VideoWriter:
    """Writes frames to a file that gets its final name when the writer is closed.

    The suffix says what the file is. ``wanvae.video.writing.formats`` has the table of suffixes,
    codecs, bits and alpha, and so has the guide. .png, .tiff, .jpg and .jpeg hold exactly one
    frame, and numbered images like "frames/%05d.png" one frame each; their folder is created if it
    is missing. "frames/" means "frames/%05d.png". .npy is an array (T, H, W, C) of uint8, or of
    uint16 with 16 bits.

    `path` may also be a binary file that is open for writing, such as `sys.stdout.buffer`. Then
    `container` says what is written, "y4m" or "mkv", and the file stays open.

    `beside` says which file's sound, subtitles, chapters and tags the file gets, in order of time
    with the frames, where its format holds them. Packets are copied; where the format cannot hold a
    codec, sound is encoded again (AAC or Opus) and text rewritten, with a UserWarning. What cannot
    be kept is told in a UserWarning. Damage beside the pictures does not end the video.

    `width` and `height` are in pixels, `fps` in frames per second. `crf` is the quality of H.264,
    H.265, AV1 and VP9 from 0 (best) to 51. `codec` and `bits` choose among what the suffix holds.
    Frames are rounded once, to `bits`. YUV is BT.709 of limited range; 4:4:4 in ProRes and Y4M and
    where 4:2:0 cannot hold a side that is odd, else 4:2:0. Y4M does not say its matrix: it is the
    one that players take, BT.601 below 720 lines.

    With `alpha` frames are RGBA, and colours are not premultiplied. WebP does not keep the colours
    of pixels that are fully transparent.

    GIF counts hundredths of a second, and frames follow each other by two at least. Where a format
    has no times, irregular times are lost, with a UserWarning.

    As a context manager it completes the file at the end of the block. After an exception it
    deletes the unfinished file and keeps an earlier one. Raises VideoError if nothing does what is
    asked for, the folder is missing or not writable, numbered images are there already, the disk is
    full or no frame was written.
    """

    def __init__(
        self,
        path: Destination,
        *,
        width: int,
        height: int,
        fps: Fraction,
        crf: int = 18,
        alpha: bool = False,
        codec: str | None = None,
        bits: int | None = None,
        container: str | None = None,
        beside: Beside | None = None,
    ) -> None:
        encoding = Encoding(codec=codec, bits=bits, crf=crf, container=container)
        self.path = path_of(path)
        self.alpha = alpha
        self._size = width, height
        self._format = find_format(path, encoding, alpha=alpha)
        self._target = find_target(path, self._format, (height, width, 3 + alpha))
        if width < 1 or height < 1 or not RATES[0] <= fps <= RATES[1] or not 0 <= crf <= 51:
            given = f"size {width}x{height}, fps {fps}, crf {crf}"
            limits = f"fps {RATES[0]} to {RATES[1]} and crf 0 to 51"
            raise self._error(f"{given}; sizes must be positive, {limits}")
        check_size(self.path, self._format, width, height)
        try:
            self._schedule = Schedule(fps, self._format.container, Notices(self.path))
        except ValueError as error:
            raise self._error(f"{error}; write .mp4 or .mov") from None
        self._end: float | None = None
        self._ending = Ending(self._schedule.least_step)
        self._last_pictures = LastPictures(reorders=self._format.codec.reorders)
        self._reformatter = VideoReformatter()
        self._palettes: Palettes | None = None
        if self._format.codec.palette:
            self._palettes = Palettes(width, height, self._schedule.tick)
        self._container: OutputContainer | None = None
        self._carrier: Carrier | None = None
        try:
            with one_line_errors("write", self.path):
                output = self._open(crf)
                if beside is not None:
                    self._carrier = Carrier(beside, output, self._format.suffix)
        except BaseException:
            self._discard()
            raise

    def _open(self, crf: int) -> OutputContainer:
        container_format, codec = self._format.container, self._format.codec
        options = dict(container_format.options)
        if container_format.is_image and not self._target.holds_many:
            options["update"] = "1"  # writes this one name instead of numbering the files
        container = self._container = av.open(
            self._target.begin(), "w", format=container_format.name, options=options
        )
        quality = {"crf": str(crf)} if codec.has_quality else {}
        stream = container.add_stream(
            codec.encoder, rate=self._schedule.fps, options={**quality, **codec.options}
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = self._size
        stream.pix_fmt = self._format.pixel_format(*self._size, alpha=self.alpha)
        context = stream.codec_context
        context.time_base = self._schedule.tick
        if codec.name in container_format.tags:
            context.codec_tag = container_format.tags[codec.name]
        self._is_yuv = stream.pix_fmt.startswith("yuv") and not container_format.is_image
        self._matrix = Colorspace.ITU709
        if container_format.tags_colour:
            context.colorspace = Colorspace.ITU709 if self._is_yuv else _RGB
            context.color_range = ColorRange.MPEG if self._is_yuv else ColorRange.JPEG
            context.color_primaries = ColorPrimaries.BT709
            context.color_trc = ColorTrc.BT709
        elif self._size[1] < _HIGH_DEFINITION:
            self._matrix = Colorspace.ITU601
        with _silent_svt():
            context.open()  # tells of sizes that the encoder does not take
        self._stream = stream
        return container

    def write(self, frames: torch.Tensor, times: Sequence[float] | None = None) -> None:
        """Appends frames (3, T, H, W), RGB in [-1, 1], clamped and rounded.

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
        self.require_room(frames.shape[1] + self._schedule.frames)
        for index, image in enumerate(frames.detach().float().cpu().unbind(1)):
            self._encode(self._container, image, None if times is None else times[index])

    def require_room(self, frames: int) -> None:
        """Raises VideoError if the file holds one frame and this many are to come."""
        if self._format.container.is_image and not self._target.holds_many and frames > 1:
            raise self._error(
                "an image holds one frame; give a video suffix or numbered images, like "
                "frames/%05d.png, for more"
            )

    def _encode(self, container: OutputContainer, image: torch.Tensor, time: float | None) -> None:
        try:
            ticks = self._schedule.place(time)
        except ValueError as error:
            raise self._error(f"{error}; times must increase") from None
        context = self._stream.codec_context
        with one_line_errors("write", self.path):
            picture = self._picture(image)
            picture.pts, picture.time_base = ticks, self._schedule.tick
            if self._carrier is not None:
                self._carrier.until(ticks * self._schedule.tick)
            self._ending.show(ticks)
            if self._format.container.tags_colour:
                # Some encoders write the tags of pictures.
                picture.colorspace, picture.color_range = context.colorspace, context.color_range
                picture.color_primaries, picture.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            self._mux(
                container, [picture] if self._palettes is None else self._palettes.push(picture)
            )

    def _mux(self, container: OutputContainer, pictures: Iterable[av.VideoFrame]) -> None:
        for given in pictures:
            for picture in self._last_pictures.push(given):
                self._encode_picture(container, picture)

    def _encode_picture(self, container: OutputContainer, picture: av.VideoFrame) -> None:
        container.mux(list(self._ending.pass_on(self._stream.encode(picture))))

    def _picture(self, image: torch.Tensor) -> av.VideoFrame:
        """Returns an image ``(C, H, W)`` in the pixel format of the stream."""
        pixel_format = self._stream.pix_fmt
        assert pixel_format is not None
        if self._format.pixels.bits > 8:
            return deep_picture(image, pixel_format, self._matrix)
        return self._reformatter.reformat(
            planar_picture(image),
            format="rgb24" if self._palettes is not None else pixel_format,
            dst_colorspace=self._matrix if self._is_yuv else Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG if self._is_yuv else ColorRange.JPEG,
            interpolation=INTERPOLATION,
        )

    def end_at(self, time: float) -> None:
        """Says when the last frame ends, in seconds; otherwise it lasts 1 / fps. Images do not end.

        Raises VideoError if it begins later.
        """
        last = self._schedule.last_given
        if last is not None and time <= last:
            raise self._error(f"its last frame is at {last} s, and cannot end at {time}")
        self._end = time

    def close(self) -> None:
        """Completes the file and gives it its name; VideoError if it cannot or has no frame."""
        if self._container is None:
            return
        try:
            if not self._schedule.frames:
                raise self._error("it was given no frames; write at least one")
            with one_line_errors("write", self.path):
                if self._palettes is not None:
                    self._mux(self._container, self._palettes.push(None))
                for picture in self._last_pictures.finish():
                    self._encode_picture(self._container, picture)
                packets = self._stream.encode(None)
                if self._schedule.frames <= self._format.codec.delay:
                    for packet in packets:
                        packet.dts = packet.pts  # so few frames are in order
                end = self._schedule.end(self._end)
                self._container.mux(list(self._ending.finish(packets, end)))
                if self._carrier is not None:
                    self._carrier.finish()
                    self._carrier.close()
                self._container.close()
                self._target.complete()
            self._container = None
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        """Deletes the unfinished file."""
        container, self._container = self._container, None
        if self._carrier is not None:
            self._carrier.close()
        with suppress(FFmpegError, OSError):
            if container is not None:
                container.close()
        self._target.discard()

    def _error(self, reason: str) -> VideoError:
        return unwritable(self.path, reason)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def write_video(
    path: Destination,
    frames: torch.Tensor,
    fps: Fraction,
    crf: int = 18,
    *,
    codec: str | None = None,
    bits: int | None = None,
    container: str | None = None,
) -> None:
    """Writes frames (3, T, H, W) in [-1, 1] at `fps` per second; raises as VideoWriter does.

    Frames (4, T, H, W) are RGBA. `codec`, `bits` and `container` are as in VideoWriter.
    """
    height, width = frames.shape[-2:]
    with VideoWriter(
        path,
        width=width,
        height=height,
        fps=fps,
        crf=crf,
        alpha=frames.shape[0] == 4,
        codec=codec,
        bits=bits,
        container=container,
    ) as writer:
        writer.write(frames)


@contextmanager
def _silent_svt() -> Iterator[None]:
    """Lets SVT-AV1 print errors alone. It asks the environment when its first encoder opens."""
    name = "SVT_LOG"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
