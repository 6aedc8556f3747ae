"""The packets of the video of a file, from its beginning or from a keyframe before a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cached_property
from itertools import chain, islice
from math import inf

import av
from av import Packet
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from wanvae.video.clock import LONGEST_PAUSE, Clock, restarts
from wanvae.video.common import (
    RATES,
    FilePart,
    Notices,
    Source,
    VideoError,
    address,
    is_pipe,
    one_line_errors,
    open_remote,
)
from wanvae.video.reading.animated_webp import find_animation
from wanvae.video.reading.codec import OWN_DECODERS, decoder_of, has_alpha_beside
from wanvae.video.reading.hardware import hardware_decoding
from wanvae.video.reading.sequence import DEFAULT_RATE, find_sequence
from wanvae.video.reading.streams import choose_stream, is_picture

_BESIDE = {"audio": "sound", "subtitle": "subtitles"}
_COVER = ("cover picture",)
# FFmpeg's name of WebP files in a row.
_WEBP = "webp_pipe"
_HEIF_BRANDS = ("avif", "heic", "heim", "heis", "heix", "mif1")
_PIPE_ADVICE = (
    "; a pipe is read without going back, so send Matroska or Y4M, or MP4 with its header first "
    "(-movflags +faststart, or frag_keyframe+empty_moov)"
)
# Packets that are searched for the first keyframe. Some streams have none.
_LONGEST_LEAD = 1000
# Frames from a keyframe to the first frame that is wanted, where times of keyframes may be guessed.
_MARGIN = 8
# Bytes of packets that wait until it is known whether there is a later keyframe that will do.
_MOST_WAITING = 64 * 2**20


class PacketSource:
    """Opens a file and gives the packets of its video, in decoding order.

    Timestamps of packets are continued where the clock of the file restarts or jumps. Only the
    packets that were asked for last may be used. Besides the functions, errors of FFmpeg come from
    the packets.

    Args:
        notices: tells what must be told about the file; None tells nothing.
        fps: frames per second of several images, which have no rate; None takes 25.
        hwaccel: the device that decodes, as in ``ReadOptions``.

    Attributes:
        stream: the video.
        decoder: decodes its packets.
        tick: seconds of one unit of timestamps.
        key_lead: ticks from the time of the packet of a keyframe to the time of its frame.

    Raises:
        VideoError: the file cannot be opened, or has no video, or ``fps`` is given for another
            file than several images.
    """

    def __init__(
        self,
        path: Source,
        notices: Notices | None = None,
        fps: Fraction | None = None,
        hwaccel: str | None = None,
    ) -> None:
        self.path = path
        self._hardware = None if hwaccel is None else hardware_decoding(hwaccel)
        self._fps = fps
        self.is_pipe = is_pipe(path)
        self._images = find_sequence(path, fps or DEFAULT_RATE)
        # What becomes packets here, instead of in FFmpeg.
        self._own = self._images if self.is_sequence else find_animation(self._opened)
        self.key_lead = 0
        self._notices = notices
        self._fresh = True
        self._open()
        if self.is_of_several_images and fps is None:
            self._tell(
                f"several images have no frame rate; {DEFAULT_RATE} frames per second are "
                "assumed, name another rate with --fps (in Python, with fps)"
            )
        if fps is not None and not self.is_of_several_images:
            self.close()
            raise VideoError(
                f"{path} is {'a still image' if self.is_image else 'a video file'}, and cannot be "
                f"read at {fps} frames per second: leave out fps, which is only for several "
                "images, like frames/%05d.png, 'frames/*.png' or a folder of them"
            )

    def _open(self) -> None:
        options = {} if self._fps is None else {"framerate": str(self._fps)}
        path = self._opened
        if not isinstance(path, FilePart) and not self.is_pipe and os.path.exists(path):
            options["pattern_type"] = "none"  # a "%" in its name is no pattern
        with one_line_errors("read", self.path, self.advice):
            # Metadata in a wrong encoding is no reason to refuse the pictures.
            self._remote = None if self.is_pipe else open_remote(path)
            place = address(path) if self._remote is None else self._remote
            self._container = av.open(
                place, "r", metadata_errors="replace", options=options, hwaccel=self._hardware
            )
        try:
            self.stream = choose_stream(self._container, self.path)
        except VideoError:
            self.close()
            raise
        self._first: list[Packet] = []
        if self.is_pipe and self.kind == _WEBP:
            # FFmpeg gives the whole animation as one packet, which it does not decode.
            self._first = list(islice(self._container.demux(self.stream), 1))
            self._own = find_animation(bytes(self._first[0]))
        self.decoder = decoder_of(self.stream)
        if self._hardware is not None and not self.stream.codec_context.is_hwaccel:
            self._tell(
                f"its codec {self.stream.codec_context.name} is decoded on the CPU: the device of "
                "--hwaccel does not decode it"
            )
        self.tick = self.stream.time_base or Fraction(1, av.time_base)
        if self._own is not None:
            self.tick = self._own.tick

    @property
    def _opened(self) -> Source:
        """The file that FFmpeg opens: of several images, the first."""
        return self.path if self._images is None else self._images.paths[0]

    @property
    def advice(self) -> str:
        """What may help if nothing can be read, as the end of a sentence."""
        return _PIPE_ADVICE if self.is_pipe else ""

    @property
    def kind(self) -> str:
        """FFmpeg's name of the container."""
        return self._container.format.name

    @property
    def is_image(self) -> bool:
        """Whether the file is a still image."""
        return self.is_of_images and not self.is_of_several_images and self._own is None

    @cached_property
    def is_heif(self) -> bool:
        """Whether the file is a still image in a container of videos: AVIF or HEIC."""
        brand = self._container.metadata.get("major_brand", "")
        return "mov" in self.kind and brand in _HEIF_BRANDS and not self.stream.duration

    @property
    def is_sequence(self) -> bool:
        """Whether this is several image files, like frames/%05d.png."""
        return self._images is not None and self._images.length > 1

    @property
    def is_of_several_images(self) -> bool:
        """Whether pictures come one after the other without times. A pipe of images may be long."""
        return self.is_sequence or (self.is_pipe and self.is_of_images and self._own is None)

    @property
    def gap(self) -> str | None:
        """Which numbered images are not read; None if all are."""
        return None if self._images is None else self._images.gap

    @property
    def choice(self) -> str | None:
        """Which images are taken of a folder, or of those that a glob names."""
        return None if self._images is None else self._images.choice

    @property
    def is_of_images(self) -> bool:
        """Whether frames have the formats of image files."""
        return self.kind == "image2" or self.kind.endswith("_pipe") or self.is_heif

    @property
    def pictures(self) -> int:
        """How many videos there are, without cover pictures."""
        return sum(not is_picture(stream) for stream in self._container.streams.video)

    @property
    def pixel_ratio(self) -> Fraction | None:
        """Width of a pixel, divided by its height; None if square, or of images, as viewers do."""
        return None if self.is_of_images else self.stream.sample_aspect_ratio

    @property
    def drops_alpha(self) -> bool:
        """Whether there is transparency that no decoder of this FFmpeg gives, as in WebM."""
        return self.decoder.name in OWN_DECODERS and has_alpha_beside(self.stream)

    @property
    def beside(self) -> tuple[str, ...]:
        """What there is beside the video: "sound", "subtitles", "cover picture"."""
        kinds = {stream.type for stream in self._container.streams}
        found = tuple(name for kind, name in _BESIDE.items() if kind in kinds)
        return found + _COVER * any(map(is_picture, self._container.streams.video))

    @property
    def has_display_times(self) -> bool:
        """Whether packets say when they are shown. AVI only counts packets."""
        return self.kind != "avi"

    @property
    def counts_frames(self) -> bool:
        """Whether the container has a count of its frames that can be relied on."""
        counts = "mov" in self.kind or self.kind == "avi"
        return self._own is not None or (counts and bool(self.frames))

    @cached_property
    def frames(self) -> int:
        """Frames as the header counts them, without those that it hides; 0 if it does not count.

        MP4 and MOV hide frames where an edit list begins or ends between keyframes.
        """
        if self._own is not None:
            return self._own.length
        stream = self.stream
        if "mov" in self.kind and stream.frames * self.period > (stream.duration or 0):
            return sum(not entry.is_discard for entry in stream.index_entries)
        return stream.frames

    @property
    def seeks_exactly(self) -> bool:
        """Whether packets have the same times after a seek as in reading through.

        Elsewhere times restart, or are guessed from the packets before, or have no index.
        """
        finished = bool(self._container.duration)
        return "mov" in self.kind or (finished and self.kind in ("avi", "matroska,webm"))

    def rate(self, has_times: bool) -> Fraction:
        """Frames per second on average, as far as the header and the first frames tell.

        Args:
            has_times: whether frames have timestamps.
        """
        if self._own is not None:
            return self._own.rate
        if self.is_of_several_images:
            return self._fps or DEFAULT_RATE
        rates = [self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate]
        if not has_times:
            # There is nothing to average, and FFmpeg reports 25. Its guess reads the header.
            rates = rates[1:]
        # For few frames FFmpeg may take the units of time for frames.
        lowest, highest = RATES
        likely = (rate for rate in rates if rate and lowest <= rate <= highest)
        return next(likely, DEFAULT_RATE)

    @cached_property
    def grid(self) -> Fraction:
        """Frames per second of a constant rate that all times may be multiples of."""
        if self._own is not None:
            return 1 / self.tick
        guess = None if self.is_of_several_images else self.stream.guessed_rate
        return guess if guess and guess <= RATES[1] else self.rate(True)

    @property
    def period(self) -> int:
        """Ticks from frame to frame."""
        return max(1, round(1 / (self.grid * self.tick)))

    def duration(self, origin: int | None) -> Fraction | None:
        """Seconds from the first frame that the container promises; None if it does not.

        Args:
            origin: the timestamp of the first frame.
        """
        if self._own is not None:
            return self._own.ticks * self.tick
        if self.stream.duration:
            start = self.stream.start_time
            if start is None and "matroska" in self.kind:
                start = 0  # the duration of the file, which counts from time 0
            if origin is None or start is None or not self.has_display_times:
                start = origin = 0
            # What comes before the first keyframe is counted too.
            return (self.stream.duration - max(0, origin - start)) * self.tick
        duration = _tagged_duration(self.stream)
        # The container gives the duration of its longest stream, which may be another one.
        if duration is None and self._container.duration and len(self._container.streams) == 1:
            duration = Fraction(self._container.duration, av.time_base)
        if duration is not None and "matroska" in self.kind:
            # Counted from time 0, at which the first frame need not be.
            duration -= (origin or 0) * self.tick
        return duration

    def shown(self, packet: Packet) -> int | None:
        """The timestamp of the frame in the packet of a keyframe."""
        if self.has_display_times:
            return packet.pts
        return None if packet.dts is None else packet.dts + self.key_lead

    def with_rotation(self, frame: VideoFrame, packet: Packet) -> VideoFrame:
        """Returns the first frame as FFmpeg's own decoder gives it, with the tags of the container.

        Args:
            frame: the first frame.
            packet: the first packet.
        """
        own = self.stream.codec_context
        if self.decoder is own:
            return frame
        with suppress(FFmpegError):
            return next(iter([*own.decode(packet), *own.decode(None)]), frame)
        return frame

    def from_start(self) -> Iterator[Packet]:
        """All packets, from the first keyframe on. The last packet is empty."""
        if not self._fresh:
            self.close()
            self._open()
        self._fresh = False
        if self._own is not None:
            return self._of_stream(self._own.packets())
        return self._from_keyframe(self._continued())

    def before(self, time: int) -> Iterator[Iterator[Packet]]:
        """Ways to read from a keyframe that is shown at or before ``time``, in ticks.

        The nearest keyframe comes first. Not each will do, because some frames after a keyframe may
        need frames before it. The last way is from the beginning.
        """
        if self._own is not None:
            self.decoder.flush_buffers()
            yield self._of_stream(self._own.packets(time))
        elif self.seeks_exactly:
            yield from self._sought(time)
        else:
            yield self._from_nearest_keyframe(time - _MARGIN * self.period)
        yield self.from_start()

    def _continued(self) -> Iterator[Packet]:
        """Packets from here on, with continued times."""
        gap = LONGEST_PAUSE / self.tick if restarts(self._container) else inf
        clock = Clock(self.period, float(gap), by_keyframes="matroska" in self.kind)
        for packet in chain(self._first, self._container.demux(self.stream)):
            if clock.adjust(packet):
                self._tell(
                    "its clock restarts or jumps, as where recordings are joined; times go on at "
                    "the rate of the stream"
                )
            yield packet
        # FFmpeg takes a failure of the network for the end of the file.
        if self._remote is not None and self._remote.failure is not None:
            raise self._remote.failure

    def _of_stream(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """Packets that did not come from FFmpeg, as packets of the video."""
        for packet in packets:
            packet.stream = self.stream
            yield packet

    def shown_frames(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """What is shown, given the frames of the decoder."""
        return frames if self._own is None else self._own.frames(frames)

    def _from_keyframe(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """The packets from the first keyframe on; all packets if there is none near."""
        lead = []
        for packet in islice(packets, _LONGEST_LEAD):
            lead.append(packet)
            if packet.is_keyframe:
                if len(lead) > 1:
                    self._tell("it begins between keyframes; frames before the first are left out")
                lead = lead[-1:]
                break
        yield from lead
        yield from packets

    def _sought(self, time: int) -> Iterator[Iterator[Packet]]:
        """Ways to read from keyframes that the container finds, each before the last."""
        back = 0
        while back * self.tick < time * self.tick:
            with suppress(FFmpegError):
                self._fresh = False
                self._container.seek(time - back, stream=self.stream)
                self.decoder.flush_buffers()
                packets = self._continued()
                # Some containers land on a keyframe shown only after the time.
                first = next((packet for packet in packets if packet.is_keyframe), None)
                shown = None if first is None else self.shown(first)
                if first is not None and shown is not None and shown <= time:
                    yield chain([first], packets)
            back = 2 * back + round(1 / self.tick)

    def _from_nearest_keyframe(self, time: int) -> Iterator[Packet]:
        """Packets from the last keyframe that is shown at or before ``time``; reads all before."""
        packets = self.from_start()
        waiting, size = [], 0
        for packet in packets:
            shown = self.shown(packet) if packet.is_keyframe else None
            if shown is not None and shown <= time:
                waiting, size = [], 0
            waiting.append(packet)
            size += packet.size
            if size > _MOST_WAITING or (packet.dts is not None and packet.dts > time):
                break
        return chain(waiting, packets)

    def _tell(self, sentence: str) -> None:
        if self._notices is not None:
            self._notices.tell(sentence)

    def close(self) -> None:
        """Closes the file."""
        self._container.close()
        if self._remote is not None:
            self._remote.close()


def count_frames(path: Source) -> tuple[int, Fraction]:
    """Reads all packets of a video, and returns the number of frames and the seconds from the first
    to the last.

    Raises:
        VideoError: the file cannot be opened.
    """
    source = PacketSource(path)
    times = []
    count = 0
    try:
        with suppress(FFmpegError):  # what follows cannot be read
            for packet in source.from_start():
                if not is_hidden(packet):
                    count += 1
                    time = packet.pts if source.has_display_times else packet.dts
                    times.extend([] if time is None else [time])
    finally:
        source.close()
    return count, (max(times) - min(times)) * source.tick if times else Fraction(0)


def is_hidden(packet: Packet) -> bool:
    """Whether a packet has no frame to show: it is empty, or its frame is only there for others.

    VP8 has such frames.
    """
    if not packet.size or packet.is_discard:
        return True
    return packet.stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10


def _tagged_duration(stream: VideoStream) -> Fraction | None:
    """Seconds in the tag that writers of Matroska give each stream, such as 00:01:02.500000000."""
    text = next((v for k, v in stream.metadata.items() if k.upper() == "DURATION"), "")
    with suppress(ValueError):
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    return None
