"""Convolutions of doubled images: both ways give what doubling and convolving give."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wanvae.nn.kernels.doubled import convolve_doubled_by_pytorch, convolve_doubled_in_phases
from wanvae.nn.kernels.doubled_gradients import convolve_doubled_with_gradients

WAYS = (
    convolve_doubled_by_pytorch,
    convolve_doubled_in_phases,
    convolve_doubled_with_gradients,
)


def example(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_four_phases_are_a_convolution_of_the_doubled(batch, channels, size):
    x, weight = example(batch, channels[0], *size), example(channels[1], channels[0], 3, 3)
    bias = example(channels[1])
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(doubled, weight, bias, padding=1)
    for convolve in WAYS:
        torch.testing.assert_close(convolve(x, weight, bias), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_four_phases_in_a_half_type_are_about_as_exact_as_the_convolution():
    x, weight, bias = example(2, 64, 6, 6), example(64, 64, 3, 3), example(64)
    half = [t.bfloat16() for t in (x, weight, bias)]
    doubled = [F.interpolate(t, scale_factor=2.0, mode="nearest-exact") for t in (x, half[0])]
    exact = F.conv2d(doubled[0], weight, bias, padding=1)
    plain = F.conv2d(doubled[1], *half[1:], padding=1)
    assert (convolve_doubled_in_phases(*half) - exact).norm() <= 1.25 * (plain - exact).norm()


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("has_bias", [True, False])
def test_first_and_second_derivatives_of_doubled(check, has_bias):
    x, weight = example(2, 2, 2, 3).requires_grad_(), example(3, 2, 3, 3).requires_grad_()
    bias = example(3).requires_grad_() if has_bias else None
    assert check(convolve_doubled_with_gradients, (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_types_have_about_the_gradients_of_float64_of_doubled(dtype, autocast):
    exact = [example(2, 3, 4, 5), example(4, 3, 3, 3), example(4)]
    given = [t.to(torch.float32 if autocast else dtype).requires_grad_() for t in exact]
    exact = [t.requires_grad_() for t in exact]
    with torch.autocast("cpu", dtype, enabled=autocast):
        y = convolve_doubled_with_gradients(*given)
    assert y.dtype == dtype
    expected = torch.autograd.grad(convolve_doubled_by_pytorch(*exact).square().mean(), exact)
    found = torch.autograd.grad(y.float().square().mean(), given)
    for gradient, like, other in zip(found, given, expected, strict=True):
        assert gradient.dtype == like.dtype
        assert (gradient - other).norm() < 0.03 * other.norm()
