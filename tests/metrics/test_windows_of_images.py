"""SSIM in windows: the way of CPUs gives what the way of other devices gives."""

import pytest
import torch
from torch import Tensor

from wanvae.metrics import windows
from wanvae.metrics.windows import similarity


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(shape, generator=generator) * 2 - 1
    return (original + 0.2 * torch.randn(shape, generator=generator)).clamp(-1, 1), original


# The last are wider than what a CPU compares at a time; few sides fill whole rows and products.
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 11, 11), (1, 1, 12, 40), (3, 4, 31, 27), (1, 3, 18, 1034), (1, 2, 21, 1035)],
)
def test_both_ways_agree(shape: tuple[int, ...]) -> None:
    images, originals = pair(*shape)
    luminance, contrast = windows._factors(images.double(), originals.double())
    whole, second = similarity(images, originals)
    torch.testing.assert_close(whole, (luminance * contrast).mean((1, 2, 3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(second, contrast.mean((1, 2, 3)), rtol=0, atol=1e-6)


def test_views_of_a_clip_are_compared_as_they_are() -> None:
    images, originals = pair(3, 5, 40, 40)
    cropped = images[None, :, 2, :30, :33], originals[None, :, 2, :30, :33]
    copies = [image.contiguous() for image in cropped]
    assert torch.equal(similarity(*cropped)[0], similarity(*copies)[0])


def test_values_that_are_not_finite_are_not_passed_over() -> None:
    images, originals = pair(2, 3, 40, 40)
    images[0, 1, 30, 30] = float("nan")
    whole, _ = similarity(images, originals)
    assert whole.isnan().tolist() == [True, False]
