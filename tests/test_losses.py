"""What each loss term is summed over."""

import math

import pytest
import torch

from wanvae import Posterior, Reconstruction
from wanvae.losses import LossConfig, peak_signal_to_noise, reconstruction_losses


def example() -> tuple[Reconstruction, torch.Tensor]:
    video = torch.zeros(2, 3, 5, 4, 4)
    output = video.clone()
    output[0] += 0.5
    mean, logvar = torch.zeros(2, 2, 2, 1, 1), torch.zeros(2, 2, 2, 1, 1)
    mean[1] = 2.0
    return Reconstruction(output, Posterior(mean, logvar)), video


def test_sums_are_over_a_clip_and_means_over_clips():
    terms = reconstruction_losses(*example(), LossConfig(l1=2.0, kl=10.0))
    assert terms["l1"].item() == pytest.approx(2 * 0.5 * (3 * 5 * 4 * 4) / 2)
    assert terms["kl"].item() == pytest.approx(10 * (0.5 * 4) * 4 / 2)


def test_the_mean_of_l1_is_over_everything():
    terms = reconstruction_losses(*example(), LossConfig(l1=2.0, l1_reduction="mean"))
    assert terms["l1"].item() == pytest.approx(2 * 0.5 / 2)


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


def test_low_precision_is_reduced_in_float32():
    output, video = example()
    half = Reconstruction(
        output.video.bfloat16(),
        Posterior(output.posterior.mean.bfloat16(), video[:, :2, :2, :1, :1]),
    )
    terms = reconstruction_losses(half, video.bfloat16(), LossConfig())
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_psnr_of_a_known_error():
    video = torch.zeros(1, 3, 1, 4, 4)
    assert peak_signal_to_noise(video + 0.2, video).item() == pytest.approx(20)
