"""Tiny autoencoders on the command line: previews, and all that a Wan VAE does."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.commands import outputs_of
from tests.helpers import tiny, tiny_autoencoder
from wanvae import TinyVAE, WanVAE
from wanvae.video import read_video, write_video

Run = Callable[..., str]
LEVEL = 2 / 255  # one 8 bit level on the scale from -1 to 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Wan VAE, a tiny autoencoder, a video, and latents of several kinds."""
    folder = tmp_path_factory.mktemp("files")
    tiny(z_dim=4).float().save_pretrained(folder / "full.safetensors")
    preview = tiny_autoencoder().float()
    preview.save_pretrained(folder / "tae.safetensors")
    published = tiny_autoencoder(z_dim=16).float()
    torch.save(published.state_dict(), folder / "taew2_1.pth")
    save_file(published.state_dict(), folder / "lighttaew2_1.safetensors")
    t, y, x = torch.meshgrid(*map(torch.arange, (7, 22, 30)), indexing="ij")
    video = torch.stack([torch.sin(0.2 * x + 0.3 * t + c + 0.1 * y) for c in range(3)])
    write_video(folder / "a.mp4", video, Fraction(25))
    latents = 2 * torch.randn(4, 1, 3, 4, generator=torch.Generator().manual_seed(3))
    save_file({"latents": latents}, folder / "raw.safetensors")
    save_file({"latents": preview.normalize(latents)}, folder / "normalized.safetensors")
    save_file({"latents": torch.zeros(16, 2, 3, 4)}, folder / "other.safetensors")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must end well; gives its stdout."""
    return lambda *arguments: outputs_of(capsys, [*map(str, arguments)], 0)[0]


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must fail with one line; gives the line."""

    def run_command(*arguments: object) -> str:
        out, err = outputs_of(capsys, [*map(str, arguments)], 1)
        assert out == "" and err.startswith("wanvae: ") and err.count("\n") == 1
        return err

    return run_command


def shown(path: Path) -> torch.Tensor:
    return read_video(path)[0]


