"""Tracks of subtitles: packets that are copied, or text that is written in another format.

Times are seconds from the beginning of the written video. Subtitles are cut to it.
"""

from __future__ import annotations

from fractions import Fraction

from av import Packet
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

from wanvae.video.beside.tracks import describe
from wanvae.video.clock import length_of
from wanvae.video.common import MP4_FAMILY

_MILLISECOND = Fraction(1, 1000)
# What comes before the text in a subtitle of FFmpeg: the order, layer, style, name, ...
_FIELDS = 8


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
        return _placed(packet, self._stream, time, length_of(packet), self._end)

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
        self._overlaps = Overlaps() if output.format.name in MP4_FAMILY else None

    def convert(self, packet: Packet, time: Fraction) -> list[Packet]:
        """Returns what is ready in the other format; raises FFmpegError for a damaged packet."""
        duration = length_of(packet)
        decoded = self._decoder.decode2(packet)
        parts = () if decoded is None else decoded.rects
        text = _joined([part.ass for part in parts if isinstance(part, AssSubtitle)])
        if not text:  # an empty packet ends the text before it
            return []
        if self._overlaps is None:
            return self._encode(text, time, duration)
        spans = self._overlaps.until(time)
        self._overlaps.add(text, time + max(duration, _MILLISECOND))
        return self._encode_all(spans)

    def finish(self) -> list[Packet]:
        """Returns the packets that are left after the last."""
        return [] if self._overlaps is None else self._encode_all(self._overlaps.until(None))

    def _encode_all(self, spans: list[tuple[Fraction, Fraction, bytes]]) -> list[Packet]:
        return [
            packet
            for begin, end, text in spans
            for packet in self._encode(text, begin, end - begin)
        ]

    def _encode(self, text: bytes, time: Fraction, duration: Fraction) -> list[Packet]:
        shown = SubtitleSet.create(text, 0, round(duration / _MILLISECOND))
        rewritten = self._stream.codec_context.encode_subtitle(shown)
        rewritten.time_base = _MILLISECOND
        return _placed(rewritten, self._stream, time, duration, self._end)


class Overlaps:
    """Makes one text at a time of texts that overlap, for tracks of MP4 and MOV.

    FFmpeg would show the later text only after the earlier one, and so too late.
    """

    def __init__(self) -> None:
        self._shown: list[tuple[Fraction, bytes]] = []  # when a text ends, and the text
        self._time = Fraction(0)

    def add(self, text: bytes, end: Fraction) -> None:
        """Shows a text too, from the time that was reached until ``end``."""
        self._shown.append((end, text))

    def until(self, time: Fraction | None) -> list[tuple[Fraction, Fraction, bytes]]:
        """Returns begin, end and text of what is shown up to a time; None shows all."""
        spans = []
        while self._shown and (time is None or self._time < time):
            end = min(end for end, _ in self._shown)
            if time is not None:
                end = min(end, time)
            spans.append((self._time, end, _joined([text for _, text in self._shown])))
            self._time = end
            self._shown = [each for each in self._shown if each[0] > end]
        if time is not None:
            self._time = time if not self._shown else max(self._time, time)
        return spans


def _joined(texts: list[bytes]) -> bytes:
    """Returns one subtitle with the lines of several."""
    return b"\\N".join(
        text.split(b",", _FIELDS)[-1] if index else text for index, text in enumerate(texts)
    )


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
