"""Which clips are judged at which sizes and lengths, and by which process."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from wanvae.evaluate.settings import EvaluationOptions
from wanvae.evaluate.trials import Trial, TrialList, find_trials, make_trial
from wanvae.folders.manifest import Entry, write_manifest
from wanvae.video import write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, frames, height, width in (("a.mp4", 9, 24, 40), ("b.mp4", 5, 21, 33)):
        write_video(folder / name, torch.zeros(3, frames, height, width), Fraction(25))
    write_video(folder / "c.png", torch.zeros(3, 1, 32, 32), Fraction(1))
    (folder / "d.mp4").write_text("no video")
    return folder


def find(folder: Path, **options: object) -> TrialList:
    return find_trials(folder, EvaluationOptions(**options))


def shapes(found: TrialList) -> list[tuple[str, str, int, int]]:
    return [(t.clip.name, t.size, t.clip.frames, t.clip.first) for t in found.trials]


def test_clips_are_taken_as_they_are(folder: Path) -> None:
    found = find(folder)
    assert shapes(found) == [
        ("a.mp4", "24x40", 9, 0),
        ("b.mp4", "21x33", 5, 0),
        ("c.png", "32x32", 1, 0),
    ]
    assert [failure.name for failure in found.broken] == ["d.mp4"]
    assert not found.left_out
    assert [trial.clip.whole for trial in found.trials] == [True] * 3


def test_each_size_and_length_is_a_trial_where_there_is_enough(folder: Path) -> None:
    found = find(folder, frames=(5, 7), resize=("16", "24x24"))
    assert shapes(found) == [
        ("a.mp4", "16", 5, 2),
        ("a.mp4", "16", 7, 1),
        ("a.mp4", "24x24", 5, 2),
        ("a.mp4", "24x24", 7, 1),
        ("b.mp4", "16", 5, 0),
    ]
    assert [trial.clip.size for trial in found.trials] == [(16, 27)] * 2 + [(24, 24)] * 2 + [
        (16, 25)
    ]
    assert sorted(f"{one.name}: {one.reason}" for one in found.left_out) == [
        "b.mp4: too short for 7 frames: it has 5",
        *["b.mp4: too small for 24x24: it has 21x33 pixels"] * 2,
        *["c.png: too short for 5 frames: it has 1"] * 2,
        *["c.png: too short for 7 frames: it has 1"] * 2,
    ]


def test_a_file_a_manifest_or_some_clips_will_do(folder: Path, tmp_path: Path) -> None:
    assert shapes(find(folder / "b.mp4")) == [("b.mp4", "21x33", 5, 0)]
    assert shapes(find(folder, clips=2)) == shapes(find(folder))[:2]
    source = tmp_path / "videos"
    source.mkdir()
    (source / "a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    write_manifest(source)
    assert shapes(find(source / "wanvae-manifest.jsonl")) == [("a.mp4", "24x40", 9, 0)]
    assert [trial.shown for trial in find(folder, media=2).trials] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": (10,)}, "1 files cannot be read, and 3 are too small or too short"),
        ({"resize": ("5y",)}, "resize must be a height and a width like 480x832"),
        ({"frames": (0,)}, "frames must be at least 1, not 0"),
        ({"clips": 0}, "clips must be at least 1, not 0"),
        ({"media": -1}, "media must be 0 or more, not -1"),
        ({"media_seconds": 0.0}, "media_seconds must be more than 0, not 0.0"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    folder: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find(folder, **options)


def trial(name: str, frames: int, mtime: int = 0) -> Trial:
    entry = Entry(path=name, size=1, mtime=mtime, width=16, height=16, frames=frames, fps=25.0)
    found = make_trial(entry, None, None, shown=False)
    assert isinstance(found, Trial)
    return found


def test_folders_tell_trials_apart_and_are_safe() -> None:
    entries = ["a.mp4", "a-mp4", "b/a.mp4", "../<script>.mp4", "é" * 300, "x\ud800.mp4"]
    trials = [trial(name, frames) for name in entries for frames in (1, 2)]
    trials += [trial("a.mp4", 1, mtime=1)]
    names = [trial.folder for trial in trials]
    # Of all of a video, its length says nothing new.
    assert len(set(names)) == len(entries) + 1
    assert all(name.replace("-", "").isalnum() and len(name) <= 70 for name in names)
