"""Norms against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from wanvae.nn import RMSNorm, make_norm


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-14, 0.0])
def test_rms_norm_is_wans_formula_down_to_zero(scale):
    norm = RMSNorm(3, 6)
    norm.gamma.data.uniform_(0.5, 2)
    x = (torch.randn(2, 6, 3, 4, 4) * scale).requires_grad_()
    y = norm(x)
    torch.testing.assert_close(y, F.normalize(x, dim=1) * math.sqrt(6) * norm.gamma)
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_computes_half_precision_in_float32(dtype):
    norm = RMSNorm(1, 512)
    x = (torch.randn(1, 512, 4) * 100).to(dtype)  # whose sum of squares overflows float16
    expected = F.normalize(x.float(), dim=1) * math.sqrt(512)
    assert norm.to(dtype)(x).dtype == dtype
    torch.testing.assert_close(norm(x), expected.to(dtype))


def test_layer_norm_works_on_the_channels_of_each_position():
    norm = make_norm("layer", 3, 6)
    x = torch.randn(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = norm(x)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(2, 3, 4, 4), atol=1e-3, rtol=0)


def test_a_frozen_batch_norm_keeps_its_statistics():
    norm = make_norm("batch", 3, 4).requires_grad_(False).train()
    x = 3 + torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(x), make_norm("batch", 3, 4).eval()(x))
    norm.requires_grad_(True).train()
    norm(x)
    assert (norm.running_mean != 0).all()
