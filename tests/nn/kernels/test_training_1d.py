"""1D convolutions in training: values and gradients are those of PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn import CausalConv, ResConv1DBlock
from wanvae.nn.kernels import training_1d_taps, training_1d_winograd
from wanvae.nn.kernels.dispatch import PYTORCH, TABLE, Observer
from wanvae.nn.kernels.training_1d import RowConvolution, Sweep, convolve_activated

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "silu": F.silu,
}

# Clips, input and output channels, taps, stride, padding, dilation, frames.
BY_WINOGRAD = [
    (40, 50, 60, 3, 1, 1, 1, 32),
    (70, 64, 64, 3, 1, 9, 9, 32),
    (33, 48, 48, 3, 1, 3, 3, 64),
    (64, 50, 60, 3, 1, 0, 1, 35),
    (64, 50, 60, 3, 1, 2, 1, 32),
    (1, 48, 48, 3, 1, 1, 1, 4099),
]
BY_TAPS = [
    (3, 50, 49, 3, 1, 1, 1, 30),
    (5, 20, 20, 3, 1, 81, 81, 32),
    (40, 64, 64, 3, 1, 9, 9, 16),
    (4, 16, 8, 1, 1, 0, 1, 17),
    (300, 8, 16, 1, 1, 0, 1, 3),
    (4, 16, 8, 1, 1, 2, 1, 7),
    (6, 16, 24, 4, 2, 1, 1, 64),
    (6, 16, 24, 4, 2, 1, 1, 65),
    (3, 4, 4, 3, 3, 0, 1, 14),
    (5, 8, 8, 5, 1, 4, 2, 3),
    (2, 8, 8, 2, 1, 3, 2, 5),
]


def make(case: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    clips, channels, out_channels, taps, *_, frames = case
    torch.manual_seed(sum(case))
    x = torch.randn(clips, channels, frames, dtype=dtype)
    weight = torch.randn(out_channels, channels, taps, dtype=dtype) / (channels * taps) ** 0.5
    bias = torch.randn(out_channels, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", [*BY_WINOGRAD, *BY_TAPS], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str
)
def test_values_and_gradients_are_those_of_pytorch(case, activation, dtype, tolerance):
    inputs = make(case, dtype)
    *_, stride, padding, dilation, _ = case
    y = RowConvolution.apply(*inputs, activation, Sweep(stride, padding, dilation))
    x, weight, bias = (each.double() for each in inputs)
    expected = F.conv1d(ACTIVATIONS[activation](x), weight, bias, stride, padding, dilation)
    assert y.dtype == dtype and y.shape == expected.shape
    grad = torch.randn_like(expected)
    found = torch.autograd.grad(y, inputs, grad.to(dtype))
    wanted = torch.autograd.grad(expected, inputs, grad)
    for one, other in zip((y, *found), (expected, *wanted), strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("case", [*BY_WINOGRAD, *BY_TAPS], ids=str)
def test_which_way_is_taken(case):
    clips, channels, out_channels, taps, stride, padding, dilation, frames = case
    rows, kernel = torch.empty(clips, frames, channels), torch.empty(out_channels, taps, channels)
    by_winograd = training_1d_winograd.suits(rows, kernel, stride, padding, dilation)
    assert by_winograd == (case in BY_WINOGRAD)
    assert training_1d_taps.suits(taps, stride, padding, dilation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", [(2, 3, 2, 3, 1, 2, 2, 6), (2, 3, 2, 4, 2, 1, 1, 6)], ids=str)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_first_and_second_derivatives(check, case, activation):
    sweep = Sweep(*case[4:7])
    assert check(
        lambda *given: RowConvolution.apply(*given, activation, sweep), make(case, torch.float64)
    )


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_first_and_second_derivatives_of_winograd(monkeypatch, check):
    monkeypatch.setattr(training_1d_winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(training_1d_winograd, "FEWEST_ROWS", 1)
    case = (2, 3, 2, 3, 1, 1, 1, 8)
    rows, kernel = torch.empty(2, 8, 3), torch.empty(2, 3, 3)
    assert training_1d_winograd.suits(rows, kernel, *case[4:7])
    inputs = make(case, torch.float64)
    assert check(lambda *given: RowConvolution.apply(*given, "relu", Sweep(1, 1, 1)), inputs)


@pytest.mark.parametrize("case", [BY_WINOGRAD[0], BY_TAPS[0], (4, 16, 8, 3, 1, 1, 1, 7)], ids=str)
def test_only_wanted_gradients(case):
    x, weight, bias = make(case, torch.float32)
    full = torch.autograd.grad(
        convolve_activated("relu", x, weight, bias, [1], [1], [1]).square().sum(), (x, weight)
    )
    for wanted, other, expected in ((x, weight, full[0]), (weight, x, full[1])):
        other.requires_grad_(False)
        y = convolve_activated("relu", x, weight, None, [1], [1], [1]) + bias.detach()[:, None]
        (found,) = torch.autograd.grad(y.square().sum(), wanted)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        other.requires_grad_(True)


def test_only_the_input_is_kept():
    """Not what its activation is, and no sums of frames."""
    x, weight, bias = make((40, 50, 60, 3, 1, 1, 1, 32), torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        convolve_activated("relu", x, weight, bias, [1], [1], [1])
    assert sorted(each.data_ptr() for each in kept) == sorted([x.data_ptr(), weight.data_ptr()])


def test_a_block_trains_as_by_pytorch(monkeypatch):
    torch.manual_seed(0)
    block = ResConv1DBlock(50, 50, dilation=3, activation="relu")
    x = torch.randn(40, 50, 32, requires_grad=True)
    inputs = (x, *block.parameters())
    ours = torch.autograd.grad(block(x).square().sum(), inputs)
    monkeypatch.setitem(TABLE[Observer.AUTOGRAD], "cpu", PYTORCH)
    for one, other in zip(ours, torch.autograd.grad(block(x).square().sum(), inputs), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_its_own_convolution(dtype):
    conv = CausalConv(1, 4, 3, 3, causal=False)
    x = torch.randn(2, 4, 6)
    with torch.autocast("cpu", dtype):
        assert conv(x).dtype == dtype
