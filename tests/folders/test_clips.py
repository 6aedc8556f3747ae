"""Clips of videos: which there are, which frames they have, how those are scaled and cropped."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wanvae import WanVAEConfig
from wanvae.folders.clips import Clip, find_clips, fit, parse_cut
from wanvae.folders.frames import ClipError, Cutter, read_clips
from wanvae.folders.manifest import Entry, load_entries
from wanvae.video import VideoError, VideoReader, VideoWriter, read_video, write_video
from wanvae.video.reading.packets import PacketSource

CONFIG = WanVAEConfig()
STEP = 0.03


def numbered(frames: int, height: int = 16, width: int = 16) -> Tensor:
    """A video whose brightness tells the number of each frame."""
    levels = torch.arange(frames) * STEP - 0.9
    return levels[None, :, None, None].expand(3, frames, height, width)


def numbers(images: Sequence[Tensor]) -> list[int]:
    """The numbers of such frames."""
    return [round((image.mean().item() + 0.9) / STEP) for image in images]


def clips_of(folder: Path, **options: object) -> list[Clip]:
    cut = parse_cut(*(options.get(name) for name in ("frames", "fps", "resize")), CONFIG)
    return list(find_clips(load_entries(folder), cut, CONFIG).clips)


# Frames at another rate


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), Fraction(30000, 1001)])
@pytest.mark.parametrize("fps", ["5", "8", "12.5", "15", "16", "30", "60"])
def test_frames_are_those_shown_at_the_time(
    tmp_path: Path, suffix: str, rate: Fraction, fps: str
) -> None:
    path, wanted = tmp_path / f"a{suffix}", Fraction(fps)
    write_video(path, numbered(40), rate)
    with VideoReader(path) as reader:
        frames = list(reader.at_rate(wanted))
    times = [number / wanted for number in range(len(frames))]
    # Timestamps are rounded, in mkv to 1 ms.
    for number, time in zip(numbers([frame.image for frame in frames]), times, strict=True):
        assert int(time * rate) <= number <= int((time + Fraction(1, 1000)) * rate)
    assert [frame.time for frame in frames] == pytest.approx([float(time) for time in times])
    assert abs(len(frames) / wanted - 40 / rate) <= 1 / wanted + Fraction(1, 1000)


@pytest.mark.parametrize("first", [0, 1, 3, 7, 20, 31])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_from_the_middle_are_the_same(tmp_path: Path, suffix: str, first: int) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, numbered(60), Fraction(30000, 1001))
    with VideoReader(path) as reader:
        whole = list(reader.at_rate(Fraction(16)))
    with VideoReader(path) as reader:
        rest = list(reader.at_rate(Fraction(16), first))
    assert [frame.time for frame in rest] == [frame.time for frame in whole[first:]]
    assert all(torch.equal(a.image, b.image) for a, b in zip(rest, whole[first:], strict=True))


def test_variable_rates(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.55, 0.6, 2.0]
    with VideoWriter(tmp_path / "a.mkv", width=16, height=16, fps=Fraction(25)) as writer:
        writer.write(numbered(6), times)
    with VideoReader(tmp_path / "a.mkv") as reader:
        shown = numbers([frame.image for frame in reader.at_rate(Fraction(5))])
    assert shown[:11] == [0, 1, 1, 4, 4, 4, 4, 4, 4, 4, 5]


# Seeking goes on where that is near


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_going_on_gives_what_seeking_gives(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, numbered(60), Fraction(25))
    with VideoReader(path) as reader:
        for start in (3, 4, 12, 13, 2, 2, 50, 59, 0, 1):
            reader.seek(start / 25)
            assert numbers([next(reader).image]) == [start]


# Which clips


def test_whole_videos_lose_at_most_three_frames(tmp_path: Path) -> None:
    for length in (1, 4, 5, 12):
        write_video(tmp_path / f"{length:02}.mp4", numbered(length), Fraction(25))
    clips = clips_of(tmp_path)
    read = [frame.time for _, frame in read_clips(clips, tmp_path, 4)]
    assert [clip.whole for clip in clips] == [True] * 4
    assert read == pytest.approx([n / 25 for length in (1, 1, 5, 9) for n in range(length)])


@pytest.mark.parametrize("fps", [None, "25", "16", "50"])
def test_clips_follow_each_other(tmp_path: Path, fps: str | None) -> None:
    write_video(tmp_path / "a.mkv", numbered(47), Fraction(25))
    clips = clips_of(tmp_path, frames=5, fps=fps)
    rate = Fraction(fps or 25)
    assert len(clips) == int(47 * rate / 25) // 5
    assert [clip.start for clip in clips] == [5 * n / rate for n in range(len(clips))]
    frames = [frame for _, frame in read_clips(clips, tmp_path, 4)]
    expected = [int(n * 25 / rate + Fraction(1, 50)) for n in range(5 * len(clips))]
    assert numbers([frame.image for frame in frames]) == expected
    assert [f.time for f in frames] == pytest.approx(
        [n / float(rate) for n in range(5 * len(clips))], abs=2e-3
    )
    # Each alone, and those that a run that goes on has left, are the same.
    alone = [frame for clip in clips for _, frame in read_clips([clip], tmp_path, 4)]
    some = [frame for _, frame in read_clips(clips[::2], tmp_path, 4)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(alone, frames, strict=True))
    assert numbers([frame.image for frame in some]) == [
        expected[5 * n + k] for n in range(0, len(clips), 2) for k in range(5)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_clips_of_variable_rates_are_frames_in_a_row(
    tmp_path: Path, suffix: str, seed: int
) -> None:
    """Every frame of the file is used once, with the time that it has in the file."""
    count, path = 42, tmp_path / f"a{suffix}"
    steps = torch.tensor([0.008, 0.04, 0.04, 0.2, 1.5])
    chosen = torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(seed))
    times = [round(time.item(), 3) for time in steps[chosen].double().cumsum(0)]
    with VideoWriter(path, width=16, height=16, fps=Fraction(25)) as writer:
        writer.write(numbered(count), [time - times[0] for time in times])
    with VideoReader(path) as reader:
        expected = [(number, frame.time) for number, frame in enumerate(reader)]
    clips = clips_of(tmp_path, frames=5)
    assert [clip.first for clip in clips] == list(range(0, count - 4, 5))

    def read(some: Sequence[Clip]) -> list[tuple[int, float]]:
        frames = [frame for _, frame in read_clips(some, tmp_path, 4)]
        shown = numbers([frame.image for frame in frames])
        return list(zip(shown, (frame.time for frame in frames), strict=True))

    assert read(clips) == expected[:40]
    # Each alone, and those that a run that goes on has left, in any order, are the same.
    assert [pair for clip in clips for pair in read([clip])] == expected[:40]
    backward = [clips[6], clips[3], clips[4], clips[0]]
    assert read(backward) == [
        pair for clip in backward for pair in expected[clip.first : clip.first + 5]
    ]


def test_clips_after_the_damage_fail_without_reading_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mkv"
    noise = torch.rand(3, 60, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(path, noise, Fraction(25))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    entry = Entry(path="a.mkv", size=1, mtime=1, width=40, height=24, frames=60, fps=25.0)
    clips = find_clips([entry], parse_cut(5, None, None, CONFIG), CONFIG).clips
    opened, open_ = [], PacketSource._open
    monkeypatch.setattr(PacketSource, "_open", lambda self: opened.append(1) or open_(self))
    errors = {
        clip.first: str(item)
        for clip, item in read_clips(clips, tmp_path, 4)
        if isinstance(item, ClipError)
    }
    assert 2 < len(errors) < len(clips) - 2 and len(opened) == 1
    assert set(errors) == {clip.first for clip in clips[-len(errors) :]}
    assert all("damaged or cut short" in error for error in errors.values())


def test_a_video_that_changes_after_it_was_listed_is_a_failure(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(9), Fraction(25))
    clips = clips_of(tmp_path, frames=5)
    write_video(tmp_path / "a.mp4", numbered(9).flip(1), Fraction(25))
    (pair,) = read_clips(clips, tmp_path, 4)
    assert "has changed since it was listed" in str(pair[1])


def test_a_clip_whose_name_is_taken_is_a_failure(tmp_path: Path) -> None:
    values = {"size": 1, "mtime": 1, "width": 24, "height": 16, "frames": 9, "fps": 25.0}
    entries = [
        Entry(path="a.tar", member="v.mp4", **values),
        Entry(path="a.tar", member="./v.mp4", **values),
        Entry(path="b.mp4", **values),
    ]
    found = find_clips(entries, parse_cut(5, None, None, CONFIG), CONFIG)
    assert [clip.name for clip in found.clips] == ["a.tar/v.mp4.00000", "b.mp4.00000"]
    (failure,) = found.broken
    assert failure.source == "a.tar/./v.mp4" and "as a.tar/v.mp4 does; rename" in failure.reason


def test_a_damaged_video_ends_only_its_clip(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, numbered(9), Fraction(25))
    clips = clips_of(tmp_path, frames=5)
    (tmp_path / "a.mp4").write_text("no video")
    read = list(read_clips(clips, tmp_path, 4))
    assert [clip.name for clip, _ in read] == ["a.mp4.00000"] + 5 * ["b.mp4.00000"]
    assert isinstance(read[0][1], ClipError) and "has changed since it was listed" in str(
        read[0][1]
    )


def test_images_are_clips_of_one_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.png", numbered(1), Fraction(1))
    write_video(tmp_path / "b.mp4", numbered(5), Fraction(25))
    assert [clip.name for clip in clips_of(tmp_path)] == ["a.png", "b.mp4"]
    names = [f"b.mp4.0000{n}" for n in range(5)]
    assert [clip.name for clip in clips_of(tmp_path, frames=1)] == ["a.png", *names]
    assert [clip.name for clip in clips_of(tmp_path, frames=5)] == ["a.png", "b.mp4.00000"]
    assert [clip.fps for clip in clips_of(tmp_path, fps="8")] == [1, 8]


@given(
    frames=st.integers(1, 200),
    wanted=st.integers(0, 10).map(lambda n: 1 + 4 * n),
    fps=st.sampled_from([None, "5", "16", "24000/1001", "60"]),
    rate=st.sampled_from([24.0, 25.0, 30000 / 1001, 59.94]),
)
def test_clips_cover_a_video(frames: int, wanted: int, fps: str | None, rate: float) -> None:
    entry = Entry(path="a.mp4", size=1, mtime=1, width=24, height=16, frames=frames, fps=rate)
    found = find_clips([entry], parse_cut(wanted, fps, None, CONFIG), CONFIG)
    clips = found.clips
    assert len({clip.name for clip in clips}) == len(clips)
    assert [clip.first for clip in clips] == [n * wanted for n in range(len(clips))]
    used = len(clips) * wanted / float(Fraction(fps or rate))
    assert used <= frames / rate + 1 / float(Fraction(fps or rate)) + 1e-6
    assert frames / rate - used < wanted / float(Fraction(fps or rate)) + 1e-6
    assert bool(found.left_out) == (not clips)


# Sizes


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    resize=st.one_of(
        st.just(()),
        st.tuples(st.integers(8, 1000)),
        st.tuples(*2 * [st.integers(1, 100).map(lambda n: 8 * n)]),
    ),
)
def test_sizes_are_covered_and_no_more(height: int, width: int, resize: tuple[int, ...]) -> None:
    scaled, size = fit(height, width, resize, 8)
    spare = [outer - inner for outer, inner in zip(scaled, size, strict=True)]
    assert min(spare) >= 0 and all(side % 8 == 0 for side in size)
    if len(resize) == 2:
        assert size == resize and min(spare) == 0
    else:
        assert max(spare) < 8
        assert not resize or min(scaled) == resize[0]
    if not resize:
        assert scaled == (height, width)


def test_frames_are_cropped_in_the_middle(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    write_video(tmp_path / "a.png", torch.rand(3, 1, 30, 45, generator=generator), Fraction(1))
    image = read_video(tmp_path / "a.png")[0][:, 0]

    def cut(resize: str | None) -> Tensor:
        (clip,) = clips_of(tmp_path, resize=resize)
        ((_, frame),) = read_clips([clip], tmp_path, 4)
        return frame.image

    assert torch.equal(cut(None), image[:, 3:27, 2:42])
    half = F.interpolate(image[None], (16, 24), mode="bilinear", antialias=True)[0]
    assert torch.equal(cut("16"), half)
    assert torch.equal(cut("16x8"), half[:, :, 8:16])
    assert cut("64x32").shape == (3, 64, 32)


ENDS = [0.04, 0.1, 0.3, 0.35, 0.9, 1.0, 1.04, 3.0, 3.1, 3.15, 4.0]


@pytest.fixture
def irregular(tmp_path: Path) -> Path:
    """A folder with a video whose frames end at ``ENDS``."""
    with VideoWriter(tmp_path / "a.mp4", width=16, height=16, fps=Fraction(25)) as writer:
        writer.write(numbered(len(ENDS)), (0.0, *ENDS[:-1]))
        writer.end_at(ENDS[-1])
    return tmp_path


@pytest.mark.parametrize("frames", [None, 1, 5])
def test_frames_of_clips_end_when_the_next_one_begins(irregular: Path, frames: int | None) -> None:
    clips = clips_of(irregular, frames=frames)
    ends = [frame.end for _, frame in read_clips(clips, irregular, 4)]
    # Without lengths, frames that fill no group are dropped; with lengths, those after clips.
    assert ends == pytest.approx(ENDS[: len(ends)], abs=1e-4)
    assert len(ends) == {None: 9, 1: 11, 5: 10}[frames]


def test_frames_at_another_rate_last_as_long_as_each_other(irregular: Path) -> None:
    clips = clips_of(irregular, frames=5, fps="2")
    ends = [frame.end for _, frame in read_clips(clips, irregular, 4)]
    assert ends == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5])


def test_damage_after_a_clip_does_not_end_the_clip(
    irregular: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last frame of the clip ends nobody knows when; the next clip needs the damaged frame."""
    read = VideoReader.next_time

    def damaged(reader: VideoReader) -> Fraction:
        if read(reader) > 0.8:
            raise VideoError("it is damaged")
        return read(reader)

    monkeypatch.setattr(VideoReader, "next_time", damaged)
    clips = clips_of(irregular, frames=5)
    found = [item for _, item in read_clips(clips, irregular, 4)]
    assert len(clips) == 2 and isinstance(found.pop(), ClipError)
    assert [frame.end for frame in found] == [*map(pytest.approx, ENDS[:4]), None]
    # A clip of the whole video needs them all.
    *_, last = [item for _, item in read_clips(clips_of(irregular), irregular, 4)]
    assert isinstance(last, ClipError)


def test_a_video_is_opened_once_for_clips_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "a.mp4", numbered(40), Fraction(25))
    clips = clips_of(tmp_path, frames=5)
    opened, sought = [], []
    open_, seek = PacketSource._open, VideoReader._seek_before
    monkeypatch.setattr(PacketSource, "_open", lambda self: opened.append(1) or open_(self))
    monkeypatch.setattr(
        VideoReader, "_seek_before", lambda self, start: sought.append(1) or seek(self, start)
    )
    cutter = Cutter(tmp_path)
    for clip in clips:
        assert len(list(cutter.cut(clip))) == 5
    cutter.close()
    assert (len(opened), len(sought)) == (1, 0)
