"""Causal convolution: padding rule, causality, streaming."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wanvae.nn import CausalConv

FRAMES = 8


def example(ndim: int, frames: int = FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = {1: (frames,), 2: (6, 5), 3: (frames, 6, 5)}[ndim]
    return torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ndim", "convolve"), [(1, F.conv1d), (2, F.conv2d), (3, F.conv3d)], ids=["1D", "2D", "3D"]
)
def test_pads_the_past_with_zeros_and_space_on_both_sides(ndim, convolve):
    conv = CausalConv(ndim, 3, 4, 3).double()
    x = example(ndim)
    padding = {1: (2, 0), 2: (1, 1, 1, 1), 3: (1, 1, 1, 1, 2, 0)}[ndim]
    expected = convolve(F.pad(x, padding), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), expected)


def test_spatial_stride_pads_right_and_bottom():
    conv = CausalConv(2, 3, 3, 3, stride=2).double()
    x = torch.randn(1, 3, 8, 6, dtype=torch.float64)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (3, 1, 1), (3, 1, 9)])
def test_not_causal_is_the_usual_same_padding(kernel, stride, padding):
    dilation = padding if kernel == 3 else 1
    conv = CausalConv(1, 3, 3, kernel, stride, dilation, causal=False).double()
    x = example(1)
    expected = F.conv1d(x, conv.weight, conv.bias, stride, padding, dilation)
    torch.testing.assert_close(conv(x), expected)


@given(
    plan=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 3),
    ndim=st.sampled_from([1, 3]),
)
def test_any_chunks_equal_the_whole(plan, kernel, stride, dilation, ndim):
    kernel = max(kernel, stride)
    axes = (1,) * (ndim - 1)
    conv = CausalConv(ndim, 3, 4, (kernel, *axes), (stride, *axes), (dilation, *axes)).double()
    x = example(ndim, sum(plan) * stride)
    state, outputs = None, []
    for chunk in x.split([length * stride for length in plan], dim=2):
        output, state = conv.step(chunk, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=2), conv(x))


def test_state_does_not_keep_its_chunk_alive():
    conv = CausalConv(1, 3, 3, 3)
    _, (history,) = conv.step(torch.randn(1, 3, 100), None)
    assert history.untyped_storage().nbytes() == 1 * 3 * 2 * 4


def test_gradients_are_right():
    conv = CausalConv(3, 2, 2, 3).double()
    x = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)


def test_refuses_to_stream_when_it_sees_the_future():
    conv = CausalConv(1, 3, 3, 3, causal=False)
    _, state = conv.step(example(1).float(), None)
    with pytest.raises(ValueError, match="cannot continue a stream"):
        conv.step(example(1).float(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((4, 1, 1, 3), "ndim must be"), ((1, 1, 1, 1, 2), "skips"), ((3, 1, 1, (3, 3)), "2 entries")],
)
def test_rejects_impossible_shapes(arguments, message):
    with pytest.raises(ValueError, match=message):
        CausalConv(*arguments)


def test_rejects_a_chunk_that_is_not_a_multiple_of_the_stride():
    with pytest.raises(ValueError, match="multiple"):
        CausalConv(1, 3, 3, 4, 2)(torch.randn(1, 3, 7))


def test_a_batch_of_one_equals_a_batch_of_two():
    conv = CausalConv(3, 3, 4, 3)
    x = example(3).float()
    torch.testing.assert_close(conv(x)[:1], conv(x[:1]))
    gradients = [
        torch.autograd.grad(conv(x[:n])[:1].square().sum(), conv.weight)[0] for n in (1, 2)
    ]
    torch.testing.assert_close(*gradients)
