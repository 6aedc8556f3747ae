"""What the commands read: images of a folder, pipes, interlaced and transparent video."""

import os
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.helpers import tiny
from tests.video.reading.test_deinterlacing import write as write_interlaced
from wanvae import WanVAE
from wanvae.cli import main
from wanvae.commands.pipeline import encode_file, reconstruct_file
from wanvae.engine.files import FileError
from wanvae.latents.reading import open_latents
from wanvae.video import ReadOptions, VideoError, read_video, write_video

FPS = Fraction(5)


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return tiny().float()


@pytest.fixture
def reconstruct(vae: WanVAE, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command with a small model."""
    monkeypatch.setattr("wanvae.commands.options.load_model", lambda *_: vae)
    return lambda *arguments: main(["reconstruct", *map(str, arguments)])


def waves(frames: int = 5) -> Tensor:
    t, y, x = torch.meshgrid(*map(torch.arange, (frames, 16, 24)), indexing="ij")
    return torch.stack([torch.sin(0.2 * x + 0.3 * t + c) * torch.cos(0.15 * y) for c in range(3)])


def save_images(folder: Path, frames: Tensor) -> None:
    """Numbered images with gaps between the numbers."""
    folder.mkdir()
    for number, frame in enumerate(frames.unbind(1)):
        write_video(folder / f"shot{3 * number}.png", frame[:, None], Fraction(1))


@pytest.mark.filterwarnings("default")
def test_the_original_beside_is_that_of_the_folder(
    tmp_path: Path, reconstruct: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path / "shots", waves())
    for name, source in (("a", tmp_path / "shots"), ("b", tmp_path / "shots" / "*.png")):
        output = tmp_path / name / "%05d.png"
        assert reconstruct(source, output, "--fps", "5", "--side-by-side") == 0
        assert f"{source}: its 5 images are one video" in capsys.readouterr().err
        video, _ = read_video(output, fps=FPS)
        assert (video[..., :24] - waves()).abs().max() < 0.01


def test_images_that_are_read_are_kept(tmp_path: Path, vae: WanVAE) -> None:
    save_images(tmp_path / "shots", waves())
    with pytest.raises(FileError, match="would be overwritten"):
        reconstruct_file(vae, tmp_path / "shots" / "*.png", tmp_path / "shots" / "shot3.png")


def test_a_part_of_a_pipe_is_encoded(tmp_path: Path, vae: WanVAE) -> None:
    write_video(tmp_path / "a.mkv", waves(12), FPS)
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / "a.mkv").read_bytes()
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(content))
    thread.start()
    latents = []
    for name in ("pipe", "a.mkv"):
        target = tmp_path / f"{name}.safetensors"
        encode_file(vae, tmp_path / name, target, start=1.0, duration=1.0)
        with open_latents(target, vae.config.z_dim, None) as file:
            latents.append(file.piece(0, file.length))
            assert file.times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    thread.join()
    assert torch.equal(*latents)


def test_processes_cannot_share_a_pipe(tmp_path: Path, vae: WanVAE) -> None:
    processes = SimpleNamespace(num_processes=2, process_index=0)
    for call, target in ((reconstruct_file, "a.mp4"), (encode_file, "a.safetensors")):
        with pytest.raises(VideoError, match="several processes cannot share a pipe"):
            call(vae, "-", tmp_path / target, shard=processes)
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("default")
def test_options_reach_the_frames(
    tmp_path: Path, reconstruct: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_interlaced(tmp_path / "a.mkv")
    options = ReadOptions(deinterlace=True)
    arguments = (tmp_path / "a.mkv", tmp_path / "b.apng", "--side-by-side", "--deinterlace")
    assert reconstruct(*arguments) == 0
    written, _ = read_video(tmp_path / "b.apng")
    expected, _ = read_video(tmp_path / "a.mkv", options=options)
    assert (written[..., :96] - expected).abs().max() < 0.01

    glass = torch.cat([waves(1), torch.zeros(1, 1, 16, 24)])
    write_video(tmp_path / "a.png", glass, Fraction(1))
    arguments = (tmp_path / "a.png", tmp_path / "b.png", "--side-by-side", "--background", "white")
    assert reconstruct(*arguments) == 0
    assert "is laid on white" in capsys.readouterr().err
    written, _ = read_video(tmp_path / "b.png")
    # Half transparent over white.
    assert (written[..., :24] - (waves(1) + 1) / 2).abs().max() < 0.02


def test_a_model_of_alpha_has_no_background(tmp_path: Path) -> None:
    write_video(tmp_path / "a.png", torch.zeros(4, 1, 16, 16), Fraction(1))
    vae = tiny(in_channels=4, out_channels=4).float()
    options = ReadOptions(background=(255, 255, 255))
    with pytest.raises(VideoError, match="this model encodes alpha, so there is no background"):
        reconstruct_file(vae, tmp_path / "a.png", tmp_path / "b.png", options=options)
    assert os.listdir(tmp_path) == ["a.png"]
