"""What each loss term of the VAE is summed over."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wanvae import Posterior, Reconstruction
from wanvae.engine.command_line.arguments import parse_config
from wanvae.train.adversarial import GanConfig
from wanvae.train.losses import LossConfig, VideoLosses, peak_signal_to_noise
from wanvae.train.run import TrainConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "video").glob("*.yaml"))


def example() -> tuple[Reconstruction, torch.Tensor]:
    video = torch.zeros(2, 3, 5, 4, 4)
    output = video.clone()
    output[0] += 0.5
    mean, logvar = torch.zeros(2, 2, 2, 1, 1), torch.zeros(2, 2, 2, 1, 1)
    mean[1] = 2.0
    return Reconstruction(output, Posterior(mean, logvar)), video


def random_example(clips: int) -> tuple[Reconstruction, torch.Tensor]:
    posterior = Posterior(*torch.randn(2, clips, 2, 2, 1, 1))
    output, video = torch.rand(2, clips, 3, 5, 4, 4) * 2 - 1
    return Reconstruction(output, posterior), video


def terms_of(
    output: Reconstruction, video: torch.Tensor, config: LossConfig
) -> dict[str, torch.Tensor]:
    return VideoLosses(config, "cpu").generator(
        output, video, discriminator=None, last_layer=video, step=0
    )


def test_sums_are_over_a_clip_and_means_over_clips():
    terms = terms_of(*example(), LossConfig(l1=2.0, kl=10.0))
    assert set(terms) == {"l1", "kl"}
    assert terms["l1"].item() == pytest.approx(2 * 0.5 * (3 * 5 * 4 * 4) / 2)
    assert terms["kl"].item() == pytest.approx(10 * (0.5 * 4) * 4 / 2)


def test_the_mean_of_l1_is_over_everything():
    terms = terms_of(*example(), LossConfig(l1=2.0, l1_reduction="mean"))
    assert terms["l1"].item() == pytest.approx(2 * 0.5 / 2)


def test_charbonnier_is_reduced_as_l1_is():
    config = LossConfig(l1=2.0, pixel_error="charbonnier", charbonnier_epsilon=0.1)
    expected = 2 * (math.sqrt(0.5**2 + 0.1**2) + 0.1) / 2
    terms = terms_of(*example(), config)
    assert set(terms) == {"charbonnier", "kl"}
    assert terms["charbonnier"].item() == pytest.approx(expected * 3 * 5 * 4 * 4)
    terms = terms_of(*example(), replace(config, l1_reduction="mean"))
    assert terms["charbonnier"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(kl=0.1),
        LossConfig(kl=0.1, l1_reduction="mean"),
        LossConfig(kl=0.1, pixel_error="charbonnier", charbonnier_epsilon=0.3),
    ],
)
def test_a_batch_has_the_mean_of_its_halves(config):
    output, video = random_example(4)
    whole = terms_of(output, video, config)
    mean, logvar = output.posterior.mean, output.posterior.logvar
    halves = [
        terms_of(
            Reconstruction(output.video[part], Posterior(mean[part], logvar[part])),
            video[part],
            config,
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name, term in whole.items():
        torch.testing.assert_close(term, (halves[0][name] + halves[1][name]) / 2)


def test_kl_equals_that_of_torch():
    mean, logvar = torch.randn(3, 2, 4, 2, 2), torch.randn(3, 2, 4, 2, 2)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (0.5 * logvar).exp()), normal(torch.zeros(()), torch.ones(()))
    )
    torch.testing.assert_close(Posterior(mean, logvar).kl(), expected.flatten(1).sum(1))


def test_extreme_logvar_stays_finite():
    posterior = Posterior(torch.zeros(1, 1, 1, 1, 2), torch.tensor([-1e4, 1e4]).view(1, 1, 1, 1, 2))
    assert posterior.kl().isfinite().all()
    assert posterior.sample().isfinite().all()


def test_samples_have_the_mean_and_variance():
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((1, 1, 100, 32, 32), 3.0)
    sample = Posterior(mean, torch.full_like(mean, math.log(4))).sample(generator)
    assert sample.mean().item() == pytest.approx(3, abs=0.05)
    assert sample.std().item() == pytest.approx(2, abs=0.05)
    again = Posterior(mean, torch.full_like(mean, math.log(4))).sample(generator.manual_seed(0))
    assert torch.equal(again, sample)


@pytest.mark.parametrize("pixel_error", ["l1", "charbonnier"])
def test_low_precision_is_reduced_in_float32(pixel_error):
    output, video = random_example(2)
    low = Reconstruction(
        output.video.bfloat16(),
        Posterior(output.posterior.mean.bfloat16(), output.posterior.logvar.bfloat16()),
    )
    wide = Reconstruction(
        low.video.float(), Posterior(low.posterior.mean.float(), low.posterior.logvar.float())
    )
    video = video.bfloat16()
    config = LossConfig(kl=1.0, pixel_error=pixel_error)
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(low, video, config)
    for name, expected in terms_of(wide, video.float(), config).items():
        assert terms[name].dtype == torch.float32
        assert torch.equal(terms[name], expected)


def test_a_model_in_float64_has_terms_that_can_be_summed():
    output, video = random_example(1)
    posterior = Posterior(output.posterior.mean.double(), output.posterior.logvar.double())
    terms = terms_of(Reconstruction(output.video.double(), posterior), video, LossConfig())
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_psnr_of_a_known_error():
    video = torch.zeros(1, 3, 1, 4, 4)
    assert peak_signal_to_noise(video + 0.2, video).item() == pytest.approx(20)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (LossConfig, {"l1": -1.0}),
        (LossConfig, {"kl": -1.0}),
        (LossConfig, {"lpips": -1.0}),
        (LossConfig, {"l1_reduction": "median"}),
        (LossConfig, {"pixel_error": "l3"}),
        (LossConfig, {"charbonnier_epsilon": 0.0}),
        (LossConfig, {"lpips_network": "resnet"}),
        (GanConfig, {"weight": -1.0}),
        (GanConfig, {"start_step": -1}),
        (GanConfig, {"r1": -1.0}),
        (GanConfig, {"lecam": -1.0}),
        (GanConfig, {"dim": 0}),
        (GanConfig, {"layers": 0}),
        (GanConfig, {"learning_rate": 0.0}),
    ],
)
def test_impossible_values_are_refused_by_name(config, values):
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=f"{name} must be .*, not {value!r}"):
        config(**values)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_command_line_changes_any_term_of_a_shipped_config(path):
    options = ["--loss.gan.weight=0.5", "--loss.gan.r1=2", "--loss.pixel_error=charbonnier"]
    shipped = parse_config(TrainConfig, "test", "", [f"--config={path}"])
    config = parse_config(TrainConfig, "test", "", [f"--config={path}", *options])
    assert config.loss.gan == replace(shipped.loss.gan, weight=0.5, r1=2.0)
    assert config.loss.pixel_error == "charbonnier"
    assert shipped.loss.gan.plays(10**9) == (path.stem in ("stage3_gan", "upscale2x"))
