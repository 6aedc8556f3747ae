"""Convolutions: their dtypes, with and without autocast, and images among the videos."""

import pytest
import torch
import torch.nn.functional as F

from tests.dtypes import ConvolutionDtypes
from wanvae.nn.kernels import convolution, precision
from wanvae.nn.kernels.convolution import convolve_by_pytorch
from wanvae.nn.kernels.dispatch import kernels_for

ONES = (1, 1, 1)


def example(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("frames", [3, 4])
@torch.no_grad()
def test_emulated_dtypes_are_computed_in_single_precision(monkeypatch, frames):
    x, weight, bias = example(1, 64, frames, 6, 6), example(64, 64, 3, 3, 3), example(64)
    half = [t.bfloat16() for t in (x, weight, bias)]
    wide = [t.double() for t in half]
    of_3d = F.conv3d(*wide, padding=(0, 1, 1))
    doubled = F.interpolate(wide[0][:, :, 0], scale_factor=2.0, mode="nearest-exact")
    of_2d = F.conv2d(doubled, wide[1][:, :, 0], wide[2], padding=1)
    errors = []
    for emulated in ({torch.bfloat16}, set()):
        monkeypatch.setattr(precision, "EMULATED_DTYPES", frozenset(emulated))
        kernels = kernels_for(half[0])
        y = kernels.convolve(*half, ONES, (0, 1, 1), ONES)
        z = kernels.convolve_doubled(half[0][:, :, 0], half[1][:, :, 0], half[2])
        assert y.dtype == z.dtype == torch.bfloat16
        errors.append(((y - of_3d).norm(), (z - of_2d).norm()))
    rounding = [(truth.bfloat16() - truth).norm() for truth in (of_3d, of_2d)]
    for emulated, native, best in zip(*errors, rounding, strict=True):
        assert emulated <= 1.0001 * native
        # Nothing but the result was rounded.
        assert emulated <= 1.01 * best


LAYOUTS = {
    1: ((3, 2, 9), (4, 2, 3)),
    2: ((2, 2, 6, 5), (4, 2, 3, 3)),
    3: ((1, 2, 4, 6, 5), (4, 2, 3, 3, 3)),
}


def operands(ndim: int) -> list[torch.Tensor]:
    """Input, weight and bias in float32."""
    x, weight = LAYOUTS[ndim]
    return [example(*shape, dtype=torch.float32) for shape in (x, weight, weight[:1])]


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return kernels_for(x).convolve(x, weight, bias, *geometry_of(x))


def in_float64(*tensors: torch.Tensor) -> torch.Tensor:
    return convolve_by_pytorch(*(t.double() for t in tensors), *geometry_of(tensors[0]))


def geometry_of(x: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    """Stride, padding and dilation: space is padded, time is not."""
    ones = (1,) * (x.dim() - 2)
    return ones, (0, *ones[1:]), ones


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("input_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_output_has_the_dtype_of_the_weight(gradients, ndim, input_dtype, dtype):
    x, weight, bias = operands(ndim)
    x, weight, bias = x.to(input_dtype), weight.to(dtype), bias.to(dtype)
    expected = in_float64(x, weight, bias)
    with torch.set_grad_enabled(gradients):
        y = convolve(x, weight, bias)
    assert y.dtype == dtype
    relative = 1e-2 if torch.bfloat16 in (input_dtype, dtype) else 1e-6
    assert (y - expected).norm() < relative * expected.norm()


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16], ids=str)
def test_autocast_decides_the_dtype_for_every_rank(
    monkeypatch, gradients, ndim, input_dtype, weight_dtype
):
    monkeypatch.setattr(precision, "SLOW_DTYPES", frozenset())
    x, weight, bias = operands(ndim)
    x, weight, bias = x.to(input_dtype), weight.to(weight_dtype), bias.to(weight_dtype)
    weight.requires_grad_()
    expected = in_float64(*(t.bfloat16() for t in (x, weight, bias)))
    autocast = torch.autocast("cpu", torch.bfloat16)
    with torch.set_grad_enabled(gradients), autocast, ConvolutionDtypes() as dtypes:
        y = convolve(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert dtypes.seen == {torch.bfloat16}
    rounding = (expected.bfloat16() - expected).norm()
    assert (y - expected).norm() < 1.5 * rounding


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_under_autocast_weights_get_gradients_in_their_own_dtype(ndim):
    found = []
    for autocast in (False, True):
        x, weight, bias = (t.requires_grad_() for t in operands(ndim))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = convolve(x, weight, bias)
        y.float().square().sum().backward()
        found.append([t.grad for t in (x, weight, bias)])
    for expected, gradient in zip(*found, strict=True):
        assert gradient.dtype == torch.float32
        assert 0 < (gradient - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_autocast_leaves_float64_alone(gradients, ndim):
    tensors = [t.double() for t in operands(ndim)]
    with torch.set_grad_enabled(gradients):
        expected = convolve(*tensors)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(convolve(*tensors), expected)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_autocast_convolves_in_float32_where_that_is_faster(monkeypatch, ndim):
    monkeypatch.setattr(precision, "SLOW_DTYPES", frozenset({torch.bfloat16}))
    tensors = operands(ndim)
    for gradients in (True, False):
        autocast = torch.autocast("cpu", torch.bfloat16)
        with torch.set_grad_enabled(gradients), autocast, ConvolutionDtypes() as dtypes:
            assert convolve(*tensors).dtype == torch.bfloat16
        assert dtypes.seen == {torch.float32}


@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_convolutions_of_doubled_images_follow_the_same_rule(monkeypatch, autocast):
    monkeypatch.setattr(precision, "SLOW_DTYPES", frozenset())
    x, weight, bias = operands(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for dtype in (torch.float32, torch.float64):
            with ConvolutionDtypes() as dtypes:
                y = kernels_for(x).convolve_doubled(x.to(dtype), weight, bias)
            assert {y.dtype} == dtypes.seen == {torch.bfloat16 if autocast else torch.float32}


def test_a_single_frame_is_convolved_as_an_image(monkeypatch):
    weight, bias = example(3, 2, 1, 3, 3), example(3)
    x = example(2, 2, 1, 5, 6)
    expected = F.conv3d(x, weight, bias, stride=(1, 2, 1), padding=(0, 1, 1))
    monkeypatch.setitem(convolution.CONVOLUTIONS, 5, None)
    y = convolve_by_pytorch(x, weight, bias, (1, 2, 1), (0, 1, 1), ONES)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
