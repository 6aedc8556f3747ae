"""Tracks that go from a file into a file that is written, and what the written file can hold."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Protocol

import av
from av import Packet
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

from wanvae.video.beside.languages import language_for

# Containers that take any packets and do not say which are whose.
_FORMLESS = ("rawvideo",)
# The usual order of so many channels, which encoders take.
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
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


def add_copy(source: AudioStream, output: OutputContainer) -> AudioStream:
    """Adds a stream for the packets of another stream."""
    stream = output.add_stream_from_template(source)
    if source.layout.name.endswith(" channels"):  # in no order that the file tells
        stream.layout = LAYOUTS.get(source.channels, source.layout.name)
    return stream


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
    if container in _FORMLESS:
        return False
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            if isinstance(stream, SubtitleStream):
                trial.add_stream_from_template(stream)
                trial.start_encoding()
                return True
            copy = add_copy(stream, trial)
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
    if container in _FORMLESS:
        return False
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream(encoder)
    except ValueError:
        return False
    return True
