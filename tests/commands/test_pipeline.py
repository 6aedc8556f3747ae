"""From file to file: sizes, times and lengths are kept, frames agree with the model, and figures
agree with torchmetrics and scikit-image."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from tests.helpers import WAN22, WAN_ALPHA, tiny
from tests.latents.caches import PROGRAMS, Write, comfyui, natural
from tests.video.recordings import bytes_of, packets_of, record, streams_of
from wanvae import WanVAE
from wanvae.checkpoints.formats import Layout, digests_of_encoder, load
from wanvae.checkpoints.latent_statistics import WAN21_MEAN, WAN21_STD
from wanvae.commands import pipeline
from wanvae.commands.convert import convert
from wanvae.commands.pipeline import decode_file, encode_file, reconstruct_file
from wanvae.config import Half
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.finite import NotFiniteError
from wanvae.frames import encode_frames
from wanvae.latents.reading import open_latents
from wanvae.train.distillation import DistillConfig, make_student
from wanvae.train.tiny_student import WithTinyDecoder
from wanvae.train.upscaling import with_upscaling
from wanvae.video import (
    Encoding,
    Frame,
    VideoError,
    VideoReader,
    VideoWriter,
    read_video,
    write_video,
)

LOSSLESS = Encoding(crf=0)
LEVEL = 2 / 255  # one 8 bit level on the scale from -1 to 1
VARIABLE = (0.0, 0.031, 0.2, 0.2345, 0.9, 1.0, 2.5)
STATISTICS = {"latents_mean": (0.5, -0.25), "latents_std": (2.0, 0.5)}


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return lively(**STATISTICS)


def lively(**config: Any) -> WanVAE:
    """A model whose videos have contrast, so that wrong frames are seen."""
    vae = tiny(**config).float()
    with torch.no_grad():
        vae.decoder.head[2].weight *= 4
    return vae


def waves(frames: int = 7, width: int = 30, height: int = 21) -> Tensor:
    """(3, frames, height, width), smooth and moving."""
    t, y, x = torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
    return torch.stack([torch.sin(0.2 * x + 0.3 * t + c) * torch.cos(0.15 * y) for c in range(3)])


def make(path: Path, frames: int = 7, width: int = 30, height: int = 21) -> Path:
    write_video(path, waves(frames, width, height), Fraction(25), crf=5)
    return path


def times(path: Path) -> list[float]:
    with VideoReader(path) as reader:
        return [frame.time for frame in reader]


@torch.no_grad()
def by_hand(vae: WanVAE, video: Tensor) -> Tensor:
    """The reconstruction of a whole clip (3, T, H, W), padded and cropped here."""
    frames, height, width = video.shape[1:]
    factor = vae.config.spatial_factor
    padding = (0, -width % factor, 0, -height % factor, 0, -(frames - 1) % 4)
    padded = F.pad(video[None], padding, mode="replicate")
    return vae.decode(vae.encode(padded).mode())[0, :, :frames, :height, :width]


def assert_close(video: Tensor, expected: Tensor, levels: float = 6) -> None:
    """Asserts that two videos are equal, except for the rounding of lossless H.264."""
    assert video.shape == expected.shape
    assert expected.std() > 10 * LEVEL
    assert (video - expected).abs().mean() < LEVEL
    assert (video - expected).abs().max() <= levels * LEVEL


# Reconstruction


@pytest.mark.parametrize("frames", [1, 2, 5, 7])
@pytest.mark.parametrize(("width", "height"), [(30, 21), (32, 24), (22, 34)])
def test_reconstruction_is_that_of_the_model(
    tmp_path: Path, vae: WanVAE, frames: int, width: int, height: int
) -> None:
    source, target = make(tmp_path / "a.mp4", frames, width, height), tmp_path / "b.mp4"
    report = reconstruct_file(vae, source, target, encoding=LOSSLESS)
    original, _ = read_video(source)
    expected = by_hand(vae, original)
    # Written the same way: what remains is a level here and there.
    write_video(tmp_path / "c.mp4", expected, Fraction(25), crf=0)
    assert_close(read_video(target)[0], read_video(tmp_path / "c.mp4")[0])
    assert times(target) == pytest.approx(times(source), abs=1e-4)
    pair = expected.transpose(0, 1), original.transpose(0, 1)
    psnr = peak_signal_noise_ratio(*pair, data_range=2.0, dim=(1, 2, 3))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similar = [
        structural_similarity(*arrays, data_range=2.0, channel_axis=0, **options)
        for arrays in zip(*(frames.double().numpy() for frames in pair), strict=True)
    ]
    assert report.frames == frames
    assert report.psnr == pytest.approx(psnr.item(), abs=1e-3)
    assert report.ssim == pytest.approx(sum(similar) / frames, abs=1e-4)
    latents = 2 * (1 + -(-(frames - 1) // 4)) * -(-width // 8) * -(-height // 8)
    assert report.compression == pytest.approx(original.numel() / latents)
    assert report.seconds > 0


def test_wan22_goes_from_file_to_file(tmp_path: Path) -> None:
    vae, source = lively(**WAN22), make(tmp_path / "a.mp4")
    reconstruct_file(vae, source, tmp_path / "b.mp4", encoding=LOSSLESS)
    expected = by_hand(vae, read_video(source)[0])
    assert_close(read_video(tmp_path / "b.mp4")[0], expected)
    shape = encode_file(vae, source, tmp_path / "l.safetensors")
    assert shape == (2, 3, 2, 2)
    decode_file(vae, tmp_path / "l.safetensors", tmp_path / "c.mp4", encoding=LOSSLESS)
    assert_close(read_video(tmp_path / "c.mp4")[0], read_video(tmp_path / "b.mp4")[0])


def test_an_upscaling_decoder_writes_twice_the_size(tmp_path: Path) -> None:
    vae, source = lively(upscale_factor=2), make(tmp_path / "a.mp4")
    latents = tmp_path / "l.safetensors"
    encode_file(vae, source, latents)
    decode_file(vae, latents, tmp_path / "b.mp4")
    assert read_video(tmp_path / "b.mp4")[0].shape == (3, 7, 42, 60)
    save_file({"latents": torch.zeros(1, 2, 2, 3, 4)}, latents)
    decode_file(vae, latents, tmp_path / "b.mp4")
    assert read_video(tmp_path / "b.mp4")[0].shape == (3, 5, 48, 64)
    with pytest.raises(ValueError, match=r"3 channels and 2 times the size, .* no original"):
        reconstruct_file(vae, source, tmp_path / "b.mp4")


def glass(path: Path, frames: int = 7) -> Tensor:
    """Writes a transparent video; returns its frames (4, frames, 21, 30)."""
    colour = waves(frames)
    video = torch.cat([colour, colour[:1].flip(2)])
    write_video(path, video, Fraction(25), crf=5)
    return read_video(path, alpha=True)[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["b.webm", "b.mov", "b.apng"])
def test_an_rgba_model_goes_from_file_to_file(tmp_path: Path, name: str) -> None:
    vae = lively(in_channels=4, out_channels=4)
    video = glass(tmp_path / "a.webm")
    report = reconstruct_file(vae, tmp_path / "a.webm", tmp_path / name, encoding=LOSSLESS)
    assert report is not None and report.frames == 7
    assert report.compression == 4 * 7 * 30 * 21 / (2 * 3 * 3 * 4)
    written, info = read_video(tmp_path / name, alpha=True)
    assert info.has_alpha
    expected = by_hand(vae, video)
    assert (written[3] - expected[3]).abs().mean() < 2 * LEVEL
    if name == "b.webm":  # 4:2:0 halves the resolution of chroma
        luma = torch.tensor([0.2126, 0.7152, 0.0722])
        written, expected = (torch.einsum("cthw,c->thw", x[:3], luma) for x in (written, expected))
    assert (written[:3] - expected[:3]).abs().mean() < 6 * LEVEL


@torch.no_grad()
def test_a_pair_of_colour_and_alpha_decodes_to_a_transparent_video(tmp_path: Path) -> None:
    vae, latents = lively(**WAN_ALPHA), tmp_path / "l.safetensors"
    make(tmp_path / "a.mp4")
    encode_file(vae, tmp_path / "a.mp4", latents)
    decode_file(vae, latents, tmp_path / "frames" / "%05d.png")
    with pytest.warns(UserWarning, match="several images have no frame rate"):
        written, _ = read_video(tmp_path / "frames" / "%05d.png", alpha=True)
    assert written.shape == (4, 7, 21, 30)
    expected = by_hand(vae, read_video(tmp_path / "a.mp4")[0])
    assert (written - expected).abs().max() < 1.01 * LEVEL
    with pytest.raises(
        VideoError, match=r"\.mp4 holds no alpha; use one of \.mov \(prores\) \.mkv"
    ):
        decode_file(vae, latents, tmp_path / "b.mp4")
    decode_file(vae, latents, tmp_path / "b.mp4", drop_alpha=True, encoding=LOSSLESS)
    assert_close(read_video(tmp_path / "b.mp4")[0], expected[:3])
    with pytest.raises(ValueError, match="encodes videos of 3 channels, but decodes videos of 4"):
        reconstruct_file(vae, tmp_path / "a.mp4", tmp_path / "b.webm")


def test_alpha_that_a_model_does_not_encode_is_told(tmp_path: Path, vae: WanVAE) -> None:
    glass(tmp_path / "a.webm")
    with pytest.warns(UserWarning, match="it is transparent in places, and is laid on black"):
        encode_file(vae, tmp_path / "a.webm", tmp_path / "l.safetensors")


def test_variable_times_are_kept(tmp_path: Path, vae: WanVAE) -> None:
    source = tmp_path / "a.mp4"
    with VideoWriter(source, width=30, height=21, fps=Fraction(25)) as writer:
        writer.write(waves(), VARIABLE)
    reconstruct_file(vae, source, tmp_path / "b.mp4")
    encode_file(vae, source, tmp_path / "l.safetensors")
    decode_file(vae, tmp_path / "l.safetensors", tmp_path / "c.mp4")
    for name in ("b.mp4", "c.mp4"):
        assert times(tmp_path / name) == pytest.approx(VARIABLE, abs=2e-5)


def end(path: Path) -> float:
    """When the last frame ends."""
    with VideoReader(path) as reader:
        for _ in reader:
            pass
        return float(reader.end)


@pytest.mark.parametrize(("duration", "expected"), [(None, 4.0), (2.0, 2.0), (3.5, 3.5)])
def test_the_last_frame_lasts_as_long_after_decoding(
    tmp_path: Path, vae: WanVAE, duration: float | None, expected: float
) -> None:
    source, latents = tmp_path / "a.mp4", tmp_path / "l.safetensors"
    with VideoWriter(source, width=30, height=21, fps=Fraction(25)) as writer:
        writer.write(waves(), VARIABLE)
        writer.end_at(4.0)
    encode_file(vae, source, latents, duration=duration)
    decode_file(vae, latents, tmp_path / "b.mp4")
    assert end(tmp_path / "b.mp4") == pytest.approx(expected, abs=1e-4)
    # Another rate is another length.
    decode_file(vae, latents, tmp_path / "c.mp4", fps=Fraction(5))
    assert end(tmp_path / "c.mp4") == pytest.approx(len(times(tmp_path / "b.mp4")) / 5, abs=1e-4)


def test_the_sound_of_decoded_latents_lasts_as_long_as_the_last_frame(
    tmp_path: Path, vae: WanVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = tmp_path / "a.mp4", []
    with VideoWriter(source, width=30, height=21, fps=Fraction(25)) as writer:
        writer.write(waves(), VARIABLE)
        writer.end_at(4.0)
    encode_file(vae, source, tmp_path / "l.safetensors")
    monkeypatch.setattr(pipeline, "sound_of", lambda path, *span: asked.append(span))
    decode_file(vae, tmp_path / "l.safetensors", tmp_path / "b.mp4", audio_from=source)
    assert asked == [(0, pytest.approx(4.0))]


@pytest.mark.parametrize(
    ("start", "duration", "frames"),
    [(0, None, range(12)), (0.16, None, range(4, 12)), (0, 0.2, range(5)), (0.28, 0.12, [7, 8, 9])],
)
def test_a_part_of_a_video_is_as_if_the_rest_were_not_there(
    tmp_path: Path, vae: WanVAE, start: float, duration: float | None, frames: Sequence[int]
) -> None:
    source, target = make(tmp_path / "a.mp4", 12), tmp_path / "b.mp4"
    part = read_video(source)[0][:, list(frames)]
    report = reconstruct_file(
        vae, source, target, start=start, duration=duration, encoding=LOSSLESS
    )
    assert report.frames == len(frames)
    assert_close(read_video(target)[0], by_hand(vae, part))
    assert times(target) == pytest.approx([n / 25 for n in range(len(frames))], abs=1e-4)
    encode_file(vae, source, tmp_path / "l.safetensors", start=start, duration=duration)
    decode_file(vae, tmp_path / "l.safetensors", tmp_path / "c.mp4", encoding=LOSSLESS)
    assert_close(read_video(tmp_path / "c.mp4")[0], read_video(target)[0])


@pytest.mark.parametrize(
    ("start", "duration", "message"),
    [
        (9.0, None, r"a\.mp4 has no frame from 9\.0 s on"),
        (float("nan"), None, "the start must be 0 or more"),
        (0.0, 0.0, r"from 0\.0 s for 0\.0 s: .* the duration more than 0"),
        (-1.0, None, r"from -1\.0 s: the start must be 0 or more"),
    ],
)
def test_a_part_that_is_not_there_is_named(
    tmp_path: Path, vae: WanVAE, start: float, duration: float | None, message: str
) -> None:
    source = make(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=message):
        reconstruct_file(vae, source, tmp_path / "b.mp4", start=start, duration=duration)
    assert not (tmp_path / "b.mp4").exists()


def test_the_original_is_at_the_left(tmp_path: Path, vae: WanVAE) -> None:
    source, both, alone = make(tmp_path / "a.mp4"), tmp_path / "b.mp4", tmp_path / "c.mp4"
    report = reconstruct_file(vae, source, both, side_by_side=True, encoding=LOSSLESS)
    assert report.psnr == reconstruct_file(vae, source, alone, encoding=LOSSLESS).psnr
    video, info = read_video(both)
    assert (info.width, info.height) == (60, 21)
    assert_close(video[..., :30], read_video(source)[0])
    assert_close(video[..., 30:], read_video(alone)[0])


def test_an_image_becomes_an_image(tmp_path: Path, vae: WanVAE) -> None:
    source, target = make(tmp_path / "a.png", 1), tmp_path / "b.png"
    report = reconstruct_file(vae, source, target)
    video, info = read_video(target)
    assert (report.frames, info.is_image) == (1, True)
    assert_close(video, by_hand(vae, read_video(source)[0]), levels=0.6)


def test_a_video_becomes_no_image(tmp_path: Path, vae: WanVAE) -> None:
    with pytest.raises(VideoError, match=r"cannot write .*b\.png: an image holds one frame"):
        reconstruct_file(vae, make(tmp_path / "a.mp4"), tmp_path / "b.png")
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_tiny_pictures_have_no_ssim(tmp_path: Path, vae: WanVAE) -> None:
    report = reconstruct_file(vae, make(tmp_path / "a.png", 1, 10, 24), tmp_path / "b.png")
    assert report.ssim != report.ssim
    assert report.psnr > 0


def test_a_model_that_needs_whole_clips_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4")
    for run in (reconstruct_file, encode_file):
        target = tmp_path / ("b.mp4" if run is reconstruct_file else "b.safetensors")
        with pytest.raises(ValueError, match="cannot stream"):
            run(tiny(norm="group").float(), source, target)
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.filterwarnings("default:.*damaged or cut short")
def test_a_cut_video_is_reconstructed_as_far_as_it_goes(tmp_path: Path, vae: WanVAE) -> None:
    content = make(tmp_path / "a.mkv", 60).read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) * 2 // 3])
    with pytest.warns(UserWarning, match="damaged or cut short"):
        good = len(times(tmp_path / "a.mkv"))
    with pytest.warns(UserWarning, match="damaged or cut short"):
        report = reconstruct_file(vae, tmp_path / "a.mkv", tmp_path / "b.mp4")
    assert 0 < report.frames == good < 60
    assert len(times(tmp_path / "b.mp4")) == good


# Memory


def test_few_frames_are_held(vae: WanVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanvae.execution.cost.STEP_PIXELS", 8 * 16 * 16)  # two groups
    read: list[Frame] = []
    frames = (Frame(waves(1, 16, 16)[:, 0], index / 25) for index in range(51))
    encoded, ahead = 0, []
    for posterior in encode_frames(vae.config, vae.stream_encode(), frames, read.append):
        ahead.append(len(read) - encoded)
        encoded += 4 * posterior.mean.shape[2] if encoded else 1
    assert ahead == [1, *[8] * 6, 2]


# Latents


def test_encoding_and_decoding_is_reconstruction(tmp_path: Path, vae: WanVAE) -> None:
    source, latents = make(tmp_path / "a.mp4"), tmp_path / "l.safetensors"
    reconstruct_file(vae, source, tmp_path / "b.mp4", encoding=LOSSLESS)
    assert encode_file(vae, source, latents) == (2, 3, 3, 4)
    assert decode_file(vae, latents, tmp_path / "c.mp4", encoding=LOSSLESS) == 7
    (expected, info), (video, other) = map(read_video, (tmp_path / "b.mp4", tmp_path / "c.mp4"))
    assert_close(video, expected)
    assert other == info
    assert times(tmp_path / "c.mp4") == times(tmp_path / "b.mp4")


def test_latents_are_those_of_the_model(tmp_path: Path, vae: WanVAE) -> None:
    source = make(tmp_path / "a.mp4", 5, 32, 24)
    encode_file(vae, source, tmp_path / "l.safetensors")
    tensors = load_file(tmp_path / "l.safetensors")
    with torch.no_grad():
        expected = vae.encode(read_video(source)[0][None])
    assert torch.allclose(tensors["mean"], expected.mean[0], atol=1e-5)
    assert torch.allclose(tensors["logvar"], expected.logvar[0], atol=1e-5)
    assert tensors["times"].tolist() == pytest.approx(times(source))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_latents_of_another_program(
    tmp_path: Path, vae: WanVAE, batched: bool, normalized: bool
) -> None:
    with torch.no_grad():
        raw = vae.encode(waves(9, 32, 24)[None]).mode()
        expected = vae.decode(raw)[0]
    given = vae.normalize(raw) if normalized else raw
    save_file({"latents": given if batched else given[0].contiguous()}, tmp_path / "l.safetensors")
    target = tmp_path / "b.mp4"
    scale = "normalized" if normalized else "raw"
    count = decode_file(vae, tmp_path / "l.safetensors", target, scale=scale, encoding=LOSSLESS)
    video, info = read_video(target)
    write_video(tmp_path / "c.mp4", expected, Fraction(16), crf=0)
    assert_close(video, read_video(tmp_path / "c.mp4")[0])
    assert (count, info.fps) == (9, 16)


@pytest.mark.parametrize("ours", [False, True])
def test_a_rate_that_is_asked_for(tmp_path: Path, vae: WanVAE, ours: bool) -> None:
    latents, target = tmp_path / "l.safetensors", tmp_path / "b.mp4"
    if ours:
        encode_file(vae, make(tmp_path / "a.mp4", 5), latents)
    else:
        save_file({"latents": torch.zeros(2, 2, 3, 4)}, latents)
    scale = None if ours else "raw"
    decode_file(vae, latents, target, fps=Fraction(30000, 1001), scale=scale)
    assert times(target) == pytest.approx([index * 1001 / 30000 for index in range(5)])


def changed(path: Path, **tensors: Tensor) -> Path:
    """A latents file with some tensors replaced."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"mean": torch.zeros(3, 3, 3, 4)}, "3 channels, but this model has 2"),
        ({"mean": torch.zeros(2, 4, 3, 4)}, r"\(4, 3, 4\) .* 7 frames of 30x21 to \(3, 3, 4\)"),
        ({"mean": torch.zeros(2, 3, 3, 5)}, r"\(3, 3, 5\) .* 30x21 to \(3, 3, 4\)"),
        ({"times": torch.arange(10.0) / 50}, r"10 frames of 30x21 to \(4, 3, 4\)"),
    ],
)
def test_latents_of_another_model_are_refused(
    tmp_path: Path, vae: WanVAE, tensors: dict[str, Tensor], reason: str
) -> None:
    path = tmp_path / "l.safetensors"
    encode_file(vae, make(tmp_path / "a.mp4"), path)
    with pytest.raises(CheckpointError, match=rf"l\.safetensors has latents of .*{reason}"):
        decode_file(vae, changed(path, **tensors), tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


def test_a_model_of_other_factors_is_told_apart(tmp_path: Path, vae: WanVAE) -> None:
    path = tmp_path / "l.safetensors"
    encode_file(vae, make(tmp_path / "a.mp4"), path)
    other = tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float()
    with pytest.raises(CheckpointError, match="the checkpoint that encoded them"):
        decode_file(other, path, tmp_path / "b.mp4")


def test_latents_that_are_no_numbers_are_refused(tmp_path: Path, vae: WanVAE) -> None:
    save_file({"latents": torch.zeros(2, 2, 3, 4, dtype=torch.int32)}, tmp_path / "l.safetensors")
    with pytest.raises(ValueError, match="latents must be floating point, not"):
        decode_file(vae, tmp_path / "l.safetensors", tmp_path / "b.mp4")
    assert os.listdir(tmp_path) == ["l.safetensors"]


# Progress


@pytest.mark.parametrize("progress", [False, True])
def test_the_bar_is_shown_if_asked_for(
    tmp_path: Path, vae: WanVAE, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    source, latents = make(tmp_path / "a.mp4"), tmp_path / "l.safetensors"
    runs: Sequence[tuple[Any, Path, Path, str]] = (
        (reconstruct_file, source, tmp_path / "b.mp4", "7/7"),
        (encode_file, source, latents, "7/7"),
        (decode_file, latents, tmp_path / "c.mp4", "3/3"),
    )
    for run, given, target, count in runs:
        capsys.readouterr()
        run(vae, given, target, progress=progress)
        err = capsys.readouterr().err
        assert (count in err) == progress
        assert err.endswith("\n") if progress else not err


# Which model, which scale, which numbers


def saved(tmp_path: Path, name: str, vae: WanVAE) -> Path:
    vae.save_pretrained(tmp_path / name)
    return tmp_path / name


def test_latents_of_another_model_are_told(
    tmp_path: Path, vae: WanVAE, recwarn: pytest.WarningsRecorder
) -> None:
    ours = saved(tmp_path, "ours.safetensors", vae)
    changed = tiny()
    with torch.no_grad():
        changed.conv1.bias.add_(1)
    other = saved(tmp_path, "other.safetensors", changed)
    latents = tmp_path / "latents.safetensors"
    encode_file(vae, make(tmp_path / "in.mkv"), latents, checkpoint=ours)
    again = saved(tmp_path, "again.safetensors", vae)
    decode_file(vae, latents, tmp_path / "out.mkv", checkpoint=again)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="was encoded by another model than .*other.safetensors"):
        decode_file(vae, latents, tmp_path / "out.mkv", checkpoint=other)
    encode_file(vae, make(tmp_path / "in.mkv"), latents)  # as files of earlier versions
    decode_file(vae, latents, tmp_path / "out.mkv", checkpoint=other)


def test_the_digests_of_a_model_open_its_file_once(
    tmp_path: Path, vae: WanVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = saved(tmp_path, "ours.safetensors", vae)
    other = saved(tmp_path, "other.safetensors", tiny())
    opened = []
    load = pipeline.load
    monkeypatch.setattr(pipeline, "load", lambda path: opened.append(path) or load(path))
    latents = tmp_path / "latents.safetensors"
    encode_file(vae, make(tmp_path / "in.mkv"), latents, checkpoint=ours)
    assert opened == [ours]
    with pytest.warns(UserWarning, match="was encoded by another model"):
        decode_file(vae, latents, tmp_path / "out.mkv", checkpoint=other)
    assert opened == [ours, other]


def test_a_decoder_that_was_trained_for_the_latents_is_no_other_model(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    vae = tiny().bfloat16()
    teacher = saved(tmp_path, "teacher.safetensors", vae)
    latents = tmp_path / "latents.safetensors"
    encode_file(vae.float(), make(tmp_path / "in.mkv"), latents, checkpoint=teacher)
    student = make_student(vae, DistillConfig(half="decoder"))
    assert isinstance(student, WanVAE)
    path = saved(tmp_path, "student.safetensors", student)
    decode_file(student.eval(), latents, tmp_path / "out.mkv", checkpoint=path)
    larger = with_upscaling(vae, 2)
    path = saved(tmp_path, "larger.safetensors", larger)
    decode_file(larger, latents, tmp_path / "out.mkv", checkpoint=path)
    assert not recwarn.list


def half_written(tmp_path: Path, source: Path, half: Half, layout: Layout) -> Path:
    target = tmp_path / f"{half}-{layout.value}.safetensors"
    convert(source, target, layout, only=half)
    return target


def test_a_decoder_alone_knows_the_latents_of_its_encoder(
    tmp_path: Path, vae: WanVAE, recwarn: pytest.WarningsRecorder
) -> None:
    whole = saved(tmp_path, "whole.safetensors", vae)
    encoder = half_written(tmp_path, whole, "encoder", Layout.NATIVE)
    decoder = half_written(tmp_path, whole, "decoder", Layout.NATIVE)
    again, loaded = tmp_path / "again.safetensors", WanVAE.from_pretrained(decoder)
    convert(decoder, again, Layout.NATIVE, torch.bfloat16)
    copied = saved(tmp_path, "copied.safetensors", loaded)
    latents = tmp_path / "latents.safetensors"
    for encoded_by in (whole, encoder):
        one = WanVAE.from_pretrained(encoded_by)
        encode_file(one, make(tmp_path / "in.mkv"), latents, checkpoint=encoded_by)
        for path in (whole, decoder, again, copied):
            other = WanVAE.from_pretrained(path, torch.float32)
            decode_file(other, latents, tmp_path / "out.mkv", checkpoint=path)
    assert not recwarn.list
    changed = tiny()
    with torch.no_grad():
        changed.conv1.bias.add_(1)
    stranger = saved(tmp_path, "stranger.safetensors", changed)
    encode_file(changed, make(tmp_path / "in.mkv"), latents, checkpoint=stranger)
    with pytest.warns(UserWarning, match="was encoded by another model than .*decoder-native"):
        decode_file(loaded, latents, tmp_path / "out.mkv", checkpoint=decoder)


def test_a_decoder_alone_that_does_not_say_so_is_told(tmp_path: Path, vae: WanVAE) -> None:
    whole = saved(tmp_path, "whole.safetensors", vae)
    report = convert(whole, tmp_path / "wan.pth", Layout.WAN, only="decoder")
    assert "whose latents it decodes" in report.notes[-1]
    decoder = half_written(tmp_path, whole, "decoder", Layout.WAN)
    latents = tmp_path / "latents.safetensors"
    encode_file(vae, make(tmp_path / "in.mkv"), latents, checkpoint=whole)
    loaded = WanVAE.from_pretrained(decoder)
    with pytest.warns(UserWarning, match="wan.safetensors is a decoder alone and does not say"):
        decode_file(loaded, latents, tmp_path / "out.mkv", checkpoint=decoder)


def test_a_tiny_student_knows_the_latents_of_its_teacher(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    vae = lively()
    config = DistillConfig(half="decoder", tiny_dims=(4, 4, 4, 4), start="new")
    student = make_student(vae, config)
    assert isinstance(student, WithTinyDecoder)
    path = tmp_path / "student.safetensors"
    student.tiny.save_pretrained(path)
    teacher = saved(tmp_path, "teacher.safetensors", vae)
    latents = tmp_path / "latents.safetensors"
    encode_file(vae, make(tmp_path / "in.mkv"), latents, checkpoint=teacher)
    decode_file(student.tiny, latents, tmp_path / "out.mkv", checkpoint=path)
    assert not recwarn.list
    with torch.no_grad():
        vae.conv1.bias.add_(1)
    stranger = saved(tmp_path, "stranger.safetensors", vae)
    encode_file(vae, make(tmp_path / "in.mkv"), latents, checkpoint=stranger)
    with pytest.warns(UserWarning, match="was encoded by another model than .*student"):
        decode_file(student.tiny, latents, tmp_path / "out.mkv", checkpoint=path)


def test_dropout_does_not_make_another_encoder(tmp_path: Path) -> None:
    vae = tiny(dropout=0.5).eval()
    native = saved(tmp_path, "native.safetensors", vae)
    convert(native, tmp_path / "wan.pth", Layout.WAN)
    digests = [digests_of_encoder(load(path)) for path in (native, tmp_path / "wan.pth")]
    assert digests[0] == digests[1]


HALF_TYPES = [torch.bfloat16, torch.float16]


def copies(tmp_path: Path, vae: WanVAE) -> dict[torch.dtype, Path]:
    """Files of a model: as it is, and rounded to half types."""
    whole = saved(tmp_path, "float32.safetensors", vae)
    paths = {torch.float32: whole}
    for dtype in HALF_TYPES:
        name = str(dtype).removeprefix("torch.")
        paths[dtype] = tmp_path / f"{name}.pth"
        convert(whole, paths[dtype], Layout.WAN, dtype)
    return paths


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("only", [None, "decoder"])
def test_a_copy_that_was_rounded_is_no_other_model(
    tmp_path: Path,
    vae: WanVAE,
    recwarn: pytest.WarningsRecorder,
    dtype: torch.dtype,
    only: Half | None,
) -> None:
    """Either of the two encodes, and the other one, or its decoder alone, decodes."""
    paths, latents = copies(tmp_path, vae), tmp_path / "latents.safetensors"
    source = make(tmp_path / "in.mkv")
    for encoded_by, decoded_by in ((torch.float32, dtype), (dtype, torch.float32)):
        path = tmp_path / "decoder.safetensors"
        convert(paths[decoded_by], path, Layout.NATIVE, only=only)
        model = WanVAE.from_pretrained(paths[encoded_by], torch.float32)
        encode_file(model, source, latents, checkpoint=paths[encoded_by])
        model = WanVAE.from_pretrained(path, torch.float32)
        decode_file(model, latents, tmp_path / "out.mkv", checkpoint=path)
        with open_latents(latents) as opened:
            assert len(set(opened.encoders)) == len(opened.encoders)
    assert not recwarn.list


def test_copies_that_were_rounded_to_different_types_are_two_models(
    tmp_path: Path, vae: WanVAE
) -> None:
    paths, latents = copies(tmp_path, vae), tmp_path / "latents.safetensors"
    encode_file(vae, make(tmp_path / "in.mkv"), latents, checkpoint=paths[torch.bfloat16])
    with pytest.warns(UserWarning, match="or by a copy of it whose rounding is not known"):
        decode_file(vae, latents, tmp_path / "out.mkv", checkpoint=paths[torch.float16])


def test_latents_that_were_encoded_before_know_one_digest(
    tmp_path: Path, vae: WanVAE, recwarn: pytest.WarningsRecorder
) -> None:
    """They hold the first digest alone, and do not know the copies of their model."""
    paths, latents = copies(tmp_path, vae), tmp_path / "latents.safetensors"
    source = make(tmp_path / "in.mkv")
    decoders = [torch.bfloat16, torch.float32], [torch.float32]
    for encoded_by, quiet in zip((torch.bfloat16, torch.float32), decoders, strict=True):
        encode_file(vae, source, latents, checkpoint=paths[encoded_by])
        with safe_open(latents, framework="pt") as file:
            metadata = file.metadata()
        metadata["encoder"] = metadata["encoder"].split()[0]
        save_file(load_file(latents), latents, metadata)
        for dtype in quiet:
            decode_file(vae, latents, tmp_path / "out.mkv", checkpoint=paths[dtype])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="was encoded by another model than .*bfloat16"):
        decode_file(vae, latents, tmp_path / "out.mkv", checkpoint=paths[torch.bfloat16])


def test_raw_latents_are_not_denormalized(tmp_path: Path, vae: WanVAE) -> None:
    latents = tmp_path / "latents.safetensors"
    encode_file(vae, make(tmp_path / "in.mkv"), latents)
    with pytest.raises(CheckpointError, match="not normalized, as it says; leave out --normalized"):
        decode_file(vae, latents, tmp_path / "out.mkv", scale="normalized")
    assert not (tmp_path / "out.mkv").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused(tmp_path: Path, vae: WanVAE, value: float) -> None:
    latents = torch.zeros(vae.config.z_dim, 3, 3, 4)
    latents[0, 2, 1, 1] = value
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite .* from number 2 on"):
        decode_file(vae, tmp_path / "latents.safetensors", tmp_path / "out.mkv")
    assert not (tmp_path / "out.mkv").exists()


def test_numbers_that_a_model_cannot_hold_are_named(tmp_path: Path) -> None:
    """Half precision holds at most 65504; nothing is written."""
    source = make(tmp_path / "in.mkv")
    vae = tiny().float()
    with torch.no_grad():
        vae.conv1.bias[:1] = 1e5
    vae.to(torch.float16)
    reason = r"not finite \(NaN or infinite\) in float16: encode in bfloat16"
    with pytest.raises(NotFiniteError, match=reason):
        encode_file(vae, source, tmp_path / "latents.safetensors")
    with pytest.raises(NotFiniteError, match=reason):
        reconstruct_file(vae, source, tmp_path / "out.mkv")
    with torch.no_grad():
        vae.conv1.bias.zero_()
        vae.decoder.head[2].bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"not finite .* in float16: decode in bfloat16"):
        reconstruct_file(vae, source, tmp_path / "out.mkv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


# Sound


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of pictures and sound, with a title."""
    return record(tmp_path_factory.mktemp("recording") / "a.mkv", fps=10, tags={"title": "A title"})


def test_sound_that_is_left_out_is_told(tmp_path: Path, vae: WanVAE, recording: Path) -> None:
    with pytest.warns(UserWarning, match=r"a\.mkv: its sound is left out") as caught:
        encode_file(vae, recording, tmp_path / "b.safetensors", duration=0.5)
    assert len(caught) == 1
    assert read_video(recording)[1].beside == ("sound",)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_reconstructions_keep_sound(
    tmp_path: Path, vae: WanVAE, recording: Path, side_by_side: bool
) -> None:
    path = tmp_path / "b.mkv"
    reconstruct_file(vae, recording, path, side_by_side=side_by_side)
    assert bytes_of(path) == bytes_of(recording)
    reconstruct_file(vae, recording, path, side_by_side=side_by_side, start=1.05, duration=0.5)
    assert bytes_of(path) in bytes_of(recording)
    assert len(packets_of(path)) == pytest.approx(0.45 * 48_000 / 1024, abs=1)
    reconstruct_file(vae, recording, path, duration=0.5, sound=False)
    assert not streams_of(path, "audio")
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "A title"


def test_decoded_videos_have_the_sound_of_their_time(
    tmp_path: Path, vae: WanVAE, recording: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """It is the sound that a reconstruction of the same part has."""
    latents, decoded = tmp_path / "b.safetensors", tmp_path / "b.mkv"
    for start, duration in ((0.0, 0.7), (1.05, 0.5)):
        encode_file(vae, recording, latents, start=start, duration=duration)
        decode_file(vae, latents, decoded, audio_from=recording)
        expected = tmp_path / "c.mkv"
        reconstruct_file(vae, recording, expected, start=start, duration=duration)
        assert times(decoded) == times(expected)
        assert bytes_of(decoded) in bytes_of(recording)
        found, wanted = (len(packets_of(path)) for path in (decoded, expected))
        assert found - wanted in (0, 1, 2, 3)  # the last picture lasts as long as the others
        assert abs(packets_of(decoded)[0][0] - packets_of(expected)[0][0]) < 0.002
    assert {str(each.message) for each in recwarn} == {f"{recording}: its sound is left out"}


def test_what_is_not_sure_about_sound_is_told(
    tmp_path: Path, vae: WanVAE, recording: Path, recwarn: pytest.WarningsRecorder
) -> None:
    latents, decoded = tmp_path / "b.safetensors", tmp_path / "b.mkv"
    encode_file(vae, recording, latents, start=1, duration=0.5)
    recwarn.clear()
    decode_file(vae, latents, decoded, audio_from=recording, fps=Fraction(5))
    assert [str(each.message) for each in recwarn] == [
        f"{latents} has 0.50 s of video, which last 1.00 s at 5 frames per second; the sound keeps "
        "its speed"
    ]
    recwarn.clear()
    with safe_open(latents, framework="pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "start"}
    save_file(load_file(latents), latents, metadata)
    decode_file(vae, latents, decoded, audio_from=recording)
    assert [str(each.message) for each in recwarn] == [
        f"{latents} does not say where in its video it begins; the sound is taken from the "
        f"beginning of {recording}"
    ]
    assert bytes_of(recording).startswith(bytes_of(decoded))


def test_a_file_without_sound_is_an_error_before_the_work(
    tmp_path: Path, vae: WanVAE, recording: Path
) -> None:
    source = make(tmp_path / "a.mkv")
    encode_file(vae, source, tmp_path / "b.safetensors")
    with pytest.raises(VideoError, match=r"a\.mkv has no sound; name a file that has"):
        decode_file(vae, tmp_path / "b.safetensors", tmp_path / "b.mkv", audio_from=source)
    assert not (tmp_path / "b.mkv").exists()


# Caches of other programs


@pytest.fixture(scope="module")
def wan() -> WanVAE:
    """A small model with the latents of Wan2.1."""
    return lively(z_dim=16, latents_mean=WAN21_MEAN, latents_std=WAN21_STD)


@pytest.mark.parametrize("write", PROGRAMS)
def test_caches_of_other_programs(
    tmp_path: Path, wan: WanVAE, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    normalized = natural(length=3)
    latents = wan.denormalize(normalized[None])
    path = write(tmp_path, latents[0] if PROGRAMS[write] == "raw" else normalized)
    assert decode_file(wan, path, tmp_path / "a.mkv", encoding=LOSSLESS) == 9
    write_video(tmp_path / "b.mkv", wan.decode(latents)[0], Fraction(16), crf=0)
    expected, decoded = (read_video(tmp_path / name)[0] for name in ("b.mkv", "a.mkv"))
    assert (decoded - expected).abs().mean() < 1 / 255
    assert f"{path}: its latents are {PROGRAMS[write] or 'normalized'}, as " in caplog.text
    assert len(caplog.records) == 1


def test_a_scale_that_nothing_tells_is_refused(tmp_path: Path, wan: WanVAE) -> None:
    path = comfyui(tmp_path, torch.ones(16, 2, 8, 8))
    with pytest.raises(CheckpointError, match=r"do not tell .* say --scale raw or --scale norm"):
        decode_file(wan, path, tmp_path / "a.mkv")
    path = comfyui(tmp_path, natural(length=2)[:, :, :2, :2])
    with pytest.raises(CheckpointError, match="of only 8 positions"):
        decode_file(wan, path, tmp_path / "a.mkv")
    assert decode_file(wan, path, tmp_path / "a.mkv", scale="normalized") == 5


def test_a_scale_that_is_forced_counts(
    tmp_path: Path, wan: WanVAE, caplog: pytest.LogCaptureFixture
) -> None:
    path = comfyui(tmp_path, natural(length=1))
    decode_file(wan, path, tmp_path / "a.png", scale="raw")
    expected = wan.decode(natural(length=1)[None])[0]
    assert (read_video(tmp_path / "a.png")[0] - expected).abs().max() < 4 / 255
    assert caplog.text == ""
