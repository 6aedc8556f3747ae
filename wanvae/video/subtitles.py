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

from wanvae.video.tracks import describe

_MILLISECOND = Fraction(1, 1000)


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
