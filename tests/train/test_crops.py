"""Training clips: what is drawn, from what, and what happens to files that cannot be read."""

import gc
import re
import sys
import warnings
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from av.codec.context import CodecContext
from torch.utils.data import DataLoader

from tests.scenes import scene, write_scenes
from tests.video.reading.test_reading import encode
from wanvae.engine.command_line.arguments import parse_config
from wanvae.folders.manifest import MediaFolder, write_manifest
from wanvae.selection.checks import Checks
from wanvae.train.crops import BucketConfig, DataConfig, VideoCrops
from wanvae.train.run import TrainConfig
from wanvae.video import VideoError, read_clip, write_video

FRAMES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two videos, the second in a subfolder; every frame of both has its own gray."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    ramp = torch.linspace(-0.9, 0.1, FRAMES)[None, :, None, None]
    write_video(folder / "a.mp4", ramp.expand(3, -1, 32, 48), Fraction(25))
    write_video(folder / "more" / "b.mkv", ramp.expand(3, -1, 40, 32) + 0.8, Fraction(30))
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Three videos of dark frames and two bright images."""
    folder = tmp_path_factory.mktemp("mixed")
    for index in range(3):
        noise = torch.rand(3, 12, 24, 40, generator=torch.Generator().manual_seed(index))
        write_video(folder / f"{index}.mp4", noise / 2 - 0.9, Fraction(25))
    for name in ("c.png", "d.jpg"):
        write_video(folder / name, torch.full((3, 1, 40, 24), 0.8), Fraction(1))
    return folder


BUCKETS = (
    BucketConfig(frames=1, height=16, width=24, weight=2),
    BucketConfig(frames=5, height=8, width=16),
    BucketConfig(frames=3, height=16, width=8),
)


def clips(folder: Path, seed: int = 0, per_step: int = 4, **changes: object) -> VideoCrops:
    options = {"folder": str(folder), "frames": 3, "size": 16, "largest_scale": 2.0}
    return VideoCrops(DataConfig(**{**options, **changes}), seed, samples_per_step=per_step)


def test_samples_are_clips_of_consecutive_frames_of_all_videos(folder):
    samples = clips(folder)
    starts = set()
    for number in range(30):
        clip = samples[number]
        assert clip.shape == (3, 3, 16, 16)
        assert clip.abs().max() <= 1
        levels = clip.mean((0, 2, 3))
        torch.testing.assert_close(levels.diff(), torch.full((2,), 0.2), atol=0.03, rtol=0)
        starts.add(round(levels[0].item(), 1))
    # Four possible starts in each of two videos.
    assert len(starts) > 5


def test_strides_are_those_asked_for_as_far_as_videos_are_long_enough(folder):
    samples = clips(folder, frames=2, strides=(2, 9), flip=False)
    rises = {round((samples[n].mean((0, 2, 3)).diff() / 0.2).item()) for n in range(60)}
    assert rises == {2, 3, 4, 5}
    with pytest.raises(VideoError, match="no usable video"), pytest.warns(UserWarning):
        clips(folder, frames=2, strides=(6, 6))


@pytest.mark.parametrize("buckets", [(), BUCKETS])
@pytest.mark.parametrize("crops_per_clip", [1, 3])
def test_a_sample_follows_from_seed_and_number_alone(mixed, buckets, crops_per_clip):
    options = {"buckets": buckets, "crops_per_clip": crops_per_clip, "strides": (1, 2)}
    options["frames"] = 1
    forwards = [clips(mixed, **options)[number] for number in range(12)]
    samples = clips(mixed, **options)
    for number in reversed(range(12)):
        assert torch.equal(samples[number], forwards[number])
    different = [clips(mixed, seed=1, **options)[number] for number in range(12)]
    assert not all(map(torch.equal, forwards, different))


def test_crops_of_one_clip_share_its_frames(folder):
    samples = clips(folder, crops_per_clip=4, flip=False)
    drawn = [samples[number] for number in range(8)]
    levels = [round(clip[0, 0].mean().item(), 2) for clip in drawn]
    assert len(set(levels[:4])) == len(set(levels[4:])) == 1
    fresh = [clips(folder, crops_per_clip=4, flip=False)[number] for number in range(8)]
    assert all(map(torch.equal, drawn, fresh))


def test_a_step_has_one_shape_and_steps_have_all_by_weight(mixed):
    steps, per_step = 200, 4
    samples = clips(mixed, buckets=BUCKETS, per_step=per_step)
    chosen = [samples.bucket_of(number) for number in range(steps * per_step)]
    by_step = np.array(chosen).reshape(steps, per_step)
    assert (by_step == by_step[:, :1]).all()
    # Of the binomial distributions with shares 1/2, 1/4, 1/4, three deviations are 0.11 and 0.09.
    shares = np.bincount(by_step[:, 0]) / steps
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.12)
    for number in range(0, 40, per_step):
        bucket = BUCKETS[chosen[number]]
        for index in range(per_step):
            shape = samples[number + index].shape
            assert shape == (3, bucket.frames, bucket.height, bucket.width)


def test_images_are_used_by_clips_of_one_frame_only(mixed):
    bright = []
    samples = clips(mixed, buckets=BUCKETS)
    for number in range(80):
        clip = samples[number]
        if clip.mean() > 0.5:
            bright.append(clip.shape[1])
    assert set(bright) == {1}
    # Videos give single frames too.
    stills = [samples[n] for n in range(80) if samples.bucket_of(n) == 0]
    assert 0 < len(bright) < len(stills)


def loaded(samples: VideoCrops, per_step: int, processes: int, workers: int) -> list[torch.Tensor]:
    """The batches of ten steps, as so many processes with so many workers see them together."""
    size = per_step // processes
    shares = [
        DataLoader(
            samples,
            batch_size=size,
            sampler=[
                step * per_step + rank * size + index for step in range(10) for index in range(size)
            ],
            num_workers=workers,
        )
        for rank in range(processes)
    ]
    return [torch.cat(parts) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (2, 1)])
def test_any_number_of_processes_and_workers_sees_the_same(mixed, processes, workers):
    options = {"buckets": BUCKETS, "crops_per_clip": 2, "strides": (1, 2)}
    expected = loaded(clips(mixed, **options), 4, 1, 0)
    seen = loaded(clips(mixed, **options), 4, processes, workers)
    assert len(seen) == 10
    assert all(map(torch.equal, expected, seen))


def test_broken_and_small_files_are_left_out_and_counted(folder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "notes.txt").write_text("not even by its name")
    write_video(tmp_path / "small.mp4", torch.zeros(3, 8, 8, 8), Fraction(25))
    write_video(tmp_path / "short.mp4", torch.zeros(3, 2, 32, 32), Fraction(25))
    (tmp_path / "good.mp4").write_bytes((folder / "a.mp4").read_bytes())
    with pytest.warns(
        UserWarning, match="1 files in .* cannot be read and 2 are smaller"
    ) as caught:
        samples = clips(tmp_path)
    (message,) = [str(warning.message) for warning in caught]
    names = [line.split(":")[0].strip() for line in message.splitlines()[1:]]
    assert names == ["text.mp4", "short.mp4", "small.mp4"]
    (source,) = samples.sources
    assert source.ignored == "1 .txt"
    assert [source.entries[index].path for index in source.usable[0]] == ["good.mp4"]


def test_of_many_files_left_out_the_broken_are_named_first(folder, tmp_path):
    (tmp_path / "good.mp4").write_bytes((folder / "a.mp4").read_bytes())
    for index in range(15):
        write_video(tmp_path / f"{index}.png", torch.zeros(3, 1, 8, 8), Fraction(1))
    (tmp_path / "z.mp4").write_text("no video")
    with pytest.warns(UserWarning) as caught:
        clips(tmp_path)
    lines = str(caught[0].message).splitlines()
    assert "z.mp4" in lines[1]
    assert len(lines) == 12 and lines[-1].strip().startswith("and 6 more")


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="no usable video"):
        clips(tmp_path)


def test_a_shape_that_nothing_is_large_enough_for_is_an_error(mixed):
    huge = BucketConfig(frames=1, height=16, width=64)
    with pytest.raises(VideoError, match="1 frames of 64x16 pixels"):
        clips(mixed, buckets=(*BUCKETS, huge))


def noise(frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, frames, 48, 48, generator=generator) * 2 - 1


@pytest.fixture
def battered(folder, tmp_path) -> Path:
    """Two good videos and one of every kind of trouble."""
    battered = tmp_path / "battered"
    battered.mkdir()
    for path in folder.rglob("*.m*"):
        (battered / path.name).write_bytes(path.read_bytes())
    for suffix in (".mp4", ".mkv"):
        # The index of an mp4 is at its end, so this one is broken for all; mkv begins well.
        path = battered / f"cut{suffix}"
        write_video(path, noise(40), Fraction(25))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (battered / "text.mp4").write_text("no video")
    # As root, permissions make nothing unreadable.
    (battered / "nowhere.mp4").symlink_to(tmp_path / "nothing")
    (battered / "directory.mp4").mkdir()
    write_video(battered / "one.mp4", torch.zeros(3, 1, 32, 32), Fraction(25))
    write_video(battered / "wide.png", torch.zeros(3, 1, 2, 4000), Fraction(1))
    write_video(battered / "gone.mp4", torch.zeros(3, 9, 32, 32), Fraction(25))
    return battered


def test_files_that_fail_leave_no_decoders(battered):
    """A forked process that frees a decoder of its parent waits for ever."""
    write_manifest(battered)
    (battered / "gone.mp4").write_text("changed after it was indexed")

    def decoders() -> list[int]:
        return [id(thing) for thing in gc.get_objects() if issubclass(type(thing), CodecContext)]

    gc.collect()
    gc.disable()
    try:
        # The report of a test that failed before may keep one.
        before = decoders()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            buckets = (BucketConfig(frames=3, height=16, width=16),)
            samples = clips(battered, buckets=buckets)
            for number in range(24):
                samples[number]
        assert samples.sources[0]._named.any() and set(decoders()) <= set(before)
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_broken_files_trains_and_names_each_once(battered, workers, capfd):
    write_manifest(battered)
    (battered / "gone.mp4").write_text("changed after it was indexed")
    buckets = (
        BucketConfig(frames=3, height=16, width=16),
        BucketConfig(frames=1, height=24, width=24),
    )
    with warnings.catch_warnings():
        # By workers too, whose warnings pytest does not see.
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr, flush=True)
        samples = clips(battered, buckets=buckets)
        loader = DataLoader(samples, batch_size=4, sampler=range(120), num_workers=workers)
        batches = list(loader)
    assert len(batches) == 30
    named = re.findall(r"\w+\.(?:mp4|mkv|png)", capfd.readouterr().err)
    bad = ["cut.mkv", "cut.mp4", "gone.mp4", "nowhere.mp4", "text.mp4", "wide.png"]
    assert sorted(named) == bad
    # Other draws take the place of those that failed, and they too follow from the number.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = clips(battered, buckets=buckets)
        for number in (119, 60, 3):
            assert torch.equal(again[number], batches[number // 4][number % 4])


def test_a_video_that_ends_early_is_used_as_far_as_it_goes(battered):
    for path in battered.iterdir():
        if path.name != "cut.mkv":
            path.unlink() if not path.is_dir() else path.rmdir()
    samples = clips(battered)
    with pytest.warns(UserWarning, match=r"^a clip of cut\.mkv could not be used: ") as caught:
        drawn = [samples[number] for number in range(20)]
    assert len(caught) == 1
    assert len({clip.sum().item() for clip in drawn}) == 20


def test_a_video_that_became_smaller_is_replaced(folder, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((folder / "a.mp4").read_bytes())
    write_manifest(tmp_path)
    samples = clips(tmp_path)
    write_video(tmp_path / "b.mp4", torch.zeros(3, FRAMES, 8, 8), Fraction(25))
    with pytest.warns(UserWarning, match=r"b\.mp4 could not be used: it has become smaller"):
        assert {samples[number].shape for number in range(10)} == {(3, 3, 16, 16)}


def test_a_folder_that_is_gone_is_an_error_with_the_last_reason(folder, monkeypatch):
    samples = clips(folder)

    def unplugged(*_: object, **__: object) -> torch.Tensor:
        raise OSError("Input/output error")

    monkeypatch.setattr("wanvae.train.crops.read_clip", unplugged)
    with (
        pytest.warns(UserWarning, match="could not be used"),
        pytest.raises(VideoError, match=r"100 files in a row .* Input/output error"),
    ):
        samples[0]


def test_clips_are_sought_not_decoded_from_the_start(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", torch.zeros(3, 50, 16, 16), Fraction(25))
    starts = []

    def noted(source: Path, start: float, *arguments: object, **how: object) -> torch.Tensor:
        starts.append(start)
        return read_clip(source, start, *arguments, **how)

    monkeypatch.setattr("wanvae.train.crops.read_clip", noted)
    samples = clips(tmp_path, largest_scale=1.0)
    for number in range(20):
        samples[number]
    assert max(starts) > 1.5 and len(set(starts)) > 10


def test_buckets_come_from_a_config_file_and_the_command_line(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(
        "data:\n  strides: [1, 4]\n  buckets:\n"
        "    - {frames: 1, height: 256, width: 384, weight: 0.5}\n"
        "    - {frames: 17, height: 128, width: 128}\n"
    )
    config = parse_config(TrainConfig, "test", "", [f"--config={file}"])
    assert config.data.strides == (1, 4)
    assert config.data.shapes == (
        BucketConfig(frames=1, height=256, width=384, weight=0.5),
        BucketConfig(frames=17, height=128, width=128),
    )
    with pytest.raises(SystemExit):
        parse_config(TrainConfig, "test", "", ["--data.buckets=[{frames: 1, height: 8}]"])
    assert "width" in capsys.readouterr().err.splitlines()[-1]
    short = parse_config(TrainConfig, "test", "", ["--data.frames=9", "--data.size=64"])
    assert short.data.shapes == (BucketConfig(frames=9, height=64, width=64),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, not 0"),
        ({"largest_scale": 0.5}, "largest_scale must be at least 1, not 0.5"),
        ({"strides": (3, 2)}, r"strides must be .* not \(3, 2\)"),
        ({"strides": (0, 2)}, r"strides must be .* not \(0, 2\)"),
    ],
)
def test_impossible_values_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_impossible_buckets_are_refused_by_name():
    with pytest.raises(ValueError, match="width must be at least 1, not 0"):
        BucketConfig(frames=1, height=8, width=0)
    with pytest.raises(ValueError, match="weight must be above 0, not -1"):
        BucketConfig(frames=1, height=8, width=8, weight=-1)


def test_hdr_is_told_once_for_all_files_before_the_first_sample(tmp_path, monkeypatch):
    """Of an index of an earlier version, which does not know, by the first clip of each file."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        encode(tmp_path / name, "libx264", range(FRAMES), trc=16 if name != "c.mp4" else None)
    with pytest.warns(UserWarning, match="2 files in .* are HDR .* converted to SDR") as caught:
        samples = clips(tmp_path)
        drawn = [samples[number] for number in range(9)]
    assert len(caught) == 1 and len(drawn) == 9
    assert str(caught[0].message).splitlines()[1:] == ["  a.mp4: PQ", "  b.mp4: PQ"]
    before = [replace(entry, hdr=None) for entry in samples.sources[0].entries]
    content = MediaFolder(before, Counter())
    monkeypatch.setattr("wanvae.train.crops.open_folder", lambda folder: content)
    with pytest.warns(UserWarning) as caught:
        samples = clips(tmp_path)
        drawn = [samples[number] for number in range(20)]
    told = sorted(str(warning.message).split(": ")[0] for warning in caught)
    assert told == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_reader_warns_of_is_told_once_a_file(folder, monkeypatch, capfd, workers):
    def warning_reader(source: Path, *arguments: object, **how: object) -> torch.Tensor:
        warnings.warn(f"{source}: its size changes", stacklevel=1)
        return read_clip(source, *arguments, **how)

    monkeypatch.setattr("wanvae.train.crops.read_clip", warning_reader)
    with warnings.catch_warnings():
        # By workers too, whose warnings pytest does not see.
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr, flush=True)
        loader = DataLoader(clips(folder), batch_size=4, sampler=range(40), num_workers=workers)
        assert len(list(loader)) == 10
    told = sorted(re.findall(r"\w+\.\w+: its size changes", capfd.readouterr().err))
    assert told == ["a.mp4: its size changes", "b.mkv: its size changes"]


def test_clips_do_not_cross_cuts(tmp_path: Path) -> None:
    dark, bright = scene(1, 25, speed=2) * 0.3 - 0.5, scene(2, 25, speed=2) * 0.3 + 0.5
    write_scenes(tmp_path / "a.mp4", dark, bright)
    write_scenes(tmp_path / "still.mp4", scene(3, 25, speed=0))
    options = {"frames": 9, "strides": (1, 2)}
    across = [clips(tmp_path, **options)[number] for number in range(30)]
    assert any(clip.min() < -0.1 and clip.max() > 0.1 for clip in across)
    before = list(clips(tmp_path, **options).describe()[str(tmp_path)])
    write_manifest(tmp_path, checks=Checks())
    with pytest.warns(UserWarning, match="1 scenes are left out.*\n.*still.mp4.*nothing moves"):
        dataset = clips(tmp_path, **options)
    crops = [dataset[number] for number in range(30)]
    assert {clip.mean().item() > 0 for clip in crops} == {True, False}
    assert all(clip.max() < 0.1 or clip.min() > -0.1 for clip in crops)
    after = list(dataset.describe()[str(tmp_path)])
    assert len(after) == 2 and after != before and after[1].endswith("25 x 64 x 64, 25+25")
