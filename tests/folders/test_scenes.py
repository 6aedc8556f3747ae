"""Scenes in the manifest: what index --scenes writes and does again, and how clips use them."""

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.commands import outputs_of
from tests.scenes import scene, write_scenes
from wanvae import WanVAEConfig
from wanvae.evaluate.settings import EvaluationOptions
from wanvae.evaluate.trials import find_trials
from wanvae.folders import manifest
from wanvae.folders.catalog import Entries, index_folder, open_folder
from wanvae.folders.clips import cut_entry, find_clips, parse_cut
from wanvae.folders.excerpts import read_excerpt, select
from wanvae.folders.frames import read_clips
from wanvae.folders.listing import JOURNAL, MANIFEST, TABLE
from wanvae.folders.manifest import (
    Entry,
    load_entries,
    read_folder,
    read_manifest,
    write_manifest,
)
from wanvae.selection.analysis import Analysis, Scene
from wanvae.selection.bars import Box
from wanvae.selection.checks import Checks
from wanvae.train.held_out import EvaluationConfig, read_held_out
from wanvae.video import VideoWriter, read_clip, write_video

CONFIG = WanVAEConfig()
CHECKS = Checks()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scenes in one video, a still one in another, and a letterbox."""
    folder = tmp_path / "data"
    write_scenes(folder / "two.mp4", scene(1, 30, speed=2), scene(2, 25, speed=2) - 0.2)
    write_scenes(folder / "still.mp4", scene(3, 30, speed=0))
    letterbox = F.pad(scene(4, 30, 64, 96, speed=2) + 1, (0, 0, 16, 16)) - 1
    write_scenes(folder / "wide.mp4", letterbox)
    return folder


@pytest.fixture
def analysed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the videos that are looked at from now on."""
    names: list[str] = []
    analyse = manifest.analyse

    def look(source: Path) -> Analysis:
        names.append(source.name)
        return analyse(source)

    monkeypatch.setattr(manifest, "analyse", look)
    return names


def test_the_manifest_has_scenes_and_bars(folder: Path) -> None:
    entries = {entry.path: entry for entry in write_manifest(folder, checks=CHECKS).entries}
    found = {path: entry.analysis for path, entry in entries.items()}
    assert [(s.first, s.end) for s in found["two.mp4"].scenes] == [(0, 30), (30, 55)]
    assert [s.begin for s in found["two.mp4"].scenes] == [0, 1.2]
    assert [s.until for s in found["two.mp4"].scenes] == pytest.approx([1.2, 2.2])
    assert [s.still for s in found["still.mp4"].scenes] == [True]
    assert found["two.mp4"].box is None and found["wide.mp4"].box is not None
    assert found["wide.mp4"].box.width == 96 and 58 <= found["wide.mp4"].box.height <= 64
    assert read_manifest(folder) == list(entries.values())


def test_without_scenes_nothing_changes(folder: Path) -> None:
    entries = write_manifest(folder).entries
    plain = (folder / MANIFEST).read_text()
    assert "analysis" not in plain and select(entries).entries == entries
    write_manifest(folder, checks=CHECKS)
    kept = (folder / MANIFEST).read_text()
    write_manifest(folder)
    assert (folder / MANIFEST).read_text() == kept != plain
    lines = [json.loads(line) for line in kept.splitlines()]
    for line in lines:
        del line["analysis"]
    assert [json.dumps(line) for line in lines] == plain.splitlines()


def test_only_new_and_changed_videos_are_looked_at_again(folder: Path, analysed: list[str]) -> None:
    write_manifest(folder)
    write_manifest(folder, checks=CHECKS)
    assert sorted(analysed) == ["still.mp4", "two.mp4", "wide.mp4"]
    analysed.clear()
    write_scenes(folder / "two.mp4", scene(5, 12))
    write_scenes(folder / "more" / "new.mp4", scene(6, 12))
    entries = write_manifest(folder, checks=Checks(still_below=0, bars=False)).entries
    assert sorted(analysed) == ["new.mp4", "two.mp4"]
    # What is decided follows the options, also for videos that are not looked at again.
    assert not any(scene.still for entry in entries for scene in entry.analysis.scenes)
    assert not any(entry.analysis.crop for entry in entries)


