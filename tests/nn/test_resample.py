"""Which frames see which when space and time are halved and doubled."""

import pytest
import torch
from torch import nn

from wanvae.nn import Downsample, Upsample


def frames_seen(layer: nn.Module, x: torch.Tensor) -> list[list[int]]:
    """For each output frame, the input frames its value depends on."""
    x = x.requires_grad_()
    y = layer(x)
    seen = []
    for t in range(y.shape[2]):
        (gradient,) = torch.autograd.grad(y[:, :, t].sum(), x, retain_graph=True)
        seen.append(gradient.transpose(0, 2).flatten(1).abs().sum(1).nonzero().flatten().tolist())
    return seen


@pytest.mark.parametrize(("ndim", "space"), [(1, ()), (3, (4, 6))])
def test_halving_time_keeps_the_first_frame_and_sees_three(ndim, space):
    layer = Downsample(ndim, 3, temporal=True)
    x = torch.randn(1, 3, 7, *space)
    assert frames_seen(layer, x) == [[0], [0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert layer(x).shape == (1, 3, 4, *(n // 2 for n in space))


@pytest.mark.parametrize(("ndim", "space"), [(1, ()), (3, (2, 3))])
def test_doubling_time_keeps_the_first_frame_out_of_the_rest(ndim, space):
    layer = Upsample(ndim, 4, 2, temporal=True)
    x = torch.randn(1, 4, 4, *space)
    assert frames_seen(layer, x) == [[0], [1], [1], [1, 2], [1, 2], [1, 2, 3], [1, 2, 3]]
    assert layer(x).shape == (1, 2, 7, *(2 * n for n in space))


def test_doubling_time_gives_the_first_half_of_the_channels_first():
    layer = Upsample(1, 2, 2, temporal=True)
    nn.init.zeros_(layer.time_conv.weight)
    layer.time_conv.bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    nn.init.dirac_(layer.resample[1].weight)
    nn.init.zeros_(layer.resample[1].bias)
    y = layer(torch.zeros(1, 2, 2))
    assert y.tolist() == [[[0, 1, 3], [0, 2, 4]]]


@pytest.mark.parametrize(("ndim", "space"), [(2, (4, 6)), (3, (5, 4, 6))])
def test_space_alone_leaves_time_alone(ndim, space):
    *time, height, width = space
    x = torch.randn(1, 4, *space)
    smaller = Downsample(ndim, 4, temporal=False)(x)
    assert smaller.shape == (1, 4, *time, height // 2, width // 2)
    assert Upsample(ndim, 4, 3, temporal=False)(smaller).shape == (1, 3, *space)


def test_a_picture_has_no_time():
    with pytest.raises(ValueError, match="2D network has no time"):
        Downsample(2, 4, temporal=True)
