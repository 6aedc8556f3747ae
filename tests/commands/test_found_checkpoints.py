"""Commands with a checkpoint that is one of several in a file, in few bits, or of one half."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import Run
from tests.helpers import tiny
from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints import formats
from wanvae.checkpoints.formats import Layout
from wanvae.video import read_video, write_video

# Warnings are errors in tests, but lines for people.
OTHER_MODEL = pytest.mark.filterwarnings("default:.*was encoded by another model")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4", torch.zeros(3, 5, 16, 16), Fraction(25))
    return tmp_path / "a.mp4"


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A file with weights and their moving average, which differ."""
    weights = tiny().float().state_dict()
    average = {name: tensor + 0.01 for name, tensor in weights.items()}
    torch.save({"generator": weights, "ema": average, "step": 5}, tmp_path / "training.pth")
    return tmp_path / "training.pth"


def test_info_says_what_is_stored_and_where(tmp_path: Path, run: Run) -> None:
    weights = tiny().state_dict()
    stored = {f"vae.{name}": t.to(torch.float8_e4m3fn) for name, t in weights.items()}
    save_file(stored | {"unet.x": torch.ones(1)}, tmp_path / "a.safetensors")
    out, err = run("info", tmp_path / "a.safetensors")
    for line in (
        f"stored: safetensors, tensors: {len(weights)} in float8_e4m3fn, under vae.",
        "note: names: read without the prefix vae.",
        "note: left unread, because not of the model: 1 other entry: unet.x",
        "note: precision: stored in float8_e4m3fn; converted to bfloat16, because no dtype was "
        "asked for",
    ):
        assert line in out.splitlines()
    assert "wan layout" in out and err == ""


@OTHER_MODEL
def test_a_key_chooses_for_every_command(
    tmp_path: Path, run: Run, training: Path, video: Path
) -> None:
    out, err = run("info", training, status=1)
    assert out == "" and "2 models" in err and err.count("\n") == 1
    assert "--key generator." in err
    assert "under ema." in run("info", training, "--key", "ema")[0]
    outputs = {}
    for key in ("ema", "generator"):
        model = "--checkpoint", training, "--key", key
        latents = tmp_path / f"{key}.safetensors"
        run("encode", video, latents, *model)
        run("decode", latents, tmp_path / f"{key}.mkv", *model)
        assert "5 frames, PSNR" in run("reconstruct", video, tmp_path / "r.mkv", *model)[0]
        run("convert", training, tmp_path / f"{key}.pth", "--to", "wan", "--key", key)
        outputs[key] = load_file(latents)["mean"]
        written = WanVAE.from_pretrained(tmp_path / f"{key}.pth")
        expected = torch.load(training, weights_only=True)[key]
        assert torch.equal(written.conv2.weight, expected["conv2.weight"])
    assert not torch.equal(outputs["ema"], outputs["generator"])
    # The model that encoded is known by its key too.
    decode = "decode", tmp_path / "ema.safetensors", tmp_path / "x.mkv", "--checkpoint", training
    assert "encoded by another model" in run(*decode, "--key", "generator")[1]
    assert "another model" not in run(*decode, "--key", "ema")[1]


@pytest.mark.parametrize("kind", ["pth", "bin"])
def test_files_for_comfyui_are_safetensors(tmp_path: Path, run: Run, kind: str) -> None:
    native, part = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tiny().save_pretrained(native)
    run("convert", native, part, "--to", "comfyui")
    assert formats.load(part).layout is Layout.WAN
    _, err = run("convert", native, tmp_path / f"b.{kind}", "--to", "comfyui", status=1)
    assert f"b.{kind} must end in .safetensors" in err


