"""Which tracks, tags and chapters of a file a written file takes; tells of the rest."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Stream
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

from wanvae.video.beside.languages import language_for
from wanvae.video.beside.sound import CopiedSound, EncodedSound
from wanvae.video.beside.source import Beside
from wanvae.video.beside.subtitles import CopiedSubtitles, RewrittenSubtitles
from wanvae.video.beside.tracks import LAYOUTS, Track, can_encode, holds, tags_of
from wanvae.video.common import MP4_FAMILY, Notices

if TYPE_CHECKING:
    from av.container.core import Chapter

# What sound and text become where a container cannot hold their codec, by names of encoders.
_SOUND = {"aac": "AAC", "libopus": "Opus"}
_TEXT = {"mov_text": "MOV text", "webvtt": "WebVTT", "subrip": "SRT"}
# Containers with chapters and tags.
_DESCRIBED = ("mov", "mp4", "matroska", "webm")
# How many names of tags are told.
_NAMED = 5


def choose_tracks(
    beside: Beside, source: InputContainer, output: OutputContainer, suffix: str, notices: Notices
) -> dict[int, Track]:
    """Adds streams to the output for what is carried. Returns their tracks by index in the source.

    Args:
        suffix: of the name of the written file.
        notices: tells what is left out, and what is encoded again.
    """
    end = beside.length
    tracks: dict[int, Track] = {}
    dropped: list[str] = []
    changed: dict[str, list[str]] = {}
    for stream in source.streams:
        if isinstance(stream, VideoStream) or _is_silent(stream, source, beside):
            continue
        track, change = None, None
        if isinstance(stream, AudioStream):
            track, change = _sound(stream, output, end)
        elif isinstance(stream, SubtitleStream):
            track, change = _subtitles(stream, output, end)
        if track is None:
            dropped.append(_name(stream))
            continue
        tracks[stream.index] = track
        if language_for(output.format.name, language := stream.language or "und") is None:
            dropped.append(f"language ({language})")
        if change is not None:
            changed.setdefault(change, []).append(_name(stream))
    for change, names in changed.items():
        notices.tell(f"{suffix} cannot hold its {_listed(names)}: {change}")
    if dropped:
        notices.tell(f"{suffix} cannot hold its {_listed(dropped)}: left out")
    return tracks


def write_tags(
    beside: Beside, source: InputContainer, output: OutputContainer, suffix: str, notices: Notices
) -> None:
    """Gives the output the tags and chapters of the source, as far as it holds them."""
    container = output.format.name
    tags = tags_of(source.metadata)
    chapters = _cut(source.chapters(), beside)
    held: Mapping[str, str] = {}
    if container in _DESCRIBED:
        held = _held(container, tags) if container in MP4_FAMILY else tags
        output.metadata.update(held)
        output.set_chapters(chapters)
        video = source.streams.best("video")
        if video is not None:
            kept = ("language", "title")
            tags_of_video = {name: video.metadata[name] for name in kept if name in video.metadata}
            output.streams.video[0].metadata.update(tags_of_video)
    lost = [name for name in tags if name not in held]
    more = ["..."] if len(lost) > _NAMED else []
    dropped = [f"tags ({', '.join(lost[:_NAMED] + more)})"] if lost else []
    if chapters and container not in _DESCRIBED:
        dropped.append("chapters")
    if dropped:
        notices.tell(f"{suffix} cannot hold its {_listed(dropped)}: left out")


def _is_silent(stream: Stream, source: InputContainer, beside: Beside) -> bool:
    """Returns whether a stream is no loss: sound that nobody wants, or the names of chapters."""
    if isinstance(stream, AudioStream):
        return not beside.sound
    return stream.type == "data" and stream.name == "bin_data" and bool(source.chapters())


def _sound(
    stream: AudioStream, output: OutputContainer, end: Fraction | None
) -> tuple[Track | None, str | None]:
    """Returns the track for sound, and what becomes of it; None if it is left out."""
    if stream.codec_context is None or not stream.rate or not stream.channels:
        return None, None
    container = output.format.name
    if holds(container, stream):
        return CopiedSound(stream, output, end), None
    mixed = "" if stream.channels in LAYOUTS else ", in stereo"
    for encoder, name in _SOUND.items() if container in MP4_FAMILY else reversed(_SOUND.items()):
        if can_encode(container, encoder):
            return EncodedSound(stream, output, end, encoder), f"encoded again as {name}{mixed}"
    return None, None


def _subtitles(
    stream: SubtitleStream, output: OutputContainer, end: Fraction | None
) -> tuple[Track | None, str | None]:
    """Returns the track for subtitles, and what becomes of them; None if they are left out."""
    if stream.codec_context is None:
        return None, None
    container = output.format.name
    if holds(container, stream):
        return CopiedSubtitles(stream, output, end), None
    for encoder, name in _TEXT.items():
        if stream.codec_context.codec.text_sub and can_encode(container, encoder):
            return RewrittenSubtitles(stream, output, end, encoder), f"rewritten as {name}"
    return None, None


def _cut(chapters: Sequence[Chapter], beside: Beside) -> list[Chapter]:
    """Returns chapters with their times in the written video, without those outside of it."""
    cut: list[Chapter] = []
    for chapter in chapters:
        tick = chapter["time_base"] or Fraction(1, av.time_base)
        begin, end = chapter["start"] * tick, chapter["end"] * tick
        if end <= beside.start or (beside.end is not None and begin >= beside.end):
            continue
        begin = max(begin, beside.start) - beside.start
        end = (end if beside.end is None else min(end, beside.end)) - beside.start
        times: Chapter = {
            "id": len(cut) + 1,
            "start": round(begin / tick),
            "end": round(end / tick),
            "time_base": tick,
            "metadata": chapter["metadata"],
        }
        cut.append(times)
    return cut


def _held(container: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the tags that are read back from a file of a kind whose names of tags are limited."""
    trial = io.BytesIO()
    with av.open(trial, "w", format=container, metadata_errors="replace") as file:
        file.add_stream("mpeg4", rate=1)
        file.metadata.update(tags)
        file.start_encoding()
    trial.seek(0)
    with av.open(trial, metadata_errors="replace") as file:
        found = {name.lower() for name in file.metadata}
    return {name: value for name, value in tags.items() if name.lower() in found}


def _name(stream: Stream) -> str:
    """Returns what people call a stream, with its codec."""
    kind = {"audio": "sound", "subtitle": "subtitles", "data": "data", "attachment": "attachment"}
    context = stream.codec_context
    codec = context.codec.canonical_name if context is not None else stream.name
    name = kind.get(stream.type, "data")
    return f"{name} ({codec})" if codec else name


def _listed(names: Sequence[str]) -> str:
    """Returns names in one sentence, each once with its number."""
    counts = {name: names.count(name) for name in names}
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())
