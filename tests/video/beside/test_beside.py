"""Sound, subtitles, chapters and tags go into a written video: the same packets, at the same time
from the pictures."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
import torch

from tests.helpers import write_sound
from tests.video.recordings import (
    SIZE,
    Sound,
    bytes_of,
    offset_of,
    packets_of,
    record,
    streams_of,
)
from wanvae.video import (
    Beside,
    VideoError,
    VideoReader,
    VideoWriter,
    beside_of,
    read_video,
    sound_of,
)
from wanvae.video.beside.restarts import continued
from wanvae.video.clock import time_of

PACKET = 1024 / 48_000  # seconds
TICK = 0.0011  # of Matroska, and a little
OPUS = Sound(codec="libopus")
SECONDS = (Fraction(0), Fraction(1), Fraction(3))
# Sources by name: what is recorded to them.
SOUNDS = {
    "aac.mp4": Sound(),
    "aac.mkv": Sound(),
    "opus.mkv": OPUS,
    "flac.mkv": Sound(codec="flac"),
    "mp3.mkv": Sound(codec="libmp3lame"),
    "pcm.mov": Sound(codec="pcm_s16le"),
    "ac3.mkv": Sound(codec="ac3"),
    "aac44.flv": Sound(rate=44_100),
    "mp2.ts": Sound(codec="mp2"),
    "aac.ts": Sound(),
}
COPIED = [
    *((name, suffix) for name in SOUNDS for suffix in (".mp4", ".mkv")),
    *((name, ".mov") for name in SOUNDS if not name.startswith(("opus", "flac"))),
    ("opus.mkv", ".webm"),
]
ENCODED = [
    ("aac.mp4", ".webm", "aac", "Opus"),
    ("pcm.mov", ".webm", "pcm_s16le", "Opus"),
    ("aac44.flv", ".webm", "aac", "Opus"),
    ("opus.mkv", ".mov", "opus", "AAC"),
    ("flac.mkv", ".mov", "flac", "AAC"),
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording of each kind."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, sound in SOUNDS.items():
        record(folder / name, [sound])
    return folder


def copy(source: Path, path: Path, start: float = 0, duration: float | None = None) -> Path:
    """Writes the pictures of a part of a video, and what lies beside them."""
    end = None if duration is None else start + duration
    with VideoReader(source) as reader:
        reader.seek(start)
        frames = [frame for frame in reader if end is None or frame.time < end]
        first = frames[0].time
        beside = beside_of(reader, first, end)
        fps = reader.info.fps
    with VideoWriter(path, width=SIZE, height=SIZE, fps=fps, beside=beside) as writer:
        for frame in frames:
            writer.write(frame.image[:, None], [frame.time - first])
    assert len(read_video(path)[0][0]) == len(frames)
    return path


def test_the_offset_is_measured(tmp_path: Path) -> None:
    """The tone of these recordings begins half a second before and after the picture changes."""
    for shift in (-1, 1):
        sound = Sound(begin=Fraction(shift, 2), tone=2 + Fraction(shift, 2))
        path = record(tmp_path / "a.mkv", [sound], begin=Fraction(1))
        assert offset_of(path) == pytest.approx(shift / 2, abs=0.001)


@pytest.mark.parametrize(("name", "suffix"), COPIED)
def test_packets_are_the_same_and_in_step(
    recordings: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    source = recordings / name
    path = copy(source, tmp_path / f"out{suffix}")
    assert bytes_of(path) == bytes_of(source)
    assert offset_of(path) == pytest.approx(offset_of(source), abs=TICK)
    if not name.startswith("pcm"):  # whose packets .mov divides anew
        times, expected = ([time for time, _ in packets_of(each)] for each in (path, source))
        steps = [time - times[0] for time in times]
        assert steps == pytest.approx([time - expected[0] for time in expected], abs=2 * TICK)


@pytest.mark.parametrize(("name", "suffix"), COPIED)
def test_an_excerpt_has_the_sound_of_its_time(
    recordings: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    source = recordings / name
    path = copy(source, tmp_path / f"out{suffix}", 1.03, 1.5)
    assert bytes_of(path) in bytes_of(source)
    assert offset_of(path) == pytest.approx(offset_of(source), abs=TICK)
    (first, last), length = span_of(path), packets_of(source)[2][0] - packets_of(source)[1][0]
    if name.startswith("pcm"):
        length = PACKET
    assert -2.1 * length <= first <= length + TICK
    assert 1.5 - 0.04 - length - TICK <= last <= 1.5


def span_of(path: Path) -> tuple[float, float]:
    """Times of the first and last packet of sound, in seconds from the first picture."""
    times = [time for time, _ in packets_of(path)]
    return times[0] - first_time(path), times[-1] - first_time(path)


def first_time(path: Path) -> float:
    return min(time for time, _ in packets_of(path, "video"))


def shifted(
    source: Path, path: Path, seconds: Fraction, options: dict[str, str] | None = None
) -> Path:
    """Copies the packets of a video, so that they come so much earlier."""
    options = options or {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as read, av.open(str(path), "w", options=options) as written:
        streams = [written.add_stream_from_template(stream) for stream in read.streams]
        for packet in read.demux():
            if packet.dts is not None and packet.pts is not None:
                offset = round(seconds / packet.time_base)
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                packet.stream = streams[packet.stream.index]
                written.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_an_edit_list_hides_is_not_heard(
    recordings: Path, tmp_path: Path, suffix: str
) -> None:
    source = shifted(recordings / "aac.mp4", tmp_path / "cut.mp4", Fraction(1))
    assert len(packets_of(source)) > 2.9 / PACKET  # all are in the file
    path = copy(source, tmp_path / f"out{suffix}")
    assert first_time(path) < PACKET
    assert 2 / PACKET - 2 < len(packets_of(path)) < 2 / PACKET + 4
    assert offset_of(path) == pytest.approx(0, abs=0.003)


def test_a_gap_before_the_pictures_hides_no_sound(recordings: Path, tmp_path: Path) -> None:
    """In fragments of MP4 the first packet lasts until the next, with a gap that has no sound."""
    options = {"movflags": "frag_keyframe+empty_moov"}
    source = shifted(recordings / "aac.mp4", tmp_path / "live.mp4", Fraction(0), options)
    path = copy(source, tmp_path / "out.mp4")
    with av.open(str(path)) as container:
        frame = next(container.decode(container.streams.audio[0]))
    assert frame.pts * frame.time_base < PACKET
    assert offset_of(path) == pytest.approx(0, abs=0.003)


@pytest.mark.parametrize(("name", "suffix", "codec", "encoder"), ENCODED)
@pytest.mark.parametrize(("start", "duration"), [(0, None), (1.03, 1.5)])
def test_other_codecs_are_encoded_again_in_step(
    recordings: Path,
    tmp_path: Path,
    name: str,
    suffix: str,
    codec: str,
    encoder: str,
    start: float,
    duration: float | None,
) -> None:
    told = rf"{name}: {suffix} cannot hold its sound \({codec}\): encoded again as {encoder}$"
    with pytest.warns(UserWarning, match=told) as caught:
        path = copy(recordings / name, tmp_path / f"out{suffix}", start, duration)
    assert len(caught) == 1
    assert streams_of(path, "audio")[0].codec == encoder.lower()
    assert offset_of(path) == pytest.approx(offset_of(recordings / name), abs=2 * TICK)
    first, last = span_of(path)
    assert first == pytest.approx(0, abs=0.03)
    assert last == pytest.approx(duration or 3, abs=0.07)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
@pytest.mark.parametrize(("begin", "end"), [(0.5, 3), (0, 5), (0, 1.2), (-0.7, 4), (2.5, 3)])
def test_sound_that_begins_or_ends_elsewhere(
    tmp_path: Path, suffix: str, begin: float, end: float
) -> None:
    codec = "libopus" if suffix == ".webm" else "aac"
    sound = Sound(codec=codec, begin=1 + Fraction(begin), end=1 + Fraction(end))
    source = record(tmp_path / "a.mkv", [sound], begin=Fraction(1), end=Fraction(4))
    path = copy(source, tmp_path / f"out{suffix}")
    first, last = span_of(path)
    assert first == pytest.approx(max(begin, 0), abs=2 * PACKET)
    assert last == pytest.approx(end, abs=3 * PACKET)
    assert bytes_of(source).endswith(bytes_of(path))
    if end > 2 and begin < 1:
        assert offset_of(path) == pytest.approx(offset_of(source), abs=TICK)


def test_pictures_at_other_distances(tmp_path: Path) -> None:
    times = [Fraction(t, 1000) for t in (0, 31, 200, 234, 900, 1000, 1700, 2000, 2500)]
    source = record(tmp_path / "a.mp4", times=times, begin=Fraction(0))
    path = copy(source, tmp_path / "b.mkv")
    assert offset_of(path) == pytest.approx(offset_of(source), abs=TICK)
    assert bytes_of(path) == bytes_of(source)


@pytest.mark.parametrize("codec", ["pcm_s16le", "libmp3lame"])
def test_avi_counts_packets(tmp_path: Path, codec: str) -> None:
    """Pictures have no times and are stored in another order; the first is at the beginning."""
    source = record(tmp_path / "a.avi", [Sound(codec=codec)], codec="mpeg4")
    path = copy(source, tmp_path / "b.mp4")
    assert bytes_of(path) == bytes_of(source)
    assert offset_of(path) == pytest.approx(0, abs=0.025)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.filterwarnings("ignore:.*(its clock restarts|encoded again)")
def test_joined_recordings_stay_in_step(tmp_path: Path, suffix: str) -> None:
    """Sound follows the clock of the pictures, though the first recordings have more sound."""
    first = record(tmp_path / "a.ts", [Sound(end=Fraction(16, 5))], change=Fraction(9))
    last = record(tmp_path / "b.ts")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(2 * first.read_bytes() + last.read_bytes())
    path = copy(joined, tmp_path / f"out{suffix}")
    assert offset_of(path) == pytest.approx(0, abs=0.002)
    assert len(read_video(path)[0][0]) == 225
    excerpt = copy(joined, tmp_path / f"excerpt{suffix}", 7)
    assert offset_of(excerpt) == pytest.approx(0, abs=0.002)


def test_a_long_silence_is_no_restart(tmp_path: Path) -> None:
    """MPEG streams may leave out sound for longer than their clock may pause."""
    length = Fraction(30)
    path = record(tmp_path / "a.ts", [Sound(end=length)], end=length, fps=5)
    with av.open(str(path)) as container:
        times = []

        def with_gap() -> Iterator[av.Packet]:
            for packet in container.demux():
                time = time_of(packet)
                if packet.stream.type != "audio":
                    yield packet
                elif time is not None and not 8 < time < 23:
                    times.append(time)
                    yield packet

        assert [time for time, _ in continued(with_gap(), container.streams.video[0])] == times
    assert max(b - a for a, b in pairwise(times)) > 12


@pytest.mark.parametrize("source_suffix", [".mp4", ".mkv", ".ts"])
def test_an_excerpt_from_far_within(tmp_path: Path, source_suffix: str) -> None:
    source = record(
        tmp_path / f"a{source_suffix}",
        [Sound(end=Fraction(40))],
        end=Fraction(40),
        change=Fraction(32),
        fps=5,
    )
    path = copy(source, tmp_path / "b.mp4", 30, 4)
    assert offset_of(path) == pytest.approx(offset_of(source), abs=TICK)
    assert bytes_of(path) in bytes_of(source)
    assert 4 / PACKET <= len(packets_of(path)) <= 4 / PACKET + 3


# Tracks, tags, chapters and subtitles

CHAPTERS = [(Fraction(0), Fraction(1), "one"), (Fraction(1), Fraction(3), "two")]
TEXTS = [
    (Fraction(1, 2), Fraction(1), "before"),
    (Fraction(1), Fraction(2), "Hello <i>you</i>"),
    (Fraction(21, 10), Fraction(28, 10), "é end"),
]


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two languages, tags, chapters and subtitles."""
    sounds = [Sound(codec="libopus", language="fra"), Sound(codec="libopus", language="eng")]
    sounds[1] = Sound(codec="libopus", language="eng", disposition=1)
    tags = {"title": "A title", "artist": "Somebody"}
    path = tmp_path_factory.mktemp("rich") / "rich.mkv"
    return record(path, sounds, tags=tags, chapters=CHAPTERS, texts=TEXTS)


