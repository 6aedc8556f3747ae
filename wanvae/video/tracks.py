"""Tracks of sound and subtitles that go from a file into a file that is written.

Packets are copied where the container holds their codec. Elsewhere sound is encoded again, and
subtitles are rewritten. Times are seconds from the beginning of the written video; what lies before
0 or after ``end`` is left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import suppress
from errno import EAGAIN
from fractions import Fraction
from typing import Protocol

import av
from av import AudioFrame, Packet
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import EOFError, FFmpegError
from av.filter import Graph
from av.stream import Stream
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

from wanvae.video.clock import on_grid
from wanvae.video.languages import language_for

# Containers that say where in its first packets a track begins.
EDITED = ("mov", "mp4")
_MILLISECOND = Fraction(1, 1000)
_BITS_PER_CHANNEL = 96_000  # per second
# The usual order of so many channels, which encoders take.
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
# Tags that say how a file was written, not what it holds.
_OWN_TAGS = (
    *("major_brand", "minor_version", "compatible_brands", "encoder", "vendor_id", "duration"),
    *("rotate", "bps", "number_of_frames", "number_of_bytes", "handler_name"),
    *("_statistics", "software"),
)


class Track(Protocol):
    """Where the packets of one track of a file go."""

    def convert(self, packet: Packet, time: Fraction) -> list[Packet]:
        """Returns the packets to write for a packet that begins at ``time``."""
        ...

    def finish(self) -> list[Packet]:
        """Returns the packets that are left after the last."""
        ...


class CopiedSound:
    """Sound whose packets stay as they are.

    Where the container can say that the beginning of its first packets is not heard, the packet at
    the beginning of the video is kept, and the packet before it, which decoders need. Elsewhere
    sound begins with the next packet.
    """

    def __init__(self, source: AudioStream, output: OutputContainer, end: Fraction | None) -> None:
        self._source = source
        self._end = end
        self._tick = Fraction(1, source.rate)
        self._stream = _add_copy(source, output)
        self._stream.time_base = self._tick
        describe(source, self._stream)
        self._has_edits = output.format.name in EDITED
        self._lead: Fraction | None = None
        self._first: Fraction | None = None
        self._last: int | None = None

    def convert(self, packet: Packet, time: Fraction) -> list[Packet]:
        """Returns the packet with its time in the written file, or nothing."""
        duration = (packet.duration or 0) * packet.time_base
        if self._last is None and not self._opens(packet, time, duration):
            return []
        if self._end is not None and time >= self._end:
            return []
        if self._first is None:
            self._first = time
        if size := self._source.frame_size:
            # Containers round times, and sound whose packets are not equally far apart may crackle.
            rate, tick = self._source.rate / Fraction(size), packet.time_base
            time = self._first + on_grid(time - self._first, rate, tick)
            if abs(duration - 1 / rate) < tick:
                duration = 1 / rate
        pts = round(time / self._tick)
        if self._last is not None:
            pts = max(pts, self._last + 1)
        self._last = pts
        packet.time_base = self._tick
        packet.pts = packet.dts = pts
        packet.duration = round(duration / self._tick)
        packet.stream = self._stream
        return [packet]

    def _opens(self, packet: Packet, time: Fraction, duration: Fraction) -> bool:
        """Returns whether the written track may begin with a packet."""
        if self._lead is None:
            silent = max(_samples_to_skip(packet) * self._tick, duration)
            # A track that begins here has silent packets for the decoder.
            self._lead = silent if time + silent >= 0 else Fraction(0)
        if time >= -self._lead:
            return True
        if not self._has_edits:
            return False
        # Decoders of lossy codecs need the packet before.
        return time + duration * (2 if self._source.codec.lossy else 1) > 0

    def finish(self) -> list[Packet]:
        """Returns nothing."""
        return []


class EncodedSound:
    """Sound that is decoded, cut to the sample and encoded again."""

    def __init__(
        self, source: AudioStream, output: OutputContainer, end: Fraction | None, encoder: str
    ) -> None:
        self._source = source
        self._end = end
        rates = av.Codec(encoder, "w").audio_rates or [source.rate]
        rate = source.rate if source.rate in rates else 48_000
        channels = source.codec_context.channels
        layout = _LAYOUTS.get(channels, "stereo")
        stream = output.add_stream(encoder, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        stream.bit_rate = _BITS_PER_CHANNEL * stream.channels
        stream.codec_context.time_base = Fraction(1, rate)
        describe(source, stream)
        self._stream = stream
        self._graph: Graph | None = None
        self._taken: tuple[object, ...] = ()  # what the graph takes
        self._shift = Fraction(0)  # from times of the file
        self._following = Fraction(0)
        self._over = False

    def convert(self, packet: Packet, time: Fraction) -> list[Packet]:
        """Returns the packets that are ready; raises FFmpegError for a damaged packet."""
        if self._over:
            return []
        ticks = packet.dts if packet.pts is None else packet.pts
        self._shift = time - (ticks or 0) * packet.time_base
        return self._encode_all(self._source.decode(packet))

    def finish(self) -> list[Packet]:
        """Returns the packets that are left after the last."""
        encoded: list[Packet] = []
        with suppress(FFmpegError):
            encoded += self._encode_all(self._source.decode(None))
        return encoded + self._drain() + self._stream.encode(None)

    def _encode_all(self, frames: Iterable[AudioFrame]) -> list[Packet]:
        encoded: list[Packet] = []
        for frame in frames:
            # Samples are finer than the ticks of some containers.
            time = self._following
            if frame.pts is not None:
                time = frame.pts * (frame.time_base or Fraction(1)) + self._shift
            self._following = time + Fraction(frame.samples, frame.sample_rate)
            frame.time_base = Fraction(1, frame.sample_rate)
            frame.pts = round(time * frame.sample_rate)
            taken = frame.format.name, frame.layout.name, frame.sample_rate
            if taken != self._taken:
                encoded += self._drain()
                self._graph, self._taken = self._new_graph(frame), taken
            assert self._graph is not None
            try:
                self._graph.push(frame)
            except EOFError:  # it is after the end
                self._over = True
            encoded += self._pull()
        return encoded

    def _new_graph(self, frame: AudioFrame) -> Graph:
        """Fills gaps with silence, and cuts what is before the beginning or after the end."""
        stream, graph = self._stream, Graph()
        end = "" if self._end is None else f":end={float(self._end):.6f}"
        graph.link_nodes(
            graph.add_abuffer(
                sample_rate=frame.sample_rate,
                format=frame.format,
                layout=frame.layout,
                time_base=frame.time_base,
            ),
            graph.add("aresample", "async=1"),
            graph.add(
                "aformat",
                f"sample_rates={stream.rate}:sample_fmts={stream.format.name}:"
                f"channel_layouts={stream.layout.name}",
            ),
            graph.add("atrim", f"start=0{end}"),
            graph.add("abuffersink"),
        ).configure()
        return graph

    def _drain(self) -> list[Packet]:
        """Returns the packets of what is still in the graph."""
        if self._graph is None:
            return []
        with suppress(EOFError):
            self._graph.push(None)
        encoded = self._pull()
        self._graph = None
        return encoded

    def _pull(self) -> list[Packet]:
        assert self._graph is not None
        encoded = []
        while True:
            try:
                frame = self._graph.pull()
            except EOFError:
                return encoded
            except FFmpegError as error:
                if error.errno != EAGAIN:
                    raise
                return encoded
            assert isinstance(frame, AudioFrame)
            encoded += self._stream.encode(frame)


class CopiedSubtitles:
    """Subtitles whose packets stay as they are."""

    def __init__(
        self, source: SubtitleStream, output: OutputContainer, end: Fraction | None
    ) -> None:
        self._end = end
        self._stream = output.add_stream_from_template(source)
        describe(source, self._stream)

    def convert(self, packet: Packet, time: Fraction) -> list[Packet]:
        """Returns the packet with its time in the written file, or nothing."""
        return _placed(
            packet, self._stream, time, (packet.duration or 0) * packet.time_base, self._end
        )

    def finish(self) -> list[Packet]:
        """Returns nothing."""
        return []


class RewrittenSubtitles:
    """Subtitles of text in the format of another container."""

    def __init__(
        self, source: SubtitleStream, output: OutputContainer, end: Fraction | None, encoder: str
    ) -> None:
        self._end = end
        self._decoder = source.codec_context
        self._decoder.open(strict=False)
        stream = output.add_stream(encoder)
        assert isinstance(stream, SubtitleStream)
        stream.codec_context.subtitle_header = self._decoder.subtitle_header
        stream.codec_context.time_base = _MILLISECOND
        stream.time_base = _MILLISECOND
        describe(source, stream)
        self._stream = stream

    def convert(self, packet: Packet, time: Fraction) -> list[Packet]:
        """Returns the packet in the other format; raises FFmpegError for a damaged packet."""
        duration = (packet.duration or 0) * packet.time_base
        decoded = self._decoder.decode2(packet)
        parts = () if decoded is None else decoded.rects
        text = b"\\N".join(part.ass for part in parts if isinstance(part, AssSubtitle))
        if not text:  # an empty packet ends the text before it
            return []
        shown = SubtitleSet.create(text, 0, round(duration / _MILLISECOND))
        rewritten = self._stream.codec_context.encode_subtitle(shown)
        rewritten.time_base = _MILLISECOND
        return _placed(rewritten, self._stream, time, duration, self._end)

    def finish(self) -> list[Packet]:
        """Returns nothing."""
        return []


def _placed(
    packet: Packet, stream: Stream, time: Fraction, duration: Fraction, end: Fraction | None
) -> list[Packet]:
    """Returns a subtitle at its time, cut to the written video; or nothing."""
    until = time + duration
    if (end is not None and time >= end) or (time < 0 and until <= 0):
        return []
    if end is not None:
        until = min(until, end)
    time = max(time, Fraction(0))
    packet.pts = packet.dts = round(time / packet.time_base)
    packet.duration = max(0, round((until - time) / packet.time_base))
    packet.stream = stream
    return [packet]


def _add_copy(source: AudioStream, output: OutputContainer) -> AudioStream:
    """Adds a stream for the packets of another stream."""
    stream = output.add_stream_from_template(source)
    if source.layout.name.endswith(" channels"):  # in no order that the file tells
        stream.layout = _LAYOUTS.get(source.channels, source.layout.name)
    return stream


def _samples_to_skip(packet: Packet) -> int:
    """Returns how many samples from this packet on are only there for the decoder."""
    if not packet.has_sidedata("skip_samples"):
        return 0
    return int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")


def describe(source: Stream, stream: Stream) -> None:
    """Gives a stream the language, the other tags and the roles of its source."""
    tags = tags_of(source.metadata)
    if (language := tags.get("language")) is not None:
        tags["language"] = language_for(stream.container.format.name, language) or language
    stream.metadata.update(tags)
    stream.disposition = source.disposition


def tags_of(metadata: dict[str, str]) -> dict[str, str]:
    """Returns the tags that tell of the content, such as a title."""
    return {
        name: value for name, value in metadata.items() if not name.lower().startswith(_OWN_TAGS)
    }


def holds(container: str, stream: AudioStream | SubtitleStream) -> bool:
    """Returns whether a container, by FFmpeg's name, can hold the packets of a stream."""
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            if isinstance(stream, SubtitleStream):
                trial.add_stream_from_template(stream)
                trial.start_encoding()
                return True
            copy = _add_copy(stream, trial)
            trial.start_encoding()
            if stream.codec.name.startswith("pcm"):
                # Only the end of a file tells whether it takes the order of the channels.
                silence = Packet(bytes(8 * stream.channels))
                silence.stream, silence.pts, silence.dts = copy, 0, 0
                trial.mux(silence)
    except (ValueError, FFmpegError):
        return False
    return True


def can_encode(container: str, encoder: str) -> bool:
    """Returns whether a container can hold what an encoder writes, and the encoder is there."""
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream(encoder)
    except ValueError:
        return False
    return True
