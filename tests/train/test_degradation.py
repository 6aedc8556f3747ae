"""Degraded clips as inputs: what each step does, and that it is the same each time."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.helpers import tiny
from tests.train.test_train import options, tensors_of
from wanvae.engine.command_line.arguments import parse_config
from wanvae.metrics.images import psnr
from wanvae.train.crops import DataConfig, VideoCrops
from wanvae.train.degradation import (
    Degradation,
    DegradationConfig,
    degrade,
    draw_degradation,
    gaussian,
    line,
)
from wanvae.train.held_out import HeldOutClip, comparison_grid, evaluate
from wanvae.train.pair import Pair
from wanvae.train.restoration import DegradedCrops, degrade_clip
from wanvae.train.run import TrainConfig, main
from wanvae.video import write_video
from wanvae.video.recompression import JPEG, recompress

STEPS = ("blur", "motion_blur", "shrink", "noise", "jpeg", "h264")
EVERYTHING = DegradationConfig(**dict.fromkeys(STEPS, 0.5))
NOTHING = Degradation(None, None, None, None, None, None, 0.0, "bilinear", "bilinear", False, 0)


def noisy(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "a.mp4", 0.8 * noisy(3, 12, 32, 40), Fraction(25))
    return folder


def crops(folder: Path, alpha: bool = False) -> VideoCrops:
    config = DataConfig(folder=str(folder), frames=5, size=16, largest_scale=2.0)
    return VideoCrops(config, 0, samples_per_step=1, alpha=alpha)


def test_nothing_is_degraded_by_default():
    clip = noisy(3, 2, 8, 8)
    drawn = draw_degradation(DegradationConfig(), np.random.default_rng(0))
    assert not DegradationConfig().changes and torch.equal(degrade(clip, drawn), clip)
    assert all(DegradationConfig(**{step: 0.1}).changes for step in STEPS)


def test_targets_are_the_crops_and_pairs_follow_from_seed_and_number(media):
    plain = [crops(media)[number] for number in range(12)]
    pairs = [DegradedCrops(crops(media), EVERYTHING, 0)[number] for number in range(12)]
    assert all(torch.equal(pair.target, crop) for pair, crop in zip(pairs, plain, strict=True))
    assert sum(torch.equal(*pair) for pair in pairs) < 4
    loader = DataLoader(
        DegradedCrops(crops(media), EVERYTHING, 0), 4, num_workers=2, sampler=range(12)
    )
    for index, batch in enumerate(loader):
        assert isinstance(batch, Pair)
        expected = pairs[index * 4 : index * 4 + 4]
        assert torch.equal(batch.input, torch.stack([pair.input for pair in expected]))
        assert torch.equal(batch.target, torch.stack([pair.target for pair in expected]))
    # As a run that resumes does, from the middle on.
    samples = DegradedCrops(crops(media), EVERYTHING, 0)
    assert all(torch.equal(samples[number].input, pairs[number].input) for number in (7, 3))
    other = DegradedCrops(crops(media), EVERYTHING, 1)
    assert not all(torch.equal(other[number].input, pairs[number].input) for number in range(3))


def test_alpha_stays_as_it_is(tmp_path):
    write_video(tmp_path / "a.webm", noisy(4, 8, 32, 40), Fraction(25))
    samples = DegradedCrops(crops(tmp_path, alpha=True), EVERYTHING, 0)
    pairs = [samples[number] for number in range(8)]
    assert all(torch.equal(pair.input[3], pair.target[3]) for pair in pairs)
    assert not all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "changes", [{"sigma": 1.5}, {"length": 5.0}, {"factor": 2.5}, {"scale": 9.0}]
)
def test_frames_of_a_clip_are_degraded_alike(changes):
    still = noisy(3, 1, 24, 20)
    clip = degrade(still.expand(-1, 4, -1, -1), replace(NOTHING, **changes))
    assert torch.equal(clip, clip[:, :1].expand_as(clip)) and clip.shape == (3, 4, 24, 20)
    assert not torch.equal(clip[:, :1], still) and torch.equal(
        clip[:, :1], degrade(still, replace(NOTHING, **changes))
    )


@pytest.mark.parametrize("gray", [True, False])
def test_noise_is_as_strong_in_each_frame_and_new(gray):
    clip = torch.zeros(3, 4, 64, 64)
    noise = degrade(clip, replace(NOTHING, level=20.0, gray=gray, seed=3)) * 127.5
    # The deviation of the estimate from 4096 values is 0.22.
    torch.testing.assert_close(noise.std((2, 3)), torch.full((3, 4), 20.0), atol=0.9, rtol=0)
    assert torch.equal(noise[0], noise[1]) == gray
    frames = noise[0].flatten(1)
    assert torch.corrcoef(frames).fill_diagonal_(0).abs().max() < 0.08


def test_a_gaussian_has_its_deviation_and_flat_pictures_stay():
    kernel = gaussian(1.7)[0]
    places = np.arange(len(kernel)) - len(kernel) // 2
    assert math.sqrt((kernel * places**2).sum()) == pytest.approx(1.7, rel=0.03)
    flat = torch.full((3, 2, 9, 9), 0.3)
    for changes in ({"sigma": 2.0}, {"length": 7.0, "angle": 1.0}, {"factor": 3.0}):
        torch.testing.assert_close(degrade(flat, replace(NOTHING, **changes)), flat)


def test_motion_blurs_along_its_line_only():
    stripes = (torch.arange(24) % 4 < 2).float().expand(3, 1, 24, 24) * 2 - 1
    along = degrade(stripes, replace(NOTHING, length=8.0, angle=math.pi / 2))
    across = degrade(stripes, replace(NOTHING, length=8.0, angle=0.0))
    torch.testing.assert_close(along, stripes, atol=1e-5, rtol=0)
    assert across[..., 8:-8].abs().max() < 0.3
    assert line(1.0, 0.7).shape == (1, 1) and line(8.0, 0.7).sum() == pytest.approx(1)


def test_a_smaller_size_loses_what_is_finer_than_its_pixels():
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    coarse, fine = (
        torch.sin(x / 9).expand(3, 1, 48, 48),
        ((x + y) % 2 * 2 - 1).float().expand(3, 1, 48, 48),
    )
    for down in ("bilinear", "bicubic"):
        smaller = replace(NOTHING, factor=4.0, down=down, up="bicubic")
        assert (degrade(coarse, smaller) - coarse).abs().mean() < 0.02
        assert degrade(fine, smaller)[..., 8:-8, 8:-8].abs().mean() < 0.05


def test_noise_and_jpeg_come_between_the_two_scalings():
    clip = 0.2 * noisy(3, 2, 32, 32)
    noise = degrade(torch.zeros(3, 1, 64, 64), replace(NOTHING, factor=4.0, level=30.0))
    rows = noise[0, 0, :, 1:], noise[0, 0, :, :-1]
    assert torch.corrcoef(torch.stack([row.flatten() for row in rows]))[0, 1] > 0.8
    assert torch.equal(
        degrade(clip, replace(NOTHING, sigma=1.0, scale=8.0)),
        recompress(degrade(clip, replace(NOTHING, sigma=1.0)), JPEG, 8.0),
    )


def test_steps_and_strengths_are_drawn_as_asked_for():
    config = replace(EVERYTHING, blur=0.2, h264=1.0, noise=0.0)
    drawn = [draw_degradation(config, np.random.default_rng(seed)) for seed in range(1000)]
    sigmas = [one.sigma for one in drawn if one.sigma is not None]
    # Three deviations of the binomial distribution are 38.
    assert abs(len(sigmas) - 200) < 38
    assert all(one.crf is not None and one.level is None for one in drawn)
    crfs = [one.crf or 0 for one in drawn]
    assert 18 <= min(crfs) < 18.5 and 34.5 < max(crfs) <= 35 and abs(np.mean(crfs) - 26.5) < 0.6
    # An option does not change what the others do.
    more = [
        draw_degradation(replace(config, noise=1.0), np.random.default_rng(s)) for s in range(9)
    ]
    assert [replace(one, level=None) for one in more] == drawn[:9]


def test_held_out_clips_are_degraded_the_same_each_time_by_their_name():
    clip = HeldOutClip("a.mp4", noisy(3, 5, 16, 16))
    config = replace(EVERYTHING, noise=1.0)
    inputs = [degrade_clip(clip, config).input for _ in range(2)]
    other = degrade_clip(replace(clip, name="b.mp4"), config).input
    assert inputs[0] is not None and inputs[1] is not None and other is not None
    assert torch.equal(*inputs) and not torch.equal(inputs[0], other)


def test_the_evaluation_judges_restoration_and_the_grid_shows_the_input():
    torch.manual_seed(0)
    vae = tiny().float()
    clip = degrade_clip(HeldOutClip("a", noisy(3, 5, 16, 16)), replace(EVERYTHING, noise=1.0))
    assert clip.input is not None
    output = vae.decode(vae.encode(clip.input[None]).mode())[0]
    expected = psnr(output.transpose(0, 1), clip.video.transpose(0, 1))
    assert evaluate(vae, [clip]).means["psnr"] == pytest.approx(float(expected))
    rows = comparison_grid(vae, [clip], 1).unflatten(1, (3, 16))
    for row, video in enumerate((clip.video, clip.input, output)):
        torch.testing.assert_close(rows[:, row], video[:, 0])


def test_a_run_learns_from_degraded_crops_and_resumes_bit_for_bit(folder, tmp_path, capsys):
    changes = [
        *("--data.degradation.noise=1", "--data.degradation.h264=0.5", "--model.num_res_blocks=1"),
        *("--loss.gan.weight=0.1", "--loss.gan.dim=8", "--loss.gan.layers=1"),
        *(f"--evaluation.folder={folder}", "--evaluation.frames=5", "--evaluation.size=16"),
        *(
            "--trainer.evaluate_every=4",
            "--trainer.preview_every=4",
            "--loss.equivariance.weight=1",
        ),
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*options(folder, whole, 4), *changes]) == 0
    assert main([*options(folder, parts, 2), *changes]) == 0
    assert main([*options(folder, parts, 4), *changes]) == 0
    expected, found = (tensors_of(run / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (whole / "previews" / "step-00000004.png").exists()
    capsys.readouterr()
    assert main([*options(folder, parts, 6), *changes, "--data.degradation.noise_level=[1,2]"]) == 1
    assert "data.degradation.noise_level is (1.0, 30.0), not (1.0, 2.0)" in capsys.readouterr().err


def test_options_come_from_the_command_line_and_impossible_ones_are_refused():
    arguments = ["--data.degradation.h264=0.5", "--data.degradation.h264_crf=[20, 40]"]
    config = parse_config(TrainConfig, "test", "", arguments)
    assert config.data.degradation == DegradationConfig(h264=0.5, h264_crf=(20.0, 40.0))
    for changes, message in (
        ({"jpeg": 1.5}, "jpeg must be between 0 and 1, not 1.5"),
        ({"h264_crf": (30.0, 20.0)}, r"h264_crf must be two numbers in order, .* 0 and 51, not"),
        ({"jpeg_scale": (0.0, 20.0)}, "jpeg_scale must be two numbers in order, between 1 and 31"),
        ({"noise_level": (3.0,)}, "noise_level must be two numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            DegradationConfig(**changes)
