"""Video and image files to RGB frames in [-1, 1] with their times.

Colours are converted as the tags of the file say, times are the times in the file, and only a few
frames are in memory at a time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, dropwhile, islice

import av
import torch
from av.video.reformatter import VideoReformatter

from wanvae.video.clock import increasing, on_grid
from wanvae.video.colour.colours import assume_matrix, colours_of, peak_of, unknown_matrix
from wanvae.video.common import Notices, Source, VideoError, is_pipe, one_line_errors
from wanvae.video.reading.aspect import ratio_text, square_size
from wanvae.video.reading.background import BLACK, lay_on
from wanvae.video.reading.decoder import Decoder
from wanvae.video.reading.interlacing import deinterlaced
from wanvae.video.reading.losses import Losses, has_alpha
from wanvae.video.reading.options import AS_STORED, ReadOptions
from wanvae.video.reading.orientation import Orientation, orientation_of
from wanvae.video.reading.packets import PacketSource, count_frames
from wanvae.video.reading.peekable import Peekable
from wanvae.video.reading.pixels import pixels_of

_ALLOWED_SHORTFALL = 0.5  # seconds; most containers round or pad their durations
_NEAR = 1  # second; decoding so many frames is cheaper than going back to a keyframe
_GAP_ADVICE = "rename the others, or name all of them with * in place of the number"
# How far an average rate may be from the rate of the header before the header is not believed.
_RATE_TOLERANCE = Fraction(1, 50)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file says about its video before all of it is decoded.

    Attributes:
        width, height: pixels as displayed: after rotation metadata, and in square pixels.
        fps: frames per second on average; 25 if the file does not say, 1 for a still image.
        frames: the count in the container, or an estimate from its duration; None if the file has
            neither. Good for a progress bar, not for the size of an array.
        is_image: whether the file is a still image.
        hdr: what the colours are before they are converted to SDR: "PQ", "HLG", "BT.2020" or
            "P3"; None for SDR.
        has_alpha: whether pictures have alpha, also if it is not read.
        beside: what the file holds beside its video: "sound", "subtitles", "cover picture".
    """

    width: int
    height: int
    fps: Fraction
    frames: int | None
    is_image: bool
    hdr: str | None = None
    has_alpha: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frame:
    """One picture: `image` (3, H, W) float32 RGB in [-1, 1], `time` in seconds from the first.

    With alpha the image is (4, H, W), RGBA, from -1, transparent, to 1, opaque. `end` is when the
    next frame begins, or the last one ends, in seconds like `time`; None if that is not asked for.
    """

    image: torch.Tensor
    time: float
    end: float | None = None