@OTHER_MODEL
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_half(tmp_path: Path, run: Run, video: Path, half: str) -> None:
    whole, part = tmp_path / "whole.safetensors", tmp_path / "half.pth"
    tiny().float().save_pretrained(whole)
    run("convert", whole, part, "--to", "wan", "--only", half)
    out, _ = run("info", part)
    assert f"half: {half}" in out.splitlines()
    assert f"note: half: the file holds only the {half} of a model" in out.splitlines()
    size = "--frames", 5, "--height", 64, "--width", 64
    (planned,) = run("plan", "--checkpoint", part, *size)[0].splitlines()
    assert planned.startswith(half.replace("coder", "code"))
    run("encode", video, tmp_path / "l.safetensors", "--checkpoint", whole)
    model = "--checkpoint", part
    commands = {
        "encoder": ("encode", video, tmp_path / "m.safetensors"),
        "decoder": ("decode", tmp_path / "l.safetensors", tmp_path / "b.mkv"),
    }
    calls = {name: (*command, *model) for name, command in commands.items()}
    if half == "decoder":
        run(*calls.pop("decoder"))
        assert read_video(tmp_path / "b.mkv")[0].shape == (3, 5, 16, 16)
    else:
        run(*calls.pop("encoder"))
    (missing,) = calls.values()
    for call in (missing, ("reconstruct", video, tmp_path / "c.mkv", *model)):
        out, err = run(*call, status=1)
        assert out == "" and f"{half} alone, so it cannot" in err.splitlines()[-1]
    assert not (tmp_path / "c.mkv").exists()
    _, err = run("convert", part, tmp_path / "d", "--to", "diffusers", status=1)
    assert "the diffusers layout has no half" in err


def test_a_half_cannot_encode_a_data_set(tmp_path: Path, run: Run, video: Path) -> None:
    whole, part = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    tiny().float().save_pretrained(whole)
    run("convert", whole, part, "--to", "native", "--only", "decoder")
    (tmp_path / "videos").mkdir()
    video.rename(tmp_path / "videos" / "a.mp4")
    call = "encode-dataset", tmp_path / "videos", tmp_path / "out", "--checkpoint", part
    _, err = run(*call, status=1)
    assert "a decoder alone, so it cannot encode" in err and err.count("\n") == 1


@pytest.mark.filterwarnings("default:latent statistics")
def test_latent_statistics_of_a_narrow_model(tmp_path: Path, run: Run) -> None:
    save_file(WanVAE(WanVAEConfig(dim=2)).state_dict(), tmp_path / "light.safetensors")
    light = tmp_path / "light.safetensors"
    out, _ = run("info", light)
    assert "note: latent statistics: assumed to be the statistics of Wan2.1" in out
    assert "latents_mean: []" in run("info", light, "--latent-statistics", "none")[0]
    _, err = run("info", light, "--latent-statistics", "wan2.2", status=1)
    assert "48 means" in err and err.count("\n") == 1
    named = tmp_path / "named.safetensors"
    run("convert", light, named, "--to", "native", "--latent-statistics", "wan2.1")
    assert WanVAE.from_pretrained(named).assumed_statistics is None
    save_file({"latents": torch.zeros(16, 1, 2, 2)}, tmp_path / "l.safetensors")
    decode = "decode", tmp_path / "l.safetensors", tmp_path / "b.png", "--normalized"
    _, err = run(*decode, "--checkpoint", light)
    assert err.count("assumed") == 1
    _, err = run(*decode, "--checkpoint", light, "--latent-statistics", "wan2.1")
    assert "assumed" not in err


@pytest.mark.filterwarnings("default:latent statistics")
@pytest.mark.parametrize("layout", ["wanvae", "musubi"])
def test_a_data_set_with_assumed_statistics_says_so(
    tmp_path: Path, run: Run, video: Path, layout: str
) -> None:
    save_file(WanVAE(WanVAEConfig(dim=2)).state_dict(), tmp_path / "light.safetensors")
    (tmp_path / "videos").mkdir()
    video.rename(tmp_path / "videos" / "a.mp4")
    call = ("encode-dataset", tmp_path / "videos", tmp_path / "out", "--layout", layout)
    _, err = run(*call, "--checkpoint", tmp_path / "light.safetensors")
    assert err.count("assumed to be the statistics of Wan2.1") == 1
