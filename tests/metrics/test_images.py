"""Figures of reconstructions."""

import math

import pytest
import torch

from tests.calling_threads import needs_linux, threads_started
from wanvae.metrics.images import ms_ssim, psnr, ssim


def test_psnr_is_of_the_error_of_all_images_together():
    original = torch.zeros(2, 3, 16, 16)
    image = original.clone()
    image[0] += 0.2
    # Half of the values are off by a tenth of the range of 2.
    assert psnr(image, original) == pytest.approx(10 * math.log10(4 / 0.02), abs=1e-4)


def test_ssim_is_the_mean_over_images():
    original = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = torch.stack([original[0], original[1] * 0.5])
    single = [ssim(a[None], b[None]) for a, b in zip(image, original, strict=True)]
    assert single[0] == pytest.approx(1) and single[1] < 0.9
    assert ssim(image, original) == pytest.approx(sum(single) / 2)
    assert math.isnan(ssim(original[..., :10], original[..., :10]))


def test_psnr_of_equal_images_is_infinite_and_of_no_numbers_is_none():
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert psnr(image, image) == math.inf
    assert psnr(image, torch.full_like(image, math.inf)) == -math.inf
    assert math.isnan(psnr(image, torch.full_like(image, math.nan)))


def test_psnr_is_of_all_rows_of_large_images():
    original = torch.zeros(1, 3, 70, 1000)  # more than is compared at a time
    image = original.clone()
    image[..., 69, :] = 0.2
    assert psnr(image, original) == pytest.approx(10 * math.log10(4 * 70 / 0.04), abs=1e-4)


@needs_linux
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_are_compared_in_the_thread_that_calls(metric):
    image = torch.rand(1, 3, 200, 600, generator=torch.Generator().manual_seed(0)) * 2 - 1
    opposite = -image
    assert threads_started(lambda: metric(image, opposite)) == 0


def test_ms_ssim_of_opposite_images_is_nothing():
    image = torch.rand(1, 3, 176, 176, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ms_ssim(image, image) == pytest.approx(1)
    assert ms_ssim(image, -image) == 0