def test_raw_and_normalized_latents_are_previewed_alike(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    preview = ["--preview", folder / "tae.safetensors"]
    raw, normalized = tmp_path / "raw.png", tmp_path / "normalized.png"
    out = run("decode", folder / "raw.safetensors", raw, "--scale", "raw", *preview)
    assert "1 frames" in out and "normalized latents; if colours are wrong" in out
    run("decode", folder / "normalized.safetensors", normalized, "--normalized", *preview)
    latents = load_file(folder / "raw.safetensors")["latents"][None]
    vae = WanVAE.from_pretrained(folder / "tae.safetensors")
    expected = vae.decode(latents)[0]
    assert expected.std() > 10 * LEVEL
    for path in (raw, normalized):
        assert (shown(path) - expected).abs().max() < LEVEL
    vae.set_network_latents("raw")
    preview += ["--scale", "raw"]
    out = run("decode", folder / "raw.safetensors", raw, *preview, "--tiny-latents", "raw")
    assert "colours" not in out
    assert (shown(raw) - vae.decode(latents)[0]).abs().max() < LEVEL
    assert (shown(raw) - expected).abs().max() > 10 * LEVEL


def test_latents_of_a_full_model_are_previewed(folder: Path, run: Run, tmp_path: Path) -> None:
    latents = tmp_path / "a.safetensors"
    run("encode", folder / "a.mp4", latents, "--checkpoint", folder / "full.safetensors")
    # No warning that another model encoded them: warnings are errors here.
    out = run("decode", latents, tmp_path / "b.mp4", "--preview", folder / "tae.safetensors")
    assert "7 frames" in out
    assert shown(tmp_path / "b.mp4").shape == (3, 7, 22, 30)


def test_what_cannot_be_previewed_is_one_line(folder: Path, fail: Run, tmp_path: Path) -> None:
    arguments = ["decode", folder / "raw.safetensors", tmp_path / "b.mp4"]
    full, tae = folder / "full.safetensors", folder / "tae.safetensors"
    assert "give one of them" in fail(*arguments, "--preview", tae, "--checkpoint", full)
    assert "no tiny autoencoder" in fail(*arguments, "--preview", full)
    options = ["--checkpoint", full, "--tiny-latents", "raw"]
    assert "leave out --tiny-latents" in fail(*arguments, *options)
    other = ["decode", folder / "other.safetensors", tmp_path / "b.mp4", "--preview", tae]
    assert "latents of 16 channels, but this model has 4" in fail(*other)
    assert not (tmp_path / "b.mp4").exists()


def test_a_tiny_autoencoder_does_what_a_wan_vae_does(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    tae = ["--checkpoint", folder / "tae.safetensors"]
    assert "7 frames, PSNR" in run("reconstruct", folder / "a.mp4", tmp_path / "b.mp4", *tae)
    run("encode", folder / "a.mp4", tmp_path / "a.safetensors", *tae)
    saved = load_file(tmp_path / "a.safetensors")
    assert saved["mean"].shape == (4, 3, 3, 4) and (saved["logvar"] == -30).all()
    run("decode", tmp_path / "a.safetensors", tmp_path / "c.mp4", *tae)
    assert shown(tmp_path / "c.mp4").shape == (3, 7, 22, 30)
    out = run("plan", *tae, "--frames", 9, "--height", 64, "--width", 64)
    assert out.startswith("encode: whole frames") and "\ndecode: whole frames" in out


def test_info_says_what_it_is(folder: Path, run: Run) -> None:
    out = run("info", folder / "taew2_1.pth")
    assert "taehv layout" in out and "4x8x8, 16 channels, a tiny autoencoder for previews" in out
    assert "latent statistics: taken from Wan2.1" in out
    assert "network latents: taken as normalized, because tae is in the name" in out
    out = run("info", folder / "lighttaew2_1.safetensors")
    assert "network_latents: raw" in out
    assert "taken as raw, because lighttae is in the name of the file" in out


def test_it_is_converted_there_and_back(folder: Path, run: Run, fail: Run, tmp_path: Path) -> None:
    native, bare = tmp_path / "native.safetensors", tmp_path / "bare.safetensors"
    run("convert", folder / "lighttaew2_1.safetensors", native, "--to", "native")
    with safe_open(native, "pt") as file:
        assert file.metadata()["format"] == "wanvae-tiny"
    vae = WanVAE.from_pretrained(native)
    assert isinstance(vae, TinyVAE) and vae.config.network_latents == "raw"
    out = run("convert", native, bare, "--to", "taehv")
    assert "not kept in the taehv layout" not in out  # float32, so the latents are taken as raw
    assert WanVAE.from_pretrained(bare).config == vae.config
    out = run("convert", native, tmp_path / "taew.pth", "--to", "taehv", "--dtype", "float16")
    assert "not kept in the taehv layout: network_latents" in out
    assert "no tiny autoencoders; use --to native" in fail(
        "convert", native, tmp_path / "folder", "--to", "diffusers"
    )
    assert "is no tiny autoencoder" in fail(
        "convert", folder / "full.safetensors", tmp_path / "b.pth", "--to", "taehv"
    )


def test_training_needs_the_wan_vae(folder: Path, fail: Run, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").hardlink_to(folder / "a.mp4")
    tae = folder / "tae.safetensors"
    line = fail("encode-dataset", videos, tmp_path / "latents", "--checkpoint", tae)
    assert "a tiny autoencoder, which is for previews" in line


def test_statistics_of_an_unknown_name_are_assumed(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "preview.pth"
    path.hardlink_to(folder / "taew2_1.pth")
    vae = WanVAE.from_pretrained(path)
    with pytest.warns(UserWarning, match="taken from Wan2.1.*taken as raw, because the file is"):
        vae.normalize(torch.zeros(1, 16, 1, 1, 1))
    vae = WanVAE.from_pretrained(path, latent_statistics="none")
    assert vae.config.latents_mean == ()
