"""Training of decoders that upscale."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import wanvae.train.run
from tests.helpers import WAN22, random_video, tiny
from tests.train.short_runs import lines, short_run
from wanvae import WanVAE, cli
from wanvae.errors import UserError
from wanvae.train.held_out import EvaluationConfig, comparison_grid, evaluate, read_held_out
from wanvae.train.run import main
from wanvae.train.upscaling import check_shape, scale_down, with_upscaling
from wanvae.video import read_clip, write_video

SMALL = {"dim_mult": (1, 2), "temporal_downsample": (True,)}


def enlarged(video: Tensor, factor: int) -> Tensor:
    """Each pixel as a square of equal pixels."""
    return video.repeat_interleave(factor, dim=3).repeat_interleave(factor, dim=4)


# Scaling down


def test_area_is_the_mean_of_squares() -> None:
    small = random_video(3, 4, 6, batch=2)
    torch.testing.assert_close(scale_down(enlarged(small, 2), 2, "area"), small)
    video = random_video(3, 8, 12)
    small = scale_down(video, 4, "area")
    torch.testing.assert_close(small[0, 1, 2, 1, 2], video[0, 1, 2, 4:8, 8:12].mean())
    assert scale_down(video, 1, "area") is video


def test_bicubic_does_not_alias_and_stays_in_range() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(32).expand(1, 3, 2, 64, 64)
    small = scale_down(stripes, 2, "bicubic")
    assert small.shape == (1, 3, 2, 32, 32)
    assert small[..., 4:-4].abs().max() < 0.05
    edge = torch.ones(1, 3, 1, 16, 16)
    edge[..., :8] = -1
    assert scale_down(edge, 2, "bicubic").abs().max() <= 1


# The start


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize(
    "variant", [{}, {"ndim": 2}, {"attn_scales": (0.5,)}, {"stage_shortcuts": True}]
)
@torch.no_grad()
def test_a_decoder_starts_as_nearest_upscaling_of_its_base(variant: dict, factor: int) -> None:
    base = tiny(**variant)
    vae = with_upscaling(base, factor)
    assert vae.config.upscale_factor == factor and not vae.training
    assert vae.decode_dtype == base.decode_dtype
    video = random_video(5, 16, 24)
    latents = base.encode(video).mode()
    assert torch.equal(vae.encode(video).mode(), latents)
    torch.testing.assert_close(vae.decode(latents), enlarged(base.decode(latents), factor))


def test_decoders_that_cannot_upscale_say_why() -> None:
    with pytest.raises(UserError, match="upscales by 2 already"):
        with_upscaling(with_upscaling(tiny(), 2), 4)
    with pytest.raises(UserError, match="needs weights without patches"):
        with_upscaling(tiny(**WAN22), 2)


def test_sizes_are_checked_at_the_size_of_the_decoder() -> None:
    config = with_upscaling(tiny(), 2).config  # 8 encoded pixels for each latent
    check_shape(config, 32, 48)
    with pytest.raises(UserError, match=r"multiples of 16, not 24x32: choose 16x32 or 32x32"):
        check_shape(config, 24, 32)
    with pytest.raises(UserError, match="multiples of 8, not 12x32"):
        check_shape(tiny().config, 12, 32)


# Judging


@torch.no_grad()
def test_held_out_clips_are_compared_at_their_full_size(folder: Path) -> None:
    vae = with_upscaling(tiny().float(), 2)
    config = EvaluationConfig(folder=str(folder), frames=5, size=32)
    (clip,) = read_held_out(config, vae.config).clips
    assert clip.video.shape == (3, 5, 32, 32)
    small = F.avg_pool3d(clip.video[None], (1, 2, 2))
    expected = vae.decode(vae.encode(small).mode())[0]
    error = (expected - clip.video).square().mean()
    means = evaluate(vae, [clip]).means
    assert means["psnr"] == pytest.approx(float(10 * torch.log10(4 / error)), abs=1e-3)
    grid = comparison_grid(vae, [clip], frames=1)
    torch.testing.assert_close(grid[:, 32:], expected[:, 0])
    with pytest.raises(UserError, match="multiples of 16, not 24x24"):
        read_held_out(EvaluationConfig(folder=str(folder), frames=5, size=24), vae.config)


# Runs


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    tiny(**SMALL).float().save_pretrained(path)
    return path


@pytest.mark.parametrize("ndim", [3, 2])
def test_an_upscaling_decoder_learns(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ndim: int
) -> None:
    base, run = tmp_path / "base.safetensors", tmp_path / "run"
    tiny(ndim=ndim, **SMALL).float().save_pretrained(base)
    compared, first = [], wanvae.train.run.VideoLosses.compare

    def watch(self: object, output: Tensor, video: Tensor) -> dict[str, Tensor]:
        compared.append((output.shape, video.shape))
        return first(self, output, video)

    monkeypatch.setattr(wanvae.train.run.VideoLosses, "compare", watch)
    more = [f"--weights={base}", "--model.upscale_factor=2", f"--model.ndim={ndim}"]
    assert main([*short_run(folder, run, 12), *more, "--freeze_encoder=true"]) == 0
    assert set(compared) == {((2, 3, 5, 16, 16), (2, 3, 5, 16, 16))}
    logged = [line for line in lines(run) if "loss" in line]
    assert logged[-1]["l1"] < logged[0]["l1"]
    assert any("evaluation_psnr" in line for line in lines(run))
    preview = read_clip(run / "previews" / "step-00000012.png", 0, 1, 1)
    assert preview.shape[2:] == (32, 48)
    vae = WanVAE.from_pretrained(run / "model.safetensors")
    assert (vae.config.upscale_factor, vae.config.ndim) == (2, ndim)
    source = WanVAE.from_pretrained(base)
    latents = source.encode(random_video(5).float()).mode()
    assert torch.equal(vae.encode(random_video(5).float()).mode(), latents)
    assert vae.decode(latents).shape == (1, 3, 5, 32, 32)
    # A run starts from such weights without being told that they upscale.
    again = [f"--weights={run / 'model.safetensors'}", f"--model.ndim={ndim}"]
    assert main([*short_run(folder, tmp_path / "again", 1), *again]) == 0


def test_the_commands_decode_a_trained_upscaler(folder: Path, tmp_path: Path, base: Path) -> None:
    run, latents = tmp_path / "run", tmp_path / "latents.safetensors"
    more = [f"--weights={base}", "--model.upscale_factor=2"]
    assert main([*short_run(folder, run, 1), *more]) == 0
    model = str(run / "model.safetensors")
    clip, written = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    write_video(clip, random_video(5, 16, 16)[0].float(), Fraction(25))
    assert cli.main(["encode", str(clip), str(latents), "--checkpoint", model]) == 0
    assert cli.main(["decode", str(latents), str(written), "--checkpoint", model]) == 0
    assert read_clip(written, 0, 5, 1).shape == (3, 5, 32, 32)


def test_a_new_model_that_upscales_by_4_learns(folder: Path, tmp_path: Path) -> None:
    model = ["--model.dim=4", "--model.z_dim=2", "--model.num_res_blocks=1"]
    model += ["--model.dim_mult=[1,2]", "--model.temporal_downsample=[true]"]
    run = tmp_path / "run"
    more = [*model, "--model.upscale_factor=4", "--downscaling=bicubic"]
    assert main([*short_run(folder, run, 8), *more]) == 0
    logged = [line for line in lines(run) if "loss" in line]
    assert logged[-1]["l1"] < logged[0]["l1"]
    # How clips are scaled down belongs to the run.
    with_area = [*short_run(folder, run, 9), *model, "--model.upscale_factor=4"]
    assert main(with_area) == 1


def test_a_lora_of_an_upscaling_decoder_learns_and_of_a_plain_one_is_refused(
    folder: Path, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upscaling, run = tmp_path / "upscaling.safetensors", tmp_path / "run"
    with_upscaling(tiny(**SMALL).float(), 2).save_pretrained(upscaling)
    lora = ["--lora.rank=1"]
    assert main([*short_run(folder, run, 2), f"--weights={upscaling}", *lora]) == 0
    assert (run / "lora.safetensors").exists()
    more = [f"--weights={base}", "--model.upscale_factor=2", *lora]
    assert main([*short_run(folder, tmp_path / "other", 2), *more]) == 1
    assert "cannot be merged into" in capsys.readouterr().err


def test_crops_that_the_decoder_cannot_give_are_refused(
    folder: Path, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"--weights={base}", "--model.upscale_factor=2", "--data.size=18"]
    assert main([*short_run(folder, tmp_path / "run", 2), *more]) == 1
    assert "the decoder upscales by 2" in capsys.readouterr().err