TEXT_CODECS = {".mkv": None, ".mp4": "MOV text", ".webm": "WebVTT"}


@pytest.mark.parametrize("suffix", TEXT_CODECS)
@pytest.mark.parametrize("start", [0, 1.52])
def test_all_that_lies_beside_pictures(
    rich: Path, tmp_path: Path, suffix: str, start: float, recwarn: pytest.WarningsRecorder
) -> None:
    path = copy(rich, tmp_path / f"out{suffix}", start, None if start == 0 else 1)
    sounds = streams_of(path, "audio")
    assert [sound.language for sound in sounds] == ["fra", "eng"]
    assert [bool(sound.disposition & 1) for sound in sounds] == [False, True]
    for number in (0, 1):
        assert bytes_of(path, number=number) in bytes_of(rich, number=number)
    tags = {name.lower(): value for name, value in tags_of(path).items()}
    assert tags["title"] == "A title"
    assert tags["artist"] == "Somebody"
    assert chapters_of(path) == ([(0, 1, "one"), (1, 3, "two")] if start == 0 else [(0, 1, "two")])
    shown = texts_of(path)
    if start == 0:
        assert shown == [(0.5, 1, "before"), (1, 2, "Hello you"), (2.1, 2.8, "é end")]
    else:
        assert shown == [
            (0, pytest.approx(0.48, abs=TICK), "Hello you"),
            (pytest.approx(0.58, abs=TICK), pytest.approx(1, abs=0.03), "é end"),
        ]
    assert streams_of(path, "subtitle")[0].language == "fra"
    codec = TEXT_CODECS[suffix]
    told = [f"{rich}: {suffix} cannot hold its subtitles (subrip): rewritten as {codec}"]
    assert [str(each.message) for each in recwarn] == (told if codec else [])


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.filterwarnings("ignore:.*rewritten as MOV text")
def test_overlapping_texts_are_shown_together(tmp_path: Path, suffix: str) -> None:
    texts = [
        (SECONDS[0], Fraction(6, 5), "one, a"),
        (SECONDS[1], Fraction(2), "two, b"),
        (SECONDS[1], Fraction(3, 2), "three"),
        (Fraction(5, 2), Fraction(28, 10), "four"),
    ]
    source = record(tmp_path / "a.mkv", (), texts=texts)
    shown = [
        (0, 1, "one, a"),
        (1, 1.2, "one, a\ntwo, b\nthree"),
        (1.2, 1.5, "two, b\nthree"),
        (1.5, 2, "two, b"),
        (2.5, 2.8, "four"),
    ]
    found = [
        (round(begin, 2), round(end, 2), text)
        for begin, end, text in texts_of(copy(source, tmp_path / f"out{suffix}"))
    ]
    assert found == shown
    part = texts_of(copy(source, tmp_path / f"part{suffix}", 1.1, 0.3))
    assert [text for *_, text in part] == ["one, a\ntwo, b\nthree", "two, b\nthree"]


