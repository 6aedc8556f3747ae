"""Tracks of sound: packets that are copied, or samples that are encoded again.

Times are seconds from the beginning of the written video.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction

import av
from av import AudioFrame, Packet
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import EOFError, FFmpegError
from av.filter import Graph

from wanvae.video.beside.tracks import LAYOUTS, add_copy, describe
from wanvae.video.clock import length_of, on_grid, time_of
from wanvae.video.common import MP4_FAMILY
from wanvae.video.graphs import results_of

_BITS_PER_CHANNEL = 96_000  # per second
# Seconds. What is not heard for longer at the beginning is not there for the decoder, but hidden by
# an edit list.
_LONGEST_PRIMING = Fraction(1, 4)


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
        self._stream = add_copy(source, output)
        self._stream.time_base = self._tick
        describe(source, self._stream)
        self._has_edits = output.format.name in MP4_FAMILY
        self._lead: Fraction | None = None
        self._first: Fraction | None = None
        self._last: int | None = None

    def convert(self, packet: Packet, time: Fraction) -> list[Packet]:
        """Returns the packet with its time in the written file, or nothing."""
        duration = length_of(packet)
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
        if size := self._source.frame_size:
            # MP4 counts to the next packet, also where a gap follows.
            duration = min(duration, size * self._tick)
        if self._lead is None:
            silent = max(_samples_to_skip(packet) * self._tick, duration)
            # A track that begins here has silent packets for the decoder.
            begins = time + silent >= -packet.time_base and silent <= _LONGEST_PRIMING
            self._lead = silent if begins else Fraction(0)
        if time >= -self._lead - packet.time_base:  # both are rounded
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
        layout = LAYOUTS.get(channels, "stereo")
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
        self._shift = time - (time_of(packet) or 0)
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
        for frame in results_of(self._graph):
            assert isinstance(frame, AudioFrame)
            encoded += self._stream.encode(frame)
        return encoded


def _samples_to_skip(packet: Packet) -> int:
    """Returns how many samples from this packet on are only there for the decoder."""
    if not packet.has_sidedata("skip_samples"):
        return 0
    return int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")
