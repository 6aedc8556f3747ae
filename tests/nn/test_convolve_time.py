"""Convolutions along time as products: the values of PyTorch's, by the way that is faster."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers import randomise, run_steps
from wanvae.nn import CausalConv, ResConv1DBlock, use_channels_last
from wanvae.nn import convolve_time as module
from wanvae.nn.convolve import convolve
from wanvae.nn.convolve_time import convolve_time


def example(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.fixture
def taken(monkeypatch):
    """The ways that were taken, in pairs even if it does not pay."""
    names = []

    def spy(name):
        way = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (names.append(name), way(*args))[1])

    spy("in_pairs")
    spy("position_by_position")
    monkeypatch.setattr(module, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(module, "FEWEST_SAVED", 1)
    return names


@settings(max_examples=300)
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    frames=st.integers(1, 30),
    kernel=st.integers(1, 6),
    stride=st.integers(1, 3),
    padding=st.integers(0, 6),
    dilation=st.integers(1, 4),
    strip=st.sampled_from([1, 20, 10**6]),
    fewest_saved=st.sampled_from([-(10**6), 10**6]),
    innermost=st.tuples(st.booleans(), st.booleans()),
)
def test_it_is_a_convolution(
    batch, channels, frames, kernel, stride, padding, dilation, strip, fewest_saved, innermost
):
    geometry = stride, padding, dilation
    assume(frames + 2 * padding > (kernel - 1) * dilation)
    x, weight = example(batch, channels[0], frames), example(channels[1], channels[0], kernel)
    x, weight = (
        t.mT.contiguous().mT if channels_last else t
        for t, channels_last in zip((x, weight), innermost, strict=True)
    )
    bias = example(channels[1])
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "STRIP", strip)
        patch.setattr(module, "FEWEST_CHANNELS", 1)
        patch.setattr(module, "FEWEST_SAVED", fewest_saved)
        exact = convolve_time(x, weight, bias, *geometry)
        single = convolve_time(x.float(), weight.float(), bias.float(), *geometry)
    expected = F.conv1d(x, weight, bias, *geometry)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-12)
    assert exact.mT.is_contiguous() or exact.mT[0].is_contiguous()
    assert (single - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "frames", "way"),
    [
        (3, 1, 1, 8, "in_pairs"),
        (3, 1, 2, 8, "in_pairs"),
        (4, 2, 1, 8, "in_pairs"),
        (2, 1, 3, 12, "in_pairs"),
        # A pair is half empty.
        (3, 1, 1, 1, "position_by_position"),
        (3, 1, 9, 8, "position_by_position"),
        (1, 1, 1, 8, "position_by_position"),
        (4, 1, 1, 8, "position_by_position"),
        (3, 2, 1, 8, "position_by_position"),
        (4, 2, 2, 8, "position_by_position"),
    ],
)
def test_pairs_are_taken_where_they_save_products(taken, kernel, stride, dilation, frames, way):
    x, weight, bias = example(1, 2, frames), example(3, 2, kernel), example(3)
    padding = (kernel - 1) * dilation // 2
    with torch.no_grad():
        convolve_time(x, weight, bias, stride, padding, dilation)
    assert taken == [way]


@pytest.mark.parametrize("limit", ["FEWEST_CHANNELS", "FEWEST_SAVED"])
def test_pairs_are_not_taken_where_they_cost_more_than_they_save(taken, monkeypatch, limit):
    monkeypatch.setattr(module, limit, 10)
    with torch.no_grad():
        convolve_time(example(1, 4, 8), example(4, 4, 3), example(4), 1, 1, 1)
    assert taken == ["position_by_position"]


@given(
    clips=st.integers(1, 5),
    pairs=st.integers(1, 9),
    values=st.integers(1, 9),
    strip=st.integers(1, 500),
)
def test_strips_cover_all_pairs_once_and_are_small(clips, pairs, values, strip):
    seen = torch.zeros(clips, pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP", strip)
        for cut in module.strips(clips, pairs, values):
            seen[cut] += 1
            assert seen[cut].numel() * values <= max(strip, values)
    assert torch.equal(seen, torch.ones(clips, pairs))


def test_it_is_taken_only_without_gradients(taken, monkeypatch):
    arguments = example(1, 2, 8), example(2, 2, 3), example(2), (1,), (1,), (1,)
    plain = convolve(*arguments)
    assert taken == []
    with torch.no_grad():
        torch.testing.assert_close(convolve(*arguments), plain)
        assert taken == ["in_pairs"]
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        convolve(*arguments)
    assert taken == ["in_pairs"]


@settings(max_examples=50)
@given(
    plan=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    kernel_and_stride=st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 2)]),
    dilation=st.integers(1, 3),
    laid_out=st.booleans(),
)
def test_any_chunks_of_a_stream_equal_the_whole(plan, kernel_and_stride, dilation, laid_out):
    kernel, stride = kernel_and_stride
    conv = CausalConv(1, 3, 4, kernel, stride, dilation if stride == 1 else 1).double()
    if laid_out:
        use_channels_last(conv)
    x = example(2, 3, sum(plan) * stride)
    expected = conv(x)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "FEWEST_CHANNELS", 1)
        patch.setattr(module, "FEWEST_SAVED", 1)
        whole = conv(x)
        pieces = run_steps(conv.step, x.split([length * stride for length in plan], dim=2))
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(pieces, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_block_gives_the_same_with_and_without_gradients(taken, causal, norm):
    block = ResConv1DBlock(6, 4, 3, "gelu", norm, causal=causal).double()
    randomise(block)
    x = example(2, 6, 20)
    before, expected = x.clone(), block(x)
    assert taken == []
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
    assert taken == ["in_pairs", "position_by_position"]
    assert torch.equal(x, before)
