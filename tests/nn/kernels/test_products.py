"""Convolutions along time as products: output and gradients are those of the convolution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wanvae.nn.kernels.products import (
    convolve_by_products,
    find_gradients_by_products,
    list_products,
)

ENOUGH_CHANNELS = 64


def example(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def list_for(frames: int, zeros: int, taps: int = 3, dtype: torch.dtype = torch.float64):
    shape = (ENOUGH_CHANNELS, ENOUGH_CHANNELS, taps, 3, 3)
    return list_products(frames, zeros, shape, dtype)


def make_input(batch: int, frames: int, zeros: int, taps: int) -> Tensor:
    x = example(batch, 3, frames + taps - 1, 4, 5)
    x[:, :, :zeros] = 0
    return x.contiguous(memory_format=torch.channels_last_3d)


@given(
    batch=st.integers(1, 2),
    frames=st.integers(1, 9),
    after_zeros=st.booleans(),
    taps=st.sampled_from([1, 3]),
    padding=st.sampled_from([(1, 1), (0, 1)]),
)
def test_output_and_gradients(batch, frames, after_zeros, taps, padding):
    zeros = taps - 1 if after_zeros else 0
    products = list_for(frames, zeros, taps)
    if products is None:
        assert frames % 2 and not zeros
        return
    x, weight, bias = make_input(batch, frames, zeros, taps), example(2, 3, taps, 3, 3), example(2)
    y = convolve_by_products(products, x, weight, bias, frames, padding)
    x.requires_grad_(), weight.requires_grad_()
    expected = F.conv3d(x, weight, bias, padding=(0, *padding))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    grad = example(*y.shape)
    of_x, of_weight = torch.autograd.grad(expected, (x, weight), grad)
    with torch.no_grad():
        found = find_gradients_by_products(products, grad, x, weight, padding, (True, True))
    # Nobody reads the gradients of zeros.
    torch.testing.assert_close(found[0][:, :, zeros:], of_x[:, :, zeros:], rtol=0, atol=1e-11)
    torch.testing.assert_close(found[1], of_weight, rtol=0, atol=1e-11)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_what_is_wanted(wanted):
    x, weight, grad = make_input(1, 5, 2, 3), example(2, 3, 3, 3, 3), example(1, 2, 5, 4, 5)
    both = find_gradients_by_products(list_for(5, 2), grad, x, weight, (1, 1), (True, True))
    found = find_gradients_by_products(list_for(5, 2), grad, x, weight, (1, 1), wanted)
    for one, other, is_wanted in zip(found, both, wanted, strict=True):
        assert (one is not None) == is_wanted
        if is_wanted:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("frames", "zeros", "convolved"),
    # Directly, each frame of the output takes three frames of 2D convolution.
    [(1, 2, 1), (2, 2, 3), (3, 2, 5), (5, 2, 7), (9, 2, 13), (17, 2, 25), (2, 0, 4), (4, 0, 6)],
)
def test_frames_that_are_convolved(frames, zeros, convolved):
    x = torch.empty(1, 1, frames + 2, 1, 1)
    products = list_for(frames, zeros)
    assert sum(x[:, :, product.inputs[0][0]].shape[2] for product in products) == convolved


def test_few_channels_and_half_types_are_left_to_pytorch():
    assert list_products(5, 2, (ENOUGH_CHANNELS, 3, 3, 3, 3), torch.float32) is None
    assert list_for(5, 2, dtype=torch.bfloat16) is None
    # A single tap adds nothing up before it multiplies.
    assert list_for(5, 0, taps=1, dtype=torch.bfloat16) is not None


@pytest.mark.parametrize("frames", [3, 5, 17])
def test_rounding_in_float32(frames):
    x = torch.cat([torch.zeros(1, 48, 2, 6, 6), example(1, 48, frames, 6, 6)], 2)
    weight, grad = example(48, 48, 3, 3, 3), example(1, 48, frames, 6, 6)
    geometry = (None, (1, 1, 1), (0, 1, 1), (1, 1, 1), False, (0, 0, 0), 1, (True, True, False))
    exact = torch.ops.aten.convolution_backward(grad, x, weight, *geometry)[:2]
    singles = [tensor.float() for tensor in (grad, x, weight)]
    products = list_products(frames, 2, weight.shape, torch.float32)
    ours = find_gradients_by_products(products, *singles, (1, 1), (True, True))
    assert (ours[0] - exact[0])[:, :, 2:].norm() <= 3e-6 * exact[0].norm()
    assert (ours[1] - exact[1]).norm() <= 3e-6 * exact[1].norm()
