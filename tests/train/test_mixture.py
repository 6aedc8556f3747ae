"""Crops of several folders: their shares, what is read of them, and what a run remembers."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.train.test_train import options, tensors_of
from wanvae.engine.command_line.arguments import parse_config
from wanvae.train.crops import BucketConfig, DataConfig, VideoCrops
from wanvae.train.run import TrainConfig, main
from wanvae.video import VideoError, write_video

LEVELS = {"dark": -0.8, "bright": 0.8, "photos": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three dark videos, one of a bright video, one of two gray images."""
    root = tmp_path_factory.mktemp("mixture")
    for name, files in {
        "dark": ("a.mp4", "b.mp4", "c.mp4"),
        "bright": ("a.mp4",),
        "photos": ("d.png", "e.png"),
    }.items():
        (root / name).mkdir()
        for file in files:
            frames = 1 if name == "photos" else 9
            video = torch.full((3, frames, 24, 32), LEVELS[name])
            write_video(root / name / file, video, Fraction(25))
    return root


def mixture(root: Path, weights: dict[str, float], **changes: object) -> VideoCrops:
    values: dict[str, object] = {
        "folders": tuple(str(root / name) for name in weights),
        "folder_weights": tuple(weights.values()),
        "frames": 1,
        "size": 16,
        **changes,
    }
    return VideoCrops(DataConfig(**values), 0, samples_per_step=1)


def folders_of(samples: VideoCrops, count: int) -> list[str]:
    """Which folder each sample is of."""
    means = [samples[number].mean().item() for number in range(count)]
    return [min(LEVELS, key=lambda name: abs(LEVELS[name] - mean)) for mean in means]


def test_folders_come_as_often_as_their_weights_say_however_many_files_they_have(root):
    samples = mixture(root, {"dark": 1, "bright": 2, "photos": 1})
    drawn = folders_of(samples, 400)
    # Three deviations of the binomial distributions are 30 and 26.
    assert abs(drawn.count("bright") - 200) < 30
    assert abs(drawn.count("dark") - 100) < 26
    equal = folders_of(mixture(root, {"dark": 1, "bright": 1}, folder_weights=()), 200)
    assert abs(equal.count("dark") - 100) < 21


def test_where_a_folder_has_nothing_for_a_shape_the_others_take_its_place(root):
    shapes = tuple(BucketConfig(frames=frames, height=16, width=16) for frames in (1, 5))
    samples = mixture(root, {"dark": 3, "bright": 1, "photos": 4}, buckets=shapes)
    drawn = folders_of(samples, 800)
    by_frames = {
        frames: [name for n, name in enumerate(drawn) if samples.bucket_of(n) == bucket]
        for bucket, frames in enumerate((1, 5))
    }
    # Of about 400 samples each, three deviations are 0.08.
    shares = {name: by_frames[1].count(name) / len(by_frames[1]) for name in LEVELS}
    assert shares == pytest.approx({"dark": 0.375, "bright": 0.125, "photos": 0.5}, abs=0.08)
    shares = {name: by_frames[5].count(name) / len(by_frames[5]) for name in LEVELS}
    assert shares == pytest.approx({"dark": 0.75, "bright": 0.25, "photos": 0}, abs=0.08)


def test_samples_follow_from_seed_and_number_with_any_workers(root):
    weights = {"dark": 1, "bright": 1, "photos": 1}
    expected = torch.stack([mixture(root, weights)[number] for number in range(24)])
    samples = mixture(root, weights)
    assert all(torch.equal(samples[number], expected[number]) for number in (17, 3, 22))
    for workers in (1, 2):
        loader = DataLoader(mixture(root, weights), 6, sampler=range(24), num_workers=workers)
        assert torch.equal(torch.cat(list(loader)), expected)


def test_a_mixture_of_one_folder_gives_the_crops_of_that_folder(root):
    one = mixture(root, {"dark": 5}, frames=5)
    config = DataConfig(folder=str(root / "dark"), frames=5, size=16)
    alone = VideoCrops(config, 0, samples_per_step=1)
    assert all(torch.equal(one[number], alone[number]) for number in range(12))


def test_opaque_and_transparent_folders_mix(root, tmp_path):
    """As the config for RGBA promises: files without alpha are opaque."""
    (tmp_path / "clear").mkdir()
    video = torch.zeros(4, 9, 24, 32)
    write_video(tmp_path / "clear" / "a.webm", video, Fraction(25))
    write_video(tmp_path / "clear" / "b.png", video[:, :1], Fraction(25))
    folders = (str(root / "dark"), str(tmp_path / "clear"))
    shapes = tuple(BucketConfig(frames=frames, height=16, width=16) for frames in (1, 5))
    config = DataConfig(folders=folders, folder_weights=(1.0, 3.0), buckets=shapes)
    samples = VideoCrops(config, 0, samples_per_step=1, alpha=True)
    crops = [samples[number] for number in range(160)]
    opaque = [bool((crop[3] == 1).all()) for crop in crops]
    assert all(len(crop) == 4 for crop in crops) and 0.14 < np.mean(opaque) < 0.36
    for crop, is_opaque in zip(crops, opaque, strict=True):
        assert (crop[:3].mean() < -0.6) == is_opaque
        assert is_opaque or crop[3].abs().max() < 0.1


