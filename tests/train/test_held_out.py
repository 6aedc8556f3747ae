"""Judging models by clips of a folder."""

import json
import math
import os
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.helpers import LAUNCHER, tiny
from wanvae import WanVAE
from wanvae.metrics.images import psnr, ssim
from wanvae.train.held_out import (
    EvaluationConfig,
    HeldOutClip,
    comparison_grid,
    evaluate,
    read_held_out,
)
from wanvae.video import read_video, write_video

ON_TWO_PROCESSES = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from wanvae import WanVAE
from wanvae.train.held_out import EvaluationConfig, evaluate, read_held_out

weights, folder, results = sys.argv[1:]
accelerator = Accelerator(cpu=True)
vae = WanVAE.from_pretrained(weights)
clips = read_held_out(EvaluationConfig(folder=folder, frames=5, size=16), vae.config).clips
result = evaluate(vae, clips, accelerator=accelerator)
content = json.dumps({"rows": result.rows, "means": result.means})
Path(results, f"{accelerator.process_index}.json").write_text(content)
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, an image, and files that are of no use."""
    folder = tmp_path_factory.mktemp("held_out")
    (folder / "inside").mkdir()
    t, y, x = torch.meshgrid(*map(torch.arange, (12, 24, 40)), indexing="ij")
    video = torch.stack([torch.sin(0.2 * x + 0.3 * t + c + 0.1 * y) for c in range(3)])
    for name in ("a.mp4", "inside/c.mkv", "d.mp4"):
        write_video(folder / name, video * 0.9, Fraction(25), crf=0)
    write_video(folder / "b.png", video[:, :1], Fraction(25))
    write_video(folder / "short.mp4", video[:, :4], Fraction(25))
    write_video(folder / "small.mp4", video[:, :, :12], Fraction(25))
    (folder / "text.mp4").write_text("no video")
    (folder / "text.srt").write_text("no video")
    (folder / "LICENSE").write_text("no video either")
    (folder / "more.tar").write_bytes(b"")
    return folder


def config(folder: Path, **changes: object) -> EvaluationConfig:
    return EvaluationConfig(**{"folder": str(folder), "frames": 5, "size": 16, **changes})


@pytest.fixture
def vae() -> WanVAE:
    torch.manual_seed(0)
    return tiny(dropout=0.5).float()


def test_clips_are_from_the_middle_of_each_usable_file(folder, vae):
    with pytest.warns(UserWarning) as caught:
        found = read_held_out(config(folder), vae.config)
    clips = found.clips
    assert [clip.name for clip in clips] == ["a.mp4", "b.png", "d.mp4", "inside/c.mkv"]
    (message,) = [str(warning.message).splitlines() for warning in caught]
    assert (
        message[0].startswith("3 files in ") and "cannot be evaluated; they are left" in message[0]
    )
    assert [line.split(":")[0].strip() for line in message[1:]] == [
        "short.mp4",
        "small.mp4",
        "text.mp4",
    ]
    assert found.ignored == "1 without suffix, 1 .srt, 1 .tar"
    assert [clip.video.shape[1] for clip in clips] == [5, 1, 5, 5]
    whole, _ = read_video(folder / "a.mp4")
    assert torch.equal(clips[0].video, whole[:, 3:8, 4:20, 12:28])


def test_only_as_many_files_as_asked_for(folder, vae):
    clips = read_held_out(config(folder, clips=2), vae.config).clips
    assert [clip.name for clip in clips] == ["a.mp4", "b.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 20}, "multiples of 8, not 20x20"),
        ({"frames": 6}, r"1 \+ 4n frames, not 6"),
        ({"size": 64}, "64 pixels .* evaluation.size and evaluation.frames"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*files in .* cannot be evaluated")
def test_what_cannot_be_evaluated_is_refused(folder, vae, changes, message):
    with pytest.raises(ValueError, match=message):
        read_held_out(config(folder, **changes), vae.config)


def test_a_folder_of_no_use_says_of_each_file_why(folder, vae):
    with (
        pytest.warns(UserWarning, match=r"small.mp4: it has 40x12 pixels, too few"),
        pytest.raises(ValueError, match="no usable file"),
    ):
        read_held_out(config(folder, size=64), vae.config)


@pytest.mark.parametrize("name", ["frames", "size", "clips"])
def test_an_impossible_setting_is_named(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        EvaluationConfig(**{name: 0})


def test_rows_and_means(folder, vae):
    clips = read_held_out(config(folder), vae.config, report=False).clips
    vae.train()  # dropout must not matter
    result = evaluate(vae, clips, {"psnr": psnr, "ssim": ssim, "largest": largest_error})
    assert vae.training
    assert list(result.rows) == [clip.name for clip in clips]
    vae.eval()
    for clip in clips:
        output = vae.decode(vae.encode(clip.video[None]).mode())[0].transpose(0, 1)
        original = clip.video.transpose(0, 1)
        expected = {"psnr": psnr(output, original), "ssim": ssim(output, original)}
        expected["largest"] = (output - original).abs().max().item()
        pixels = clip.video[0].numel()
        kl = vae.encode(clip.video[None]).kl().sum().item()
        expected["kl_bits"] = kl / math.log(2) / pixels
        if len(output) > 1:
            # Frame 0 is a group, and 1 to 4 are the next one.
            changes = (output - original).diff(dim=0).abs().mean((1, 2, 3)) * 127.5
            expected["temporal"] = changes.mean().item()
            expected["flicker"] = (changes[0] / changes[1:].mean()).item()
        assert result.rows[clip.name] == pytest.approx(expected, rel=1e-4)
    for name, mean in result.means.items():
        # The image has no changes.
        values = [row[name] for row in result.rows.values() if name in row]
        assert len(values) == (3 if name in ("temporal", "flicker") else 4)
        assert mean == pytest.approx(sum(values) / len(values))


def test_images_alone_have_no_changes(folder, vae):
    clips = [HeldOutClip("a", torch.zeros(3, 1, 16, 16))]
    assert evaluate(vae, clips).means.keys() == {"psnr", "ssim", "kl_bits"}


def largest_error(images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    return (images - originals).abs().max()


def test_two_processes_share_the_clips(folder, vae, tmp_path):
    weights, script = tmp_path / "vae.safetensors", tmp_path / "script.py"
    vae.save_pretrained(weights)
    script.write_text(ON_TWO_PROCESSES)
    command = [*LAUNCHER, str(script), str(weights), str(folder), str(tmp_path)]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    expected = evaluate(vae, read_held_out(config(folder), vae.config, report=False).clips)
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert list(result["rows"]) == list(expected.rows)
        assert result["means"] == pytest.approx(expected.means, rel=1e-4)


def test_the_grid_has_originals_above_reconstructions(vae, tmp_path):
    video = torch.linspace(-1, 1, 5)[:, None, None].expand(3, 5, 16, 24)
    clips = [HeldOutClip("a", video), HeldOutClip("b", video[:, :1])]
    grid = comparison_grid(vae, clips)
    assert grid.shape == (3, 4 * 16, 3 * 24)
    tiles = grid.unflatten(2, (3, 24)).unflatten(1, (4, 16))
    assert torch.equal(tiles[:, 0].transpose(1, 2), video[:, [0, 2, 4]])
    output = vae.decode(vae.encode(video[None]).mode())[0]
    torch.testing.assert_close(tiles[:, 1].transpose(1, 2), output[:, [0, 2, 4]])
    assert torch.equal(tiles[:, 2, :, 0], tiles[:, 2, :, 2])
    write_video(tmp_path / "grid.png", grid[:, None], Fraction(1))