def tags_of(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return dict(container.metadata)


def chapters_of(path: Path) -> list[tuple[float, float, str]]:
    with av.open(str(path)) as container:
        return [
            (
                round(each["start"] * (each["time_base"] or 1) + 0.02, 1),
                round(each["end"] * (each["time_base"] or 1) + 0.02, 1),
                each["metadata"]["title"],
            )
            for each in container.chapters()
        ]


def texts_of(path: Path) -> list[tuple[float, float, str]]:
    """Begin, end and text of subtitles, from the first picture."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        for packet in container.demux(stream):
            decoded = stream.decode2(packet) if packet.size else None
            for part in decoded.rects if decoded is not None else ():
                text = re.sub(r"\{.*?\}", "", part.dialogue.decode())  # without styles
                begin = float(packet.pts * packet.time_base) - first_time(path)
                end = begin + float(packet.duration * packet.time_base)
                found.append((round(begin, 3), round(end, 3), text))
    return found


def test_what_a_format_cannot_hold_is_told(tmp_path: Path) -> None:
    source = record(tmp_path / "a.mkv", tags={"MOOD": "x", "title": "y"}, chapters=CHAPTERS)
    with pytest.warns(UserWarning) as caught:
        path = copy(source, tmp_path / "out.mp4")
    assert [str(each.message) for each in caught] == [
        f"{source}: .mp4 cannot hold its tags (MOOD): left out"
    ]
    assert "MOOD" not in tags_of(path)
    with pytest.warns(UserWarning) as caught:
        copy(source, tmp_path / "out.apng")
    assert [str(each.message) for each in caught] == [
        f"{source}: .apng cannot hold its sound (aac): left out",
        f"{source}: .apng cannot hold its tags (title, MOOD), chapters: left out",
    ]
    with pytest.warns(UserWarning) as caught:
        copy(source, tmp_path / "frames" / "%05d.png")
    assert [".png cannot hold its sound" in str(each.message) for each in caught] == [
        True,
        False,
        False,
    ]


def test_languages_that_a_format_does_not_know(tmp_path: Path) -> None:
    """QuickTime calls German "ger"; other codes it does not know."""
    sounds = [Sound(language=code) for code in ("deu", "eng", "gsw")]
    source = record(tmp_path / "a.mkv", sounds, end=Fraction(1))
    path = copy(source, tmp_path / "out.mp4")
    assert [each.language for each in streams_of(path, "audio")] == ["deu", "eng", "gsw"]
    with pytest.warns(UserWarning, match=r"\.mov cannot hold its language \(gsw\): left out"):
        path = copy(source, tmp_path / "out.mov")
    assert [each.language for each in streams_of(path, "audio")] == ["ger", "eng", None]


def test_attachments_are_told(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", attachment=b"font")
    told = r"a\.mkv: \.mp4 cannot hold its attachment \(font.ttf\): left out"
    with pytest.warns(UserWarning, match=told):
        copy(path, tmp_path / "out.mp4")


def test_sound_is_left_out_on_request(rich: Path, tmp_path: Path) -> None:
    beside = Beside(source=rich, start=Fraction(0), sound=False)
    path = tmp_path / "out.mkv"
    with VideoWriter(path, width=SIZE, height=SIZE, fps=Fraction(25), beside=beside) as writer:
        writer.write(torch.zeros(3, 75, SIZE, SIZE))
    assert not streams_of(path, "audio")
    assert tags_of(path)["title"] == "A title"
    assert len(texts_of(path)) == 3


def test_sound_of_a_file_without_pictures(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav")  # a tenth of a second
    beside = sound_of(tmp_path / "a.wav", 0.02, 0.06)
    path = tmp_path / "out.mkv"
    with VideoWriter(path, width=SIZE, height=SIZE, fps=Fraction(25), beside=beside) as writer:
        writer.write(torch.zeros(3, 5, SIZE, SIZE))
    assert bytes_of(path) in bytes_of(tmp_path / "a.wav")
    record(tmp_path / "silent.mp4", [])
    with pytest.raises(VideoError, match=r"silent\.mp4 has no sound"):
        sound_of(tmp_path / "silent.mp4", 0, 1)
    with pytest.raises(VideoError, match=r"cannot read .*gone\.wav"):
        sound_of(tmp_path / "gone.wav", 0, 1)


def test_images_have_nothing_beside_them(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.png", width=8, height=8, fps=Fraction(1)) as writer:
        writer.write(torch.zeros(3, 1, 8, 8))
    with VideoReader(tmp_path / "a.png") as reader:
        assert beside_of(reader) is None


# Damage and interruption


def damaged(content: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    """Returns a file with wrong bytes in some packets."""
    wrong = bytearray(content)
    for _ in range(rng.choice([1, 20])):
        position, size = rng.choice(spots)
        count = min(size, rng.randrange(1, 60))
        first = position + rng.randrange(size - count + 1) - rng.choice([0, 8])
        wrong[first : first + count] = rng.randbytes(count)
    return bytes(wrong)


@pytest.mark.parametrize("name", ["aac.mp4", "opus.mkv", "flac.mkv", "aac.ts", "ac3.mkv"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_sound_does_not_lose_pictures(recordings: Path, tmp_path: Path, name: str) -> None:
    source = recordings / name
    with av.open(str(source)) as container:
        spots = [(p.pos, p.size) for p in container.demux(audio=0) if p.pos and p.size]
    rng = random.Random(name)
    broken = tmp_path / f"broken{source.suffix}"
    for _ in range(4):
        broken.write_bytes(damaged(source.read_bytes(), spots, rng))
        for suffix in (".mp4", ".mov", ".mkv"):
            copy(broken, tmp_path / f"out{suffix}")  # counts frames


def test_damaged_sound_is_told(recordings: Path, tmp_path: Path) -> None:
    source = recordings / "aac.ts"
    with av.open(str(source)) as container:
        spots = [packet.pos for packet in container.demux(audio=0) if packet.pos]
    wrong = bytearray(source.read_bytes())
    middle = spots[len(spots) // 2]
    start = wrong.index(b"\xff\xf1", middle)
    wrong[start + 2 : start + 12] = bytes(10)
    broken = tmp_path / "broken.ts"
    broken.write_bytes(wrong)
    told = r"broken\.ts: its sound or subtitles are damaged; parts from \d\.\d\d s on are left out"
    with pytest.warns(UserWarning, match=told) as caught:
        path = copy(broken, tmp_path / "out.mp4")
    assert len(caught) == 1
    assert len(packets_of(path)) > len(packets_of(source)) / 2


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_interrupted_file_is_deleted(recordings: Path, tmp_path: Path, suffix: str) -> None:
    beside = Beside(source=recordings / "aac.mp4", start=Fraction(0))
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"earlier")
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(path, width=SIZE, height=SIZE, fps=Fraction(25), beside=beside) as writer,
    ):
        writer.write(torch.zeros(3, 30, SIZE, SIZE))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"earlier"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    gone = Beside(source=tmp_path / "gone.mp4", start=Fraction(0))
    with pytest.raises(VideoError, match=r"cannot read .*gone\.mp4"):
        VideoWriter(path, width=SIZE, height=SIZE, fps=Fraction(25), beside=gone)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


MEASURE = """
import re, sys
from fractions import Fraction
import torch
from wanvae.video import Beside, VideoWriter
source, seconds = sys.argv[1], int(sys.argv[2])
beside = Beside(source=source, start=Fraction(0))
frame = torch.zeros(3, 1, 16, 16)
with VideoWriter("out.mkv", width=16, height=16, fps=Fraction(5), beside=beside) as writer:
    for _ in range(5 * seconds):
        writer.write(frame)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory that was used")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Ten minutes of sound are 115 MB."""
    used = []
    for seconds in (20, 600):
        sound = Sound(codec="pcm_s16le", end=Fraction(seconds))
        source = record(tmp_path / "a.mkv", [sound], end=Fraction(seconds), fps=1)
        command = [sys.executable, "-c", MEASURE, str(source), str(seconds)]
        result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        used.append(int(result.stdout))
    assert (tmp_path / "out.mkv").stat().st_size > 100e6
    assert used[1] < used[0] + 20
