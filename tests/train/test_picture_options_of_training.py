"""Interlaced and transparent videos in training and evaluation: how pictures come out of files."""

import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from av.codec.hwaccel import hwdevices_available

from tests.commands import outputs_of
from tests.helpers import tiny
from tests.train.short_runs import lines, short_run
from tests.video.reading.test_deinterlacing import write as write_interlaced
from wanvae.errors import UserError
from wanvae.folders.excerpts import read_excerpt
from wanvae.folders.manifest import write_manifest
from wanvae.selection.excerpt import Excerpt
from wanvae.train.crops import DataConfig, VideoCrops
from wanvae.train.held_out import EvaluationConfig, read_held_out
from wanvae.train.run import main
from wanvae.video import ReadOptions, read_video, write_video

ASKED = ReadOptions(deinterlace=True, background=(255, 128, 0))
FRAMES = {"interlaced.mkv": 24, "transparent.mkv": 5}
Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of an interlaced video, and another of a transparent one."""
    for name in FRAMES:
        (tmp_path / name).mkdir()
    write_interlaced(tmp_path / "interlaced.mkv" / "interlaced.mkv")
    video = torch.rand(4, 5, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = tmp_path / "transparent.mkv" / "transparent.mkv"
    write_video(path, video, Fraction(25), codec="ffv1")
    return tmp_path


@pytest.fixture(params=FRAMES)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_crops_are_of_the_pictures_asked_for(folder: Path, name: str) -> None:
    data = DataConfig(folder=str(folder / name), frames=FRAMES[name], size=16)
    asked = replace(data, deinterlace=True, background="#ff8000")
    crops, plain = (VideoCrops(each, 0, samples_per_step=1) for each in (asked, data))
    expected, _ = read_video(folder / name / name, options=ASKED)
    assert torch.equal(crops.read_clip(0, 0), expected)
    assert not torch.equal(plain.read_clip(0, 0), expected)


def test_scenes_are_of_the_pictures_asked_for(folder: Path, name: str) -> None:
    (entry,) = write_manifest(folder / name).entries
    whole = entry.height, entry.width
    excerpt = Excerpt(first=0, begin=0.0, until=entry.frames / 25, box=None, whole=whole)
    scene = replace(entry, excerpt=excerpt)
    expected, _ = read_video(folder / name / name, options=ASKED)
    clip = read_excerpt(scene, folder / name, 0.0, 5, 1, alpha=False, options=ASKED)
    assert torch.equal(clip, expected[:, :5])


def test_held_out_clips_are_of_the_pictures_asked_for(folder: Path, name: str) -> None:
    config = EvaluationConfig(folder=str(folder / name), frames=5, size=24)
    (clip,) = read_held_out(config, tiny().config, reading=ASKED).clips
    expected, _ = read_video(folder / name / name, options=ASKED)
    first, top, left = (
        (length - part) // 2 for length, part in zip(expected.shape[1:], (5, 24, 24), strict=True)
    )
    assert torch.equal(clip.video, expected[:, first : first + 5, top : top + 24, left : left + 24])


def run_of(folder: Path, run: str, steps: int, *options: str) -> int:
    data = folder / "transparent.mkv"
    model = "--model.dim=4", "--model.z_dim=2", "--model.num_res_blocks=1", "--loss.lpips=0"
    return main([*short_run(data, folder / run, steps), *model, *options])


@pytest.mark.slow
def test_a_device_and_processes_that_start_anew_train_alike(folder: Path) -> None:
    """A codec that the device does not decode is decoded on the CPU."""
    if "drm" not in hwdevices_available():
        pytest.skip("this FFmpeg knows no device without decoders")
    assert run_of(folder, "cpu", 2, "--data.background=white") == 0
    device = "--data.background=white", "--data.hwaccel=drm", "--trainer.workers=1"
    assert run_of(folder, "device", 2, *device) == 0
    losses = [
        [{key: line[key] for key in ("l1", "psnr") if key in line} for line in lines(folder / run)]
        for run in ("cpu", "device")
    ]
    assert losses[0] == losses[1] and any(losses[0])


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_pictures_on_any_device(folder: Path, capsys: Capture) -> None:
    assert run_of(folder, "run", 1, "--data.background=white") == 0
    capsys.readouterr()
    assert run_of(folder, "run", 2, "--data.background=gray") == 1
    assert "data.background" in capsys.readouterr().err
    if "drm" in hwdevices_available():
        assert run_of(folder, "run", 2, "--data.background=white", "--data.hwaccel=drm") == 0


def test_what_cannot_be_is_an_error_before_the_work(folder: Path, capsys: Capture) -> None:
    with pytest.raises(UserError, match="must be a colour like #ff8000"):
        DataConfig(background="pinkish")
    assert run_of(folder, "run", 1, "--data.hwaccel=warp") == 1
    assert "no hardware decoding 'warp'" in capsys.readouterr().err
    alpha = "--model.in_channels=4", "--model.out_channels=4", "--data.background=white"
    assert run_of(folder, "run", 1, *alpha) == 1
    assert "this model encodes alpha, so there is no background" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_evaluations_are_of_the_pictures_asked_for(
    folder: Path, name: str, capsys: Capture
) -> None:
    """Judged like a video that holds these pictures as they are."""
    tiny().float().save_pretrained(folder / "vae.safetensors")
    (folder / "asked").mkdir()
    video, _ = read_video(folder / name / name, options=ASKED)
    write_video(folder / "asked" / name, video, Fraction(25), codec="ffv1")
    asked = "--deinterlace", "--background", "#ff8000"
    runs = {"plain": (name, ()), "whole": (name, asked), "expected": ("asked", ())}
    psnr = {}
    for run, (source, options) in runs.items():
        judge = "evaluate", folder / source, "--output", folder / run, "--checkpoint"
        command = *judge, folder / "vae.safetensors", "--frames", 5, "--media", 0, *options
        outputs_of(capsys, [str(word) for word in command], 0)
        records = json.loads((folder / run / "evaluation.json").read_text())["records"]
        psnr[run] = records[0]["models"][0]["psnr"]
    assert psnr["whole"] == pytest.approx(psnr["expected"], abs=1e-3)
    assert abs(psnr["plain"] - psnr["whole"]) > 0.004
    judge = "evaluate", folder / name, "--output", folder / "whole", "--checkpoint"
    command = *judge, folder / "vae.safetensors", "--frames", 5, "--media", 0
    _, said = outputs_of(capsys, [str(word) for word in command], 1)
    assert "deinterlace" in said and "background" in said
    _, said = outputs_of(capsys, [str(word) for word in (*command, "--hwaccel", "warp")], 1)
    assert "no hardware decoding 'warp'" in said
