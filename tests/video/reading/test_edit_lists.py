"""What an edit list of MP4 and MOV hides is neither read nor counted, and times begin at 0."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from tests.video.reading.test_reading import X264, encode, number_of
from wanvae.video import VideoReader, probe, read_clip, read_video

GROUPS = {**X264, "g": "20", "bf": "2"}
RATE = 25


def cut(source: Path, target: Path, frames: int) -> Path:
    """Copies packets, so that the video begins so many frames later, or earlier if negative."""
    with (
        av.open(str(source)) as read,
        av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as written,
    ):
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        offset = int(Fraction(frames, RATE) / stream.time_base)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                packet.stream = copy
                written.mux(packet)
    return target


def check(path: Path, numbers: range) -> None:
    """Frames of these numbers come, at these times, and are counted."""
    with VideoReader(path, strict=True) as reader:
        assert reader.info.frames == len(numbers)
        assert reader.info.fps == RATE
        frames = list(reader)
    assert [number_of(frame.image) for frame in frames] == list(numbers)
    assert [frame.time for frame in frames] == [place / RATE for place in range(len(numbers))]
    assert probe(path).frames == len(numbers)
    video, _ = read_video(path)
    for first in (0, 5, len(numbers) - 3):
        assert torch.equal(read_clip(path, first / RATE, 3), video[:, first : first + 3])


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("frames", [10, 7, 23, -10])
def test_a_cut_between_keyframes(tmp_path: Path, suffix: str, frames: int) -> None:
    source = encode(tmp_path / "a.mp4", "libx264", options=GROUPS)
    path = cut(source, tmp_path / f"b.{suffix}", frames)
    check(path, range(max(0, frames), 60))


def test_an_end_before_the_last_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", options=GROUPS)
    content = bytearray(path.read_bytes())
    edit = content.find(b"elst") + 12  # after the name, the version and the number of edits
    duration, start, rate = struct.unpack(">iii", content[edit : edit + 12])
    assert (duration, rate) == (60 * 1000 // RATE, 0x10000)
    edited = duration - 1000, start + 10 * 12800 // RATE, rate  # ten frames, then fifteen
    content[edit : edit + 12] = struct.pack(">iii", *edited)
    path.write_bytes(content)
    check(path, range(10, 45))


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_a_first_time_that_is_not_zero(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"a.{suffix}", "libx264", range(500, 560), options=GROUPS)
    check(path, range(60))
