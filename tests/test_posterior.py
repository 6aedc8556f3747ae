"""The distribution of latents."""

import pytest
import torch

from wanvae import Posterior


def example(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_a_seed_gives_one_sample_in_whatever_order_the_moments_are_in_memory() -> None:
    mean, logvar = example(2, 4, 3, 5, 6), example(2, 4, 3, 5, 6)
    other = (x.to(memory_format=torch.channels_last_3d) for x in (mean, logvar))
    sample = Posterior(mean, logvar).sample(seeded())
    assert torch.equal(Posterior(*other).sample(seeded()), sample)


def test_a_seed_gives_the_sample_that_it_gives_diffusers() -> None:
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    moments = example(2, 8, 3, 5, 6)
    theirs = vae.DiagonalGaussianDistribution(moments).sample(seeded())
    torch.testing.assert_close(Posterior.from_moments(moments).sample(seeded()), theirs)
