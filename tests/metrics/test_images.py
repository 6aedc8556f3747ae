"""Figures of reconstructions."""

import math

import pytest
import torch

from wanvae.metrics.images import psnr, ssim


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