def test_an_interrupted_search_goes_on(
    folder: Path, analysed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        look = manifest.analyse

        def interrupted(source: Path) -> Analysis:
            if source.name == "wide.mp4":
                raise KeyboardInterrupt
            return look(source)

        patch.setattr(manifest, "analyse", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_manifest(folder, checks=CHECKS)
    assert (folder / JOURNAL).exists() and not (folder / MANIFEST).exists()
    analysed.clear()
    entries = write_manifest(folder, checks=CHECKS).entries
    assert analysed == ["wide.mp4"]
    (folder / MANIFEST).unlink()
    assert write_manifest(folder, checks=CHECKS).entries == entries


def test_clips_lie_inside_scenes(folder: Path) -> None:
    write_manifest(folder, checks=CHECKS)
    selection = select(load_entries(folder))
    assert selection.left_out == ("still.mp4: 0.00 to 1.20 s: nothing moves",)
    assert [note.split(" ")[0] for note in selection.notes] == ["1", "1"]
    found = find_clips(selection.entries, parse_cut(9, None, None, CONFIG), CONFIG)
    clips = {clip.name: clip for clip in found.clips}
    firsts = [clip.first for name, clip in clips.items() if name.startswith("two")]
    assert firsts == [0, 9, 18, 30, 39]
    (wide, *_) = [clip for name, clip in clips.items() if name.startswith("wide")]
    assert wide.size == (56, 96)
    for clip in clips.values():
        frames = [frame.image for _, frame in read_clips([clip], folder, 4)]
        assert len(frames) == 9 and all(frame.shape[1:] == clip.size for frame in frames)
        assert min(frame.max().item() for frame in frames) > -0.9
    # Whole scenes, and other rates.
    (first, second) = [e for e in selection.entries if e.path == "two.mp4"]
    (whole,) = cut_entry(second, parse_cut(None, None, None, CONFIG), CONFIG)
    assert (whole.first, whole.frames, whole.whole) == (30, 25, False)
    resampled = list(cut_entry(second, parse_cut(5, "10", None, CONFIG), CONFIG))
    assert [(clip.first, clip.frames) for clip in resampled] == [(12, 5), (17, 5)]
    for clip in [*cut_entry(first, parse_cut(5, "10", None, CONFIG), CONFIG), *resampled]:
        frames = [frame.image for _, frame in read_clips([clip], folder, 4)]
        changes = [(a - b).abs().mean() for a, b in pairwise(frames)]
        assert len(frames) == 5 and max(changes) < 0.25
    across = read_clip(folder / "two.mp4", 1.16, 2)
    assert (across[:, 0] - across[:, 1]).abs().mean() > 0.3


def test_excerpts_stay_inside_scenes_where_the_rate_varies(tmp_path: Path) -> None:
    levels = [-0.6] * 20 + [0.6] * 20
    times = [n * 0.04 for n in range(10)] + [0.4 + n * 0.2 for n in range(30)]
    path = tmp_path / "a.mkv"
    with VideoWriter(path, width=16, height=16, fps=Fraction(25)) as writer:
        writer.write(torch.tensor(levels)[None, :, None, None].expand(3, -1, 16, 16), times)
    (entry,) = load_entries(tmp_path)
    begin, until = times[20], times[39] + 0.2
    scenes = (
        Scene(first=0, end=20, until=begin),
        Scene(first=20, end=40, begin=begin, until=until),
    )
    first, second = select([replace(entry, analysis=Analysis(scenes=scenes))]).entries
    for number in range(0, 16):
        clip = read_excerpt(first, tmp_path, number / first.fps, 5, 1, alpha=False)
        assert clip.shape[1] == 5 and clip.max() < 0
        clip = read_excerpt(second, tmp_path, number / second.fps, 5, 1, alpha=False)
        assert clip.shape[1] == 5 and clip.min() > 0


def test_duplicates_are_left_out_while_the_other_is_there(tmp_path: Path) -> None:
    video = scene(1, 40, speed=3)
    write_scenes(tmp_path / "a" / "small.mp4", F.interpolate(video, (48, 48)))
    write_scenes(tmp_path / "b" / "long.mp4", video, scene(2, 40, speed=3))
    entries = write_manifest(tmp_path, checks=CHECKS).entries
    marks = {e.path: [s.duplicate for s in e.analysis.scenes] for e in entries}
    assert sum(any(each) for each in marks.values()) == 1
    assert [entry.path for entry in select(entries).entries].count("b/long.mp4") in (1, 2)
    assert len(select(entries).entries) == 2
    left = [entry for entry in entries if not any(s.duplicate for s in entry.analysis.scenes)]
    alone = [entry for entry in entries if entry not in left]
    assert len(select(alone).entries) == len(alone[0].analysis.scenes)
    kept = write_manifest(tmp_path, checks=Checks(duplicates=False)).entries
    assert len(select(kept).entries) == 3


def test_evaluation_judges_the_longest_scene(folder: Path) -> None:
    write_manifest(folder, checks=CHECKS)
    found = find_trials(folder, EvaluationOptions(frames=(9,)))
    trials = {trial.clip.name: trial.clip for trial in found.trials}
    assert set(trials) == {"two.mp4", "wide.mp4"}
    assert (trials["two.mp4"].first, trials["two.mp4"].frames) == (10, 9)
    assert trials["wide.mp4"].size[0] <= 64
    assert [failure.name for failure in found.left_out] == ["still.mp4"]
    with pytest.warns(UserWarning, match="still.mp4: its index leaves out all"):
        held_out = read_held_out(EvaluationConfig(folder=str(folder), frames=9, size=48), CONFIG)
    assert [clip.name for clip in held_out.clips] == ["two.mp4", "wide.mp4"]
    assert held_out.clips[1].video[:, :, 0].max() > -0.9


def test_the_command_tells_what_is_left_out(folder: Path, capsys: pytest.CaptureFixture) -> None:
    out, _ = outputs_of(capsys, ["index", str(folder), "--scenes", "--workers", "1"], 0)
    assert "4 scenes in 3 videos" in out
    assert "1 scenes are left out, because nothing moves in them" in out
    assert "left out: still.mp4: 0.00 to 1.20 s: nothing moves" in out
    assert "1 videos and images have black bars, which are cropped off" in out
    write_scenes(folder / "new.mp4", scene(7, 12))
    out, _ = outputs_of(capsys, ["index", str(folder)], 0)
    assert "1 videos and images are not analysed and used whole; run wanvae index --scenes" in out


@pytest.mark.parametrize(
    "options", [["--still-below", "2"], ["--keep-bars"], ["--keep-duplicates"], ["--workers", "2"]]
)
def test_options_of_scenes_need_scenes(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture
) -> None:
    _, err = outputs_of(capsys, ["index", str(folder), *options], 1)
    assert f"{options[0]} needs --scenes" in err and err.count("\n") == 1
    assert not (folder / MANIFEST).exists()


def test_no_workers_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = outputs_of(capsys, ["index", str(folder), "--scenes", "--workers", "0"], 1)
    assert "workers must be at least 1, not 0" in err


@pytest.mark.slow
def test_processes_find_the_same(folder: Path) -> None:
    alone = write_manifest(folder, checks=CHECKS).entries
    (folder / MANIFEST).unlink()
    assert write_manifest(folder, checks=CHECKS, workers=2).entries == alone


def test_a_damaged_video_is_used_up_to_the_damage(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "data" / "a.mkv", scene(1, 60, speed=2), scene(2, 60, speed=2))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    (entry,) = write_manifest(tmp_path / "data", checks=CHECKS).entries
    assert entry.analysis.damage and entry.analysis.scenes[-1].end < 120
    assert any("damaged" in note for note in select([entry]).notes)


def test_images_have_bars_and_duplicates(tmp_path: Path) -> None:
    picture = scene(1, 1, 64, 96)
    for name, video in (
        ("a.png", picture),
        ("b.png", F.interpolate(picture, (32, 48))),
        ("c.png", F.pad(scene(2, 1, 64, 96) + 1, (0, 0, 16, 16)) - 1),
    ):
        write_video(tmp_path / name, video, 1)
    selection = select(write_manifest(tmp_path, checks=CHECKS).entries)
    assert [entry.path for entry in selection.entries] == ["a.png", "c.png"]
    assert selection.left_out == ("b.png: it shows the same as a.png",)
    (clip,) = cut_entry(selection.entries[1], parse_cut(1, None, None, CONFIG), CONFIG)
    assert clip.name == "c.png" and clip.size == (56, 96)


def test_a_scene_says_what_it_is_cut_from() -> None:
    values = {"path": "a.mp4", "size": 1, "mtime": 1, "width": 96, "height": 80, "fps": 25.0}
    scenes = (Scene(first=0, end=9), Scene(first=9, end=20))
    analysis = Analysis(scenes=scenes, box=Box(8, 0, 64, 96))
    entry = Entry(frames=20, analysis=analysis, **values)
    texts = [
        next(cut_entry(each, parse_cut(5, None, None, CONFIG), CONFIG)).cut_from
        for each in select([entry]).entries
    ]
    assert texts == ["0+9 64x96+8+0", "9+11 64x96+8+0"]
    whole = Entry(frames=20, analysis=Analysis(scenes=(Scene(first=0, end=20),)), **values)
    assert select([whole]).entries == [replace(whole, analysis=None)]


def test_a_table_is_not_opened_in_place_of_scenes(folder: Path) -> None:
    index_folder(folder)
    assert isinstance(open_folder(folder).entries, Entries)
    index_folder(folder, checks=CHECKS)
    assert not (folder / TABLE).exists()
    assert open_folder(folder) == read_folder(folder)
    assert any(entry.excerpt for entry in select(open_folder(folder).entries).entries)
