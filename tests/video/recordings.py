"""Recordings to test with: a picture that turns white when a tone begins, and more beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av import AudioFrame, Packet, VideoFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Stream
from av.video.stream import VideoStream

SIZE = 64
RATE = 48_000
_SAMPLES = 960  # of a frame of sound


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A track of sound.

    Attributes:
        codec: name of an encoder.
        begin, end: seconds.
        language: tag of the track.
        disposition: roles of the track.
        tone: when its tone begins; None takes the time at which the picture changes.
    """

    codec: str = "aac"
    begin: Fraction = Fraction(0)
    end: Fraction = Fraction(3)
    language: str = "und"
    disposition: int = 0
    layout: str = "stereo"
    rate: int = RATE
    tone: Fraction | None = None


def record(
    path: Path,
    sounds: Sequence[Sound] = (Sound(),),
    *,
    change: Fraction = Fraction(2),
    begin: Fraction = Fraction(0),
    end: Fraction = Fraction(3),
    fps: int = 25,
    codec: str = "libx264",
    times: Sequence[Fraction] | None = None,
    tags: Mapping[str, str] | None = None,
    chapters: Sequence[tuple[Fraction, Fraction, str]] = (),
    texts: Sequence[tuple[Fraction, Fraction, str]] = (),
    text_codec: str = "subrip",
    attachment: bytes = b"",
) -> Path:
    """Writes a video whose picture turns from black to white at ``change``, as tones begin.

    Args:
        begin, end: of the video.
        times: of the frames, instead of ``fps``.
        chapters, texts: begin, end and title or text.
    """
    if times is None:
        times = [begin + Fraction(i, fps) for i in range(int((end - begin) * fps))]
    with av.open(str(path), "w") as container:
        container.metadata.update(tags or {})
        container.set_chapters(
            [
                {
                    "id": number,
                    "start": round(first * 1000),
                    "end": round(last * 1000),
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": title},
                }
                for number, (first, last, title) in enumerate(chapters, 1)
            ]
        )
        video = container.add_stream(codec, rate=fps)
        assert isinstance(video, VideoStream)
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        if codec == "libx264":
            video.options = {"x264-params": "log-level=none"}
        elif codec == "mpeg4":
            video.codec_context.max_b_frames = 2
        if codec in ("libx264", "libvpx-vp9"):
            video.codec_context.time_base = Fraction(1, fps * 1000)
        tracks = [_add(container, sound) for sound in sounds]
        text = _add_texts(container, text_codec) if texts else None
        if attachment:
            container.add_attachment("font.ttf", "font/ttf", attachment)
        packets = [*_pictures(video, times, change, fps)]
        for stream, sound in zip(tracks, sounds, strict=True):
            packets += _tones(stream, sound, change)
        if text is not None:
            packets += _texts(text, texts)
        for packet in sorted(packets, key=_time):
            container.mux(packet)
    return path


def _time(packet: Packet) -> Fraction:
    ticks = packet.dts if packet.dts is not None else packet.pts
    assert ticks is not None
    return ticks * packet.time_base


def _add(container: OutputContainer, sound: Sound) -> AudioStream:
    stream = container.add_stream(sound.codec, rate=sound.rate, layout=sound.layout)
    assert isinstance(stream, AudioStream)
    stream.codec_context.time_base = Fraction(1, sound.rate)
    stream.bit_rate = 128_000
    stream.metadata["language"] = sound.language
    stream.disposition = sound.disposition
    return stream


def _add_texts(container: OutputContainer, codec: str) -> Stream:
    stream = container.add_mux_stream(codec)
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = "fra"
    return stream


def _pictures(
    video: VideoStream, times: Sequence[Fraction], change: Fraction, fps: int
) -> Iterator[Packet]:
    tick = video.codec_context.time_base or Fraction(1, fps)
    for time in times:
        level = 235 if time >= change else 16
        frame = VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), level, np.uint8), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts, frame.time_base = round(time / tick), tick
        yield from video.encode(frame)
    yield from video.encode(None)


def _tones(stream: AudioStream, sound: Sound, change: Fraction) -> Iterator[Packet]:
    first, last = (round(time * sound.rate) for time in (sound.begin, sound.end))
    channels = stream.channels
    tone_begin = change if sound.tone is None else sound.tone
    for number in range(first, last, _SAMPLES):
        samples = np.arange(number, min(number + _SAMPLES, last)) / sound.rate
        tone = 0.5 * np.sin(2 * np.pi * 440 * samples) * (samples >= float(tone_begin))
        frame = AudioFrame.from_ndarray(
            np.tile(tone.astype(np.float32), (channels, 1)), "fltp", sound.layout
        )
        frame.rate, frame.pts, frame.time_base = sound.rate, number, Fraction(1, sound.rate)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _texts(stream: Stream, texts: Sequence[tuple[Fraction, Fraction, str]]) -> Iterator[Packet]:
    for begin, end, text in texts:
        packet = Packet(text.encode())
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = round(begin * 1000)
        packet.duration = round((end - begin) * 1000)
        yield packet


def packets_of(path: Path, kind: str = "audio", number: int = 0) -> list[tuple[float, bytes]]:
    """Times in seconds and bytes of the packets of a track."""
    with av.open(str(path)) as container:
        stream = [stream for stream in container.streams if stream.type == kind][number]
        return [
            (float((packet.pts or 0) * packet.time_base), bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def bytes_of(path: Path, kind: str = "audio", number: int = 0) -> bytes:
    """The bytes of all packets of a track, without the headers of AAC in MPEG streams."""
    found = [content for _, content in packets_of(path, kind, number)]
    return b"".join(each[7:] if each[:2] == b"\xff\xf1" else each for each in found)


@dataclass(frozen=True)
class Facts:
    """What a file says of a track."""

    codec: str
    language: str | None
    disposition: int


def streams_of(path: Path, kind: str) -> list[Facts]:
    """What a file says of its tracks of a kind."""
    with av.open(str(path)) as container:
        return [
            Facts(each.codec.canonical_name, each.language, int(each.disposition))
            for each in container.streams
            if each.type == kind
        ]


def offset_of(path: Path, number: int = 0) -> float:
    """Seconds from the first white picture to the beginning of a tone."""
    with av.open(str(path)) as container:
        white = next(
            float(frame.pts * frame.time_base)
            for frame in container.decode(video=0)
            if frame.to_ndarray(format="gray").mean() > 128
        )
    with av.open(str(path)) as container:
        for frame in container.decode(audio=number):
            loud = np.flatnonzero(_levels(frame) > 0.2)
            if loud.size:
                return float(frame.pts * frame.time_base) + loud[0] / frame.sample_rate - white
    raise AssertionError("there is no tone")


def _levels(frame: AudioFrame) -> np.ndarray:
    """How loud samples are, from 0 to 1."""
    samples = frame.to_ndarray()
    if samples.dtype.kind == "i":
        samples = samples / np.iinfo(samples.dtype).max
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    return np.abs(samples).max(axis=0)