class VideoReader:
    """Iterates once over the frames of a video or image file, decoding as it goes.

    It reads any container and pixel format that FFmpeg reads, from a file or a part of a file.
    Several images are a video of `fps` frames per second. Without `fps` it is 25, with a
    UserWarning. They are named by a pattern like "frames/%05d.png", by a glob like "frames/*.png"
    or by their folder. Those of a pattern begin at their lowest number, and end where a number is
    missing, with a UserWarning; if `strict`, a VideoError. Those of a glob or folder are sorted by
    the numbers in their names, with a UserWarning that says what is taken. A single image is a
    still image. "-" is the standard input, which FFmpeg reads once, without going back.

    Frames are upright: they are turned and mirrored as the metadata of the file (video or EXIF)
    says. Pixels become square: the larger side of a picture stays, and the other is scaled, with a
    UserWarning. With `alpha` pictures are RGBA, and opaque where the file has no alpha; colours are
    taken as they are, not multiplied with alpha. Without `alpha`, pictures are laid on the
    background that `options` say, with a UserWarning where something is transparent. HDR and wide
    colours are converted to SDR (a HdrWarning), interlaced frames stay as they are unless `options`
    say otherwise, and one of several videos is read: each with a UserWarning.

    Times are the timestamps of the file, or frame number / fps without timestamps, and always
    increase. Timestamps that are rounded values of a constant rate become exact. Where the clock of
    the file restarts or jumps, times go on at the rate of the stream, with a UserWarning. A
    timestamp that is not between its neighbours becomes their middle.

    A damaged or incomplete file ends at its last good frame with a UserWarning; if `strict`, with a
    VideoError. Damage is an error of the decoder, a frame that it marks as corrupt, or frames that
    it passes over. Not all damage is seen; the guide says how much for each codec. Frames before
    the first keyframe, as in a recording that begins in the middle, are left out with a
    UserWarning. A stream that changes its size is scaled to the first size, with a UserWarning.

    Raises VideoError if the file cannot be opened or not one frame of it can be decoded, or if
    `fps` is given for another file than several images.
    """

    info: VideoInfo

    def __init__(
        self,
        path: Source,
        *,
        strict: bool = False,
        fps: Fraction | None = None,
        alpha: bool = False,
        options: ReadOptions = AS_STORED,
    ) -> None:
        self.path = path
        self._strict = strict
        self._alpha = alpha
        self._options = options
        self._background = BLACK if options.background is None else options.background
        self._reached: Fraction | None = None  # time of the last frame that was given
        self._interlaced = False  # whether any frame was so far
        # Not a method of the reader: in a circle, decoders would live on into forked processes.
        self._notices = Notices(path)
        self._source = PacketSource(path, self._notices, fps, options.hwaccel)
        self._losses = Losses(self._source, self._notices, None if alpha else self._background)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Decodes the first frame, the only sure source of the size."""
        if self._source.gap is not None:
            if self._strict:
                raise VideoError(f"cannot read {self.path}: {self._source.gap}; {_GAP_ADVICE}")
            self._notices.tell(f"{self._source.gap}; {_GAP_ADVICE}")
        if self._source.choice is not None:
            self._notices.tell(self._source.choice)
        self._reformatter = VideoReformatter()
        self._end = Fraction(0)
        self._origin: int | None = None  # timestamp of the first frame
        packets = self._source.from_start()
        with one_line_errors("read", self.path, self._source.advice):
            first_packet = list(islice(packets, 1))
        decoder = Decoder(self._source, chain(first_packet, packets))
        frames = self._source.shown_frames(iter(decoder))
        first = next(frames, None)
        if first is None:
            reason = decoder.damage or "it is empty; encode it again"
            raise VideoError(f"cannot read {self.path}: no frame could be decoded ({reason})")
        self._origin = decoder.timestamp(first)
        if not self._source.has_display_times and self._origin is not None:
            self._source.key_lead = self._origin - (first_packet[0].dts or 0)
        self._coded_size = first.width, first.height
        self._peak = peak_of(first)
        self._orientation = orientation_of(self._source.with_rotation(first, first_packet[0]))
        self._pixel_shape = ratio_text(self._source.decoder.sample_aspect_ratio)
        self._square_size = square_size(*self._coded_size, self._source.pixel_ratio)
        self.info = self._describe(first)
        self._frames: Iterator[tuple[Fraction, av.VideoFrame]]
        self._frames = self._whole(self._timed(decoder, chain([first], frames)))

    def _describe(self, first: av.VideoFrame) -> VideoInfo:
        if self._source.is_image:
            fps, frames = Fraction(1), 1
        else:
            fps = self._source.rate(self._origin is not None)
            duration = self._source.duration(self._origin)
            estimate = None if duration is None else max(1, round(duration * fps))
            frames = self._source.frames or estimate
        turned = self._orientation.transposed
        width, height = self._square_size[::-1] if turned else self._square_size
        return VideoInfo(
            width=width,
            height=height,
            fps=fps,
            frames=frames,
            is_image=self._source.is_image,
            hdr=colours_of(first).name,
            has_alpha=self._source.drops_alpha or has_alpha(first),
            beside=self._source.beside,
        )

    def _timed(
        self, decoder: Decoder, frames: Iterable[av.VideoFrame]
    ) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Frames with their times in seconds. Tells of missing frames, before or after them."""
        source, tick = self._source, self._source.tick
        furthest = Fraction(0)  # end of the frames by their times in the file, which may be far off

        def read_times() -> Iterator[tuple[Fraction | None, av.VideoFrame]]:
            nonlocal furthest
            for frame in frames:
                time = self._time(decoder.timestamp(frame))
                furthest = max(furthest, (time or 0) + (frame.duration or 0) * tick)
                yield time, frame

        last = None
        for time, frame in increasing(read_times(), 1 / self.info.fps):
            if last is None and decoder.lost is not None:
                self._tell_damage(f"{decoder.lost}; frames before {float(time):.2f} s")
            exact = on_grid(time, source.grid, tick)
            last = self._reached = exact if last is None or exact > last else time
            length = (frame.duration or 0) * tick or 1 / self.info.fps
            self._end = last + length
            self._interlaced |= frame.interlaced_frame
            self._check_size(frame, last)
            yield last, frame
        if last is None:
            return
        damage, duration = decoder.damage, source.duration(self._origin)
        if damage is None and duration is not None and not self.info.is_image:
            missing = duration - max(self._end, furthest)
            if missing > self._allowed_shortfall():
                damage = f"it ends {float(missing):.1f} s early"
            elif duration > last + 2 * tick:
                # Packets in the order of decoding may say it wrong, and Matroska has it only here.
                self._end = duration
        if damage is not None:
            self._tell_damage(f"{damage}; frames after {float(last):.2f} s")

    def _whole(
        self, timed: Iterator[tuple[Fraction, av.VideoFrame]]
    ) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Frames with all lines of one time, if that is wanted."""
        return deinterlaced(timed) if self._options.deinterlace else timed

    def _time(self, timestamp: int | None) -> Fraction | None:
        """Seconds from the first frame, as the file says."""
        if timestamp is None or self._origin is None:
            return None
        return (timestamp - self._origin) * self._source.tick

    def _allowed_shortfall(self) -> Fraction:
        """Seconds that may be missing at the end of a whole file."""
        if self._source.counts_frames:
            return 2 / self.info.fps
        return max(Fraction(_ALLOWED_SHORTFALL), 1 / self.info.fps)

    def _check_size(self, frame: av.VideoFrame, time: Fraction) -> None:
        first = self._orientation.stored_size(*self._coded_size[::-1])
        now = self._orientation_of(frame).stored_size(frame.height, frame.width)
        if now != first:
            self._notices.tell(
                f"its size changes from {first[1]}x{first[0]} to {now[1]}x{now[0]} at "
                f"{float(time):.2f} s; these frames are scaled to "
                f"{self.info.width}x{self.info.height}",
                once="size",
            )

        # The decoder may be ahead of this frame.
        shape = ratio_text(self._source.decoder.sample_aspect_ratio)
        if shape != self._pixel_shape and not self._source.is_of_images:
            self._notices.tell(
                f"the shape of its pixels changes from {self._pixel_shape} to {shape}; all frames "
                "are scaled as the first",
                once="shape",
            )

    def _tell_damage(self, what: str) -> None:
        """Raises VideoError if the reader is strict, and warns otherwise."""
        damage = f"damaged or cut short: {what} are missing"
        if self._strict:
            raise VideoError(f"cannot read {self.path}: it is {damage}")
        self._notices.tell(f"it is {damage}")

    @property
    def origin(self) -> Fraction:
        """The time of the first frame in the file, in seconds, as sound in the file counts it."""
        return ((self._origin or 0) - self._source.key_lead) * self._source.tick

    @property
    def is_of_images(self) -> bool:
        """Whether the file is an image, or several numbered images."""
        return self._source.is_of_images

    def seek(self, start: float | Fraction) -> None:
        """Continues with the first frame at or after `start` seconds from the first frame.

        It is the frame that reading through gives. Decoding goes on if `start` is near, or resumes
        at a keyframe before it. Containers whose times are not sure after a jump, such as MPEG
        streams, are read from their beginning, but decoded only from the keyframe on. A file
        without timestamps is decoded from its beginning.
        """
        wanted = Fraction(start)
        # Timestamps are rounded to ticks, which may be as coarse as the frames themselves.
        earliest = wanted - min(self._source.tick, 1 / (2 * self.info.fps))
        if self._reached is None or not self._reached < earliest <= self._reached + _NEAR:
            self._seek_before(wanted)
        self._frames = dropwhile(lambda timed: timed[0] < earliest, self._frames)

    def _seek_before(self, start: Fraction) -> None:
        """Continues with a frame at or before `start` seconds from the first frame."""
        if self._source.is_pipe:
            if self._reached is not None and start <= self._reached:
                raise VideoError(f"cannot read {self.path}: a pipe does not go back")
            return
        if self._options.deinterlace:
            start -= self._source.tick  # the frame before helps to fill in lines
        if self._origin is not None and start > 0:
            for packets in self._source.before(self._origin + int(start / self._source.tick)):
                frames = self._timed_from(packets)
                first = list(islice(frames, 1))
                if first and first[0][0] <= start:
                    self._frames = chain(first, frames)
                    return
        self._frames = self._timed_from(self._source.from_start())

    def _timed_from(self, packets: Iterator[av.Packet]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        decoder = Decoder(self._source, packets)
        return self._whole(self._timed(decoder, self._source.shown_frames(iter(decoder))))

    @property
    def end(self) -> Fraction:
        """Seconds from the first frame to the end of the last frame that was given.

        It is what the file says of that frame, or 1 / fps. It is exact when no more frames follow;
        any other frame lasts until the next.
        """
        return self._end

    def next_time(self) -> Fraction:
        """Seconds from the first frame to the next one, or to the end of the last one.

        Decodes the next frame, but does not convert it.
        """
        if not isinstance(self._frames, Peekable):
            self._frames = Peekable(self._frames)
        following = self._frames.peek()
        return self.end if following is None else following[0]

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
        rounding = min(self._source.tick / 2, 1 / (8 * self.info.fps))
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

    def decoded(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """The next frames as the decoder gives them, with their times: not converted, not turned.

        ``orientation`` turns pictures of them. Their size may change.
        """
        return self._frames

    @property
    def orientation(self) -> Orientation:
        """What makes pictures of decoded frames upright."""
        return self._orientation

    def __iter__(self) -> "VideoReader":
        return self

    def __next__(self) -> Frame:
        time, frame = next(self._frames)
        return Frame(self._image(frame), float(time))

    def _image(self, frame: av.VideoFrame) -> torch.Tensor:
        """(3, H, W) RGB in [-1, 1], or (4, H, W) RGBA, upright and of the size in `info`."""
        assume_matrix(frame, is_of_images=self._source.is_of_images)
        if (matrix := unknown_matrix(frame)) is not None:
            raise VideoError(
                f"cannot read {self.path}: its colours are stored with the matrix {matrix}; "
                "convert it to BT.709 first"
            )
        colours = colours_of(frame, self._peak)
        self._losses.tell(frame, colours)
        orientation = self._orientation_of(frame)
        # A stream that changes size is scaled back to its first.
        height, width = orientation.stored_size(self.info.height, self.info.width)
        with one_line_errors("read", self.path):
            image, alpha = pixels_of(frame, self._reformatter, width, height, colours)
        if self._alpha:
            opaque = image.new_ones(1, *image.shape[1:])
            image = torch.cat([image, opaque if alpha is None else alpha])
        elif alpha is not None and alpha.min() < 1:
            self._losses.tell_transparency()
            image = lay_on(image, alpha, self._background)
        return orientation.apply(image).contiguous()

    def _orientation_of(self, frame: av.VideoFrame) -> Orientation:
        """The orientation of a frame. Images, such as photos, each have one."""
        return orientation_of(frame) if self._source.is_sequence else self._orientation

    def close(self) -> None:
        """Closes the file; no more frames follow."""
        self._frames = iter(())
        self._source.close()
        if self._options.deinterlace and self._reached is not None and not self._interlaced:
            self._notices.tell(
                "none of the frames that were read is marked as interlaced, so all are as they were"
            )

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self.close()


def probe(path: Source, *, fps: Fraction | None = None) -> VideoInfo:
    """What a file says about its video, with an exact number of frames.

    Reads the whole file, without decoding it, unless its header counts its frames, as in MP4 and
    AVI. For a file that is cut short, the number is the one that its header promises, so that
    reading it tells of the damage. `fps` is for several images, as in VideoReader. Raises
    VideoError as VideoReader does, and for a pipe, which would then be used up.
    """
    if is_pipe(path):
        raise VideoError(
            f"cannot probe {path}: a pipe can be read only once; open a VideoReader, and take its "
            "info"
        )
    with VideoReader(path, fps=fps) as reader:
        info = reader.info
        if info.is_image or reader._source.counts_frames:
            return info
        promised, allowed = reader._source.duration(reader._origin), reader._allowed_shortfall()
    count, seconds = count_frames(path)
    cut_short = promised is not None and promised - seconds - 1 / info.fps > allowed
    return info if cut_short or not count else _counted(info, count, seconds)


def _counted(info: VideoInfo, frames: int, seconds: Fraction) -> VideoInfo:
    """Returns ``info`` with a count of frames, whose first and last are so far apart."""
    fps = info.fps
    average = (frames - 1) / seconds if seconds else fps
    if abs(average / fps - 1) > _RATE_TOLERANCE:
        fps = average.limit_denominator(1001)
    return replace(info, frames=frames, fps=fps)


def read_video(
    path: Source,
    *,
    fps: Fraction | None = None,
    alpha: bool = False,
    options: ReadOptions = AS_STORED,
) -> tuple[torch.Tensor, VideoInfo]:
    """All frames (3, T, H, W), float32 RGB in [-1, 1], and the info; raises as VideoReader.

    `fps` is for several images, as in VideoReader. With `alpha` frames are RGBA, (4, T, H, W).
    """
    with VideoReader(path, fps=fps, alpha=alpha, options=options) as reader:
        return torch.stack([frame.image for frame in reader], dim=1), reader.info


def read_clip(
    path: Source,
    start: float,
    frames: int,
    stride: int = 1,
    *,
    fps: Fraction | None = None,
    alpha: bool = False,
    options: ReadOptions = AS_STORED,
) -> torch.Tensor:
    """`frames` frames (3, T, H, W) in [-1, 1]: every `stride`-th from `start` seconds on.

    `fps` is for several images, as in VideoReader. With `alpha` frames are RGBA, (4, T, H, W).

    Seeks to the keyframe before `start` and decodes forward from there. Raises VideoError if the
    file cannot be read or holds fewer frames than that.
    """
    if start < 0 or frames < 1 or stride < 1:
        raise VideoError(
            f"cannot read {path}: start {start} must be 0 or more, "
            f"frames {frames} and stride {stride} 1 or more"
        )
    with VideoReader(path, fps=fps, alpha=alpha, options=options) as reader:
        if start > 0:
            reader.seek(start)
        # Frames between the wanted ones are decoded but not converted.
        wanted = islice(reader._frames, 0, (frames - 1) * stride + 1, stride)
        images = [reader._image(frame) for _, frame in wanted]
    if len(images) < frames:
        raise VideoError(
            f"cannot read {path}: {frames} frames asked for from {float(start):.2f} s with stride "
            f"{stride}, only {len(images)} are there; start earlier or ask for fewer"
        )
    return torch.stack(images, dim=1)