def test_a_folder_without_anything_of_use_is_named(root, tmp_path):
    (tmp_path / "empty").mkdir()
    folders = (str(root / "dark"), str(tmp_path / "empty"))
    config = DataConfig(folders=folders, frames=1, size=16)
    with pytest.raises(VideoError, match=r"in '.*empty': it has no videos and no images$"):
        VideoCrops(config, 0, samples_per_step=1)
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(VideoError, match=r"no images, only other files \(1 .txt\)"):
        VideoCrops(config, 0, samples_per_step=1)
    small = pytest.warns(UserWarning, match="3 are smaller")
    with small, pytest.raises(VideoError, match=r"in '.*dark': nothing in it is as large"):
        mixture(root, {"dark": 1}, frames=1, size=1024)
    shapes = tuple(BucketConfig(frames=1, height=height, width=8) for height in (16, 32))
    with pytest.raises(VideoError, match=r"in '.*dark', '.*bright': clips of 1 frames of 8x32"):
        mixture(root, {"dark": 1, "bright": 1}, buckets=shapes)


def test_a_file_that_fails_is_replaced_by_one_of_its_folder_and_named_with_it(root, tmp_path):
    for name in ("dark", "bright"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes((root / name / "a.mp4").read_bytes())
    (tmp_path / "bright" / "b.mp4").write_bytes((root / "bright" / "a.mp4").read_bytes())
    samples = mixture(tmp_path, {"dark": 1, "bright": 1})
    (tmp_path / "bright" / "b.mp4").write_text("gone")
    with pytest.warns(UserWarning, match="a clip of .*bright/b.mp4 could not be used") as caught:
        drawn = folders_of(samples, 200)
    assert len(caught) == 1 and abs(drawn.count("bright") - 100) < 22


def test_folders_come_from_the_command_line_and_impossible_ones_are_refused():
    arguments = ["--data.folders=[videos,my photos]", "--data.folder_weights=[3,1]"]
    config = parse_config(TrainConfig, "test", "", arguments).data
    assert config.shares == {"videos": 0.75, "my photos": 0.25}
    assert DataConfig(folder="a").shares == {"a": 1}
    for changes, message in (
        ({"folders": ("a", "b"), "folder_weights": (1.0,)}, "folder_weights must be one above 0"),
        ({"folders": ("a", "b"), "folder_weights": (1.0, 0.0)}, "folder_weights must be one above"),
        ({"folder_weights": (1.0,)}, "folder_weights must be one above 0 for each of folders"),
        ({"folders": ("a", "b", "a")}, "folders must be different from each other"),
        ({"folders": ("a", "./a/")}, "folders must be different from each other"),
        ({"folder": "c", "folders": ("a", "b")}, "data.folder is 'c' and data.folders are a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig(**changes)


def test_a_run_of_a_mixture_resumes_bit_for_bit_and_remembers_each_folder(root, tmp_path, capsys):
    def command(run: Path, steps: int, folders: list[Path], weights: list[int]) -> list[str]:
        names = ",".join(map(str, folders))
        mixture = [f"--data.folders=[{names}]", f"--data.folder_weights={weights}"]
        mixture += ["--data.folder=data", "--data.frames=1", "--data.crops_per_clip=1"]
        return [*options(root, run, steps), *mixture]

    folders = [root / "dark", root / "photos"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(whole, 4, folders, [1, 2])) == 0
    assert main(command(parts, 2, folders, [1, 2])) == 0
    assert main(command(parts, 4, folders, [1, 2])) == 0
    expected, found = (tensors_of(run / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    record = json.loads((whole / "run.json").read_text())
    assert [(part["name"], part["count"]) for part in record["data_parts"]] == [
        (str(root / "dark"), 3),
        (str(root / "photos"), 2),
    ]
    capsys.readouterr()
    assert main(command(parts, 6, folders, [2, 1])) == 1
    assert "data.folder_weights is (1.0, 2.0), not (2.0, 1.0)" in capsys.readouterr().err
    assert main(command(parts, 6, [root / "bright", root / "photos"], [1, 2])) == 1
    assert f"the training data of {root / 'bright'} are 3 entries" in capsys.readouterr().err
    assert main(command(root / "dark" / "run", 1, folders, [1, 2])) == 1
    assert "its pictures would be read as data" in capsys.readouterr().err
