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
from av.format import Flags
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from wanvae.video.clock import Clock
from wanvae.video.codec import OWN_DECODERS, decoder_of, has_alpha_beside
from wanvae.video.common import (
    FilePart,
    Notices,
    Source,
    VideoError,
    address,
    one_line_errors,
    open_remote,
)
from wanvae.video.numbered import find_images

_BESIDE = {"audio": "sound", "subtitle": "subtitles"}
_HEIF_BRANDS = ("avif", "heic", "heim", "heis", "heix", "mif1")
_DEFAULT_RATE = Fraction(25)
# Seconds. A longer step of a clock that may restart, as in MPEG streams, is no pause but a jump.
_LONGEST_PAUSE = 10
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
        fps: frames per second of numbered images, which have no rate; None takes 25.
        alpha: whether alpha is decoded, where a decoder can also leave it out.

    Attributes:
        stream: the video.
        decoder: decodes its packets.
        tick: seconds of one unit of timestamps.
        key_lead: ticks from the time of the packet of a keyframe to the time of its frame.

    Raises:
        VideoError: the file cannot be opened, or has no video, or ``fps`` is given for another
            file than several numbered images.
    """

    def __init__(
        self,
        path: Source,
        notices: Notices | None = None,
        fps: Fraction | None = None,
        *,
        alpha: bool = False,
    ) -> None:
        self.path = path
        self._fps = fps
        self._alpha = alpha
        self._images = find_images(path)
        self.key_lead = 0
        self._notices = notices
        self._fresh = True
        self._open()
        if self.is_numbered and fps is None:
            self._tell(
                f"numbered images have no frame rate; {_DEFAULT_RATE} frames per second are "
                "assumed, name another rate with --fps (in Python, with fps)"
            )
        if fps is not None and not self.is_numbered:
            self.close()
            raise VideoError(
                f"{path} is {'a still image' if self.is_image else 'a video file'}, and cannot be "
                f"read at {fps} frames per second: leave out fps, which is only for several "
                "numbered images like frames/%05d.png"
            )

    def _open(self) -> None:
        options = {} if self._fps is None else {"framerate": str(self._fps)}
        if self._images is not None:
            options["start_number"] = str(self._images.first)
        elif not isinstance(self.path, FilePart) and os.path.exists(self.path):
            options["pattern_type"] = "none"  # a "%" in its name is no pattern
        with one_line_errors("read", self.path):
            # Metadata in a wrong encoding is no reason to refuse the pictures.
            self._remote = open_remote(self.path)
            place = address(self.path) if self._remote is None else self._remote
            self._container = av.open(place, "r", metadata_errors="replace", options=options)
        stream = self._container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            self.close()
            raise VideoError(f"cannot read {self.path}: it has no video; give a video or image")
        if stream.disposition & Disposition.dependent:
            self.close()
            raise VideoError(
                f"cannot read {self.path}: it is a picture of several tiles, as cameras write "
                "HEIC; convert it to JPEG or PNG first"
            )
        self.stream = stream
        self.decoder = decoder_of(stream, alpha=self._alpha)
        self.tick = stream.time_base or Fraction(1, av.time_base)

    @property
    def kind(self) -> str:
        """FFmpeg's name of the container."""
        return self._container.format.name

    @property
    def is_image(self) -> bool:
        """Whether the file is a still image."""
        return self.is_of_images and not self.is_numbered

    @property
    def is_heif(self) -> bool:
        """Whether the file is a still image in a container of videos: AVIF or HEIC."""
        brand = self._container.metadata.get("major_brand", "")
        return "mov" in self.kind and brand in _HEIF_BRANDS and not self.stream.duration

    @property
    def is_numbered(self) -> bool:
        """Whether this is several numbered image files, like frames/%05d.png."""
        return self.kind == "image2" and self._images is not None and self._images.length > 1

    @property
    def gap(self) -> str | None:
        """Which numbered images are not read; None if all are."""
        return self._images.gap if self.kind == "image2" and self._images is not None else None

    @property
    def is_of_images(self) -> bool:
        """Whether frames have the formats of image files."""
        return self.kind == "image2" or self.kind.endswith("_pipe") or self.is_heif

    @property
    def pictures(self) -> int:
        """How many videos there are, without cover pictures."""
        pictures = self._container.streams.video
        return sum(not stream.disposition & Disposition.attached_pic for stream in pictures)

    @property
    def drops_alpha(self) -> bool:
        """Whether there is transparency that the decoder leaves out, as in WebM."""
        return self.decoder.name in OWN_DECODERS and has_alpha_beside(self.stream)

    @property
    def beside(self) -> tuple[str, ...]:
        """What there is beside the video: "sound", "subtitles"."""
        kinds = {stream.type for stream in self._container.streams}
        return tuple(name for kind, name in _BESIDE.items() if kind in kinds)

    @property
    def has_display_times(self) -> bool:
        """Whether packets say when they are shown. AVI only counts packets."""
        return self.kind != "avi"

    @property
    def counts_frames(self) -> bool:
        """Whether the container has a count of its frames that can be relied on."""
        counts = "mov" in self.kind or self.kind == "avi"
        return self.is_numbered or (counts and bool(self.stream.frames))

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
        rates = [self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate]
        if not has_times:
            # There is nothing to average, and FFmpeg reports 25. Its guess reads the header.
            rates = rates[1:]
        return next((rate for rate in rates if rate), _DEFAULT_RATE)

    @cached_property
    def grid(self) -> Fraction:
        """Frames per second of a constant rate that all times may be multiples of."""
        return self.stream.guessed_rate or self.rate(True)

    @property
    def period(self) -> int:
        """Ticks from frame to frame."""
        return max(1, round(1 / (self.grid * self.tick)))

    def duration(self, origin: int | None) -> Fraction | None:
        """Seconds from the first frame that the container promises; None if it does not.

        Args:
            origin: the timestamp of the first frame.
        """
        if self.is_numbered and self._images is not None:
            return self._images.length * self.tick
        if self.stream.duration:
            start = self.stream.start_time
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
        return self._from_keyframe(self._continued())

    def before(self, time: int) -> Iterator[Iterator[Packet]]:
        """Ways to read from a keyframe that is shown at or before ``time``, in ticks.

        The nearest keyframe comes first. Not each will do, because some frames after a keyframe may
        need frames before it. The last way is from the beginning.
        """
        if self.seeks_exactly:
            yield from self._sought(time)
        else:
            yield self._from_nearest_keyframe(time - _MARGIN * self.period)
        yield self.from_start()

    def _continued(self) -> Iterator[Packet]:
        """Packets from here on, with continued times."""
        restarts = Flags.ts_discont in Flags(self._container.format.flags)
        gap = _LONGEST_PAUSE / self.tick if restarts else inf
        clock = Clock(self.period, float(gap), by_keyframes="matroska" in self.kind)
        packets = self._container.demux(self.stream)
        if self._images is not None and self.is_numbered:
            # FFmpeg does not see all gaps, and would look for the missing files.
            packets = chain(islice(packets, self._images.length), [Packet()])
        for packet in packets:
            if clock.adjust(packet):
                self._tell(
                    "its clock restarts or jumps, as where recordings are joined; times go on at "
                    "the rate of the stream"
                )
            yield packet
        # FFmpeg takes a failure of the network for the end of the file.
        if self._remote is not None and self._remote.failure is not None:
            raise self._remote.failure

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
