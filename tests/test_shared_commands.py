"""Commands in two processes that share each frame: the files of one process, written once."""

import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import launched, tiny
from wanvae import cli
from wanvae.video import read_video, write_video


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint vae.safetensors and a video a.mp4."""
    folder = tmp_path_factory.mktemp("files")
    tiny().float().save_pretrained(folder / "vae.safetensors")
    t, y, x = torch.meshgrid(*map(torch.arange, (9, 22, 46)), indexing="ij")
    video = torch.stack([torch.sin(0.2 * x + 0.3 * t + c + 0.1 * y) for c in range(3)])
    write_video(folder / "a.mp4", video, Fraction(25))
    return folder


def together(folder: Path, *arguments: object, status: int = 0) -> tuple[str, list[str]]:
    """What two processes print, and what they say on stderr besides what is done."""
    result = subprocess.run(
        launched(*arguments), cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == status, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("wanvae: ")]
    notices = [line for line in said if line.startswith(f"wanvae: {arguments[0]} ")]
    # The first process speaks for all.
    assert len(notices) == 1
    return result.stdout, [line for line in said if line not in notices]


def test_files_are_those_of_one_process(tmp_path: Path, files: Path) -> None:
    model = ["--checkpoint", files / "vae.safetensors", "--device", "cpu"]
    part, lossless = ["--start", "0.08", "--duration", "0.2"], ["--crf", "0"]
    source, ours = files / "a.mp4", tmp_path / "ours.safetensors"
    out, said = together(tmp_path, "encode", source, ours, *part, *model, "--shard")
    assert out.count("\n") == 1 and not said
    alone = tmp_path / "alone.safetensors"
    assert cli.main(["encode", *map(str, (source, alone, *part, *model))]) == 0
    tensors, expected = load_file(ours), load_file(alone)
    assert tensors.keys() == expected.keys() and tensors["times"].shape == (5,)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    out, said = together(tmp_path, "decode", ours, "ours.mkv", *lossless, *model, "--shard")
    assert out.endswith("ours.mkv: 5 frames\n") and not said
    arguments = alone, tmp_path / "alone.mkv", *lossless, *model
    assert cli.main(["decode", *map(str, arguments)]) == 0
    assert_same_video(tmp_path / "ours.mkv", tmp_path / "alone.mkv")
    options = *part, *lossless, *model, "--shard"
    out, said = together(tmp_path, "reconstruct", source, "ours.mp4", *options)
    assert ": 5 frames, PSNR " in out and out.count("\n") == 1 and not said
    assert_same_video(tmp_path / "ours.mp4", tmp_path / "alone.mkv")


def assert_same_video(path: Path, other: Path) -> None:
    (video, _), (expected, _) = read_video(path), read_video(other)
    torch.testing.assert_close(video, expected, rtol=0, atol=0.02)


def test_what_goes_wrong_is_one_line_of_each_process(tmp_path: Path, files: Path) -> None:
    model = ["--checkpoint", files / "vae.safetensors", "--device", "cpu"]
    target = tmp_path / "none" / "b.mp4"
    reconstruct = "reconstruct", files / "a.mp4", target, *model
    out, said = together(tmp_path, *reconstruct, "--shard", status=1)
    assert out == "" and any("does not exist; create it first" in line for line in said)
    assert all("create it" in line or "another process" in line for line in said)


def test_several_processes_do_not_write_the_same_file(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["encode", str(files / "a.mp4"), str(tmp_path / "b.safetensors")]) == 1
    assert "2 processes would all do the same; add --shard" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
