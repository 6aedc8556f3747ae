"""Dropout before a residual addition, in training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wanvae.nn import ResConv1DBlock
from wanvae.nn.kernels.dropout import DropAndAdd, add_dropped, draw_mask


def run(probability: float, y: Tensor, shortcut: Tensor) -> Tensor:
    return add_dropped(y, [nn.Dropout(probability)], shortcut)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("probability", [0.2, 0.5, 0.9])
def test_values_are_dropped_with_the_probability_and_gradients_with_them(probability, transposed):
    torch.manual_seed(0)
    y, shortcut = torch.randn(2, 50, 40, 101)
    y = y.mT.contiguous().mT if transposed else y
    y.requires_grad_(), shortcut.requires_grad_()
    out = run(probability, y, shortcut)
    grad = torch.randn_like(out)
    of_y, of_shortcut = torch.autograd.grad(out, (y, shortcut), grad)
    factors = (of_y / grad).detach()
    kept = factors > 0
    torch.testing.assert_close(
        factors[kept], torch.full_like(factors[kept], 1 / (1 - probability)), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(out, y * factors + shortcut)
    assert torch.equal(of_shortcut, grad)
    error = (1 / y.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - probability)) < 5 * error
    # Neighbors in memory are as independent as others.
    for a, b in (
        (kept[1:], kept[:-1]),
        (kept[:, 1:], kept[:, :-1]),
        (kept[..., 1:], kept[..., :-1]),
    ):
        both = (a & b).double().mean()
        assert abs(both - (1 - probability) ** 2) < 5 * error


def test_what_is_drawn_follows_from_the_seed():
    y, shortcut = torch.randn(2, 3, 4, 5)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(run(0.5, y, shortcut))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("probability", [1e-9, 1 - 1e-9])
def test_extreme_probabilities(probability):
    mask, scale = draw_mask(torch.empty(1000), probability)
    assert abs(mask.double().mean() - (1 - probability)) < 0.05 and 0 < scale <= 2**16


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_first_and_second_derivatives(check):
    torch.manual_seed(0)
    y, shortcut = torch.randn(2, 3, 4, 5, dtype=torch.float64).requires_grad_()
    mask, scale = draw_mask(y, 0.3)
    assert check(lambda *given: DropAndAdd.apply(*given, mask, scale), (y, shortcut))


def test_other_layers_dtypes_and_shapes_as_before():
    y, shortcut = torch.randn(2, 3, 4, 5)
    assert torch.equal(add_dropped(y, [], shortcut), y + shortcut)
    assert torch.equal(add_dropped(y, [nn.Dropout(0.5).eval()], shortcut), y + shortcut)
    assert torch.equal(add_dropped(y, [nn.Dropout(1.0)], shortcut), shortcut)
    assert run(0.5, y, shortcut.half()).dtype == torch.float32
    assert run(0.5, y, shortcut[:1]).shape == y.shape


def test_a_block_drops_while_it_trains():
    torch.manual_seed(0)
    block = ResConv1DBlock(4, 4, activation="relu", dropout=0.5)
    x = torch.randn(2, 4, 8)
    kept = (block(x) - x) / (block.eval()(x) - x)
    assert {round(value) for value in kept.flatten().tolist()} == {0, 2}
