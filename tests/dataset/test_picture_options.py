"""Interlaced and transparent videos in data sets of latents: how pictures come out of the files."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from av.codec.hwaccel import hwdevices_available

from tests.dataset.data_set_runs import encode_command, run_command
from tests.helpers import tiny
from tests.video.reading.test_deinterlacing import write as write_interlaced
from wanvae import LatentDataset, WanVAE
from wanvae.video import ReadOptions, read_video, write_video

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, an interlaced video and a transparent one."""
    tiny().float().save_pretrained(tmp_path / "vae.safetensors")
    (tmp_path / "videos").mkdir()
    write_interlaced(tmp_path / "videos" / "interlaced.mkv")
    video = torch.rand(4, 5, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(tmp_path / "videos" / "transparent.mkv", video, Fraction(25), codec="ffv1")
    return tmp_path


def encode(capsys: Capture, folder: Path, name: str, *options: object, status: int = 0) -> str:
    command = encode_command(folder, folder / "videos", folder / name, *options)
    return run_command(capsys, *command, status=status)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_latents_are_those_of_the_pictures_asked_for(capsys: Capture, folder: Path) -> None:
    encode(capsys, folder, "out", "--deinterlace", "--background", "#ff8000")
    vae = WanVAE.from_pretrained(folder / "vae.safetensors")
    asked = ReadOptions(deinterlace=True, background=(255, 128, 0))
    clips = list(LatentDataset(folder / "out", sample=False))
    for name in ("interlaced.mkv", "transparent.mkv"):
        found = next(clip for clip in clips if clip.source == name)
        path = folder / "videos" / name
        expected, plain = (
            vae.encode(read_video(path, options=options)[0][None, :, :5]).mode()[0]
            for options in (asked, ReadOptions())
        )
        torch.testing.assert_close(found.latents, expected, atol=1e-5, rtol=1e-5)
        assert (found.latents - plain).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_pictures_are_another_data_set(capsys: Capture, folder: Path) -> None:
    encode(capsys, folder, "out", "--background", "white")
    said = encode(capsys, folder, "out", "--background", "gray", status=1)
    assert "background" in said and "'white'" in said and "'gray'" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--background", "pinkish"), "must be a colour like #ff8000"),
        (("--hwaccel", "warp"), "no hardware decoding 'warp'"),
    ],
)
def test_what_cannot_be_is_an_error_before_the_work(
    capsys: Capture, folder: Path, options: tuple[str, str], message: str
) -> None:
    assert message in encode(capsys, folder, "out", *options, status=1)
    assert not (folder / "out").exists()


def test_a_background_behind_encoded_alpha_is_refused(capsys: Capture, folder: Path) -> None:
    tiny(in_channels=4, out_channels=4).float().save_pretrained(folder / "vae.safetensors")
    said = encode(capsys, folder, "out", "--background", "white", status=1)
    assert "this model encodes alpha, so there is no background" in said


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_codec_that_the_device_does_not_decode(capsys: Capture, folder: Path) -> None:
    if "drm" not in hwdevices_available():
        pytest.skip("this FFmpeg knows no device without decoders")
    encode(capsys, folder, "device", "--hwaccel", "drm")
    encode(capsys, folder, "cpu")
    for one, other in zip(
        *(LatentDataset(folder / name, sample=False) for name in ("device", "cpu")), strict=True
    ):
        assert torch.equal(one.latents, other.latents)
