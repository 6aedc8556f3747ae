"""1D convolutions as products of matrices: PyTorch's values, by the fewest products."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers import randomize, run_steps
from wanvae.nn import CausalConv, ResConv1DBlock, use_channels_last
from wanvae.nn.kernels import matmul as module
from wanvae.nn.kernels import winograd_1d
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.kernels.matmul import convolve_by_matmul


def example(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def use_schemes(monkeypatch, fewest_channels: int = 1, cost: int = 1, **limits: int) -> None:
    """Count these costs; at 1 each it is a matter of products alone."""
    monkeypatch.setattr(winograd_1d, "FEWEST_CHANNELS", fewest_channels)
    schemes = tuple(replace(scheme, cost=cost) for scheme in winograd_1d.SCHEMES)
    monkeypatch.setattr(winograd_1d, "SCHEMES", schemes)
    for name, limit in limits.items():
        monkeypatch.setattr(winograd_1d, name, limit)


@pytest.fixture
def taken(monkeypatch):
    """The ways that were taken: outputs and taps of a scheme, or None; also where it costs more."""
    ways = []
    by_scheme, by_tap = module.convolve_by_scheme, module.convolve_tap_by_tap

    def spy_by_scheme(scheme, *args):
        ways.append((scheme.outputs, scheme.taps))
        return by_scheme(scheme, *args)

    def spy_by_tap(*args):
        ways.append(None)
        return by_tap(*args)

    monkeypatch.setattr(module, "convolve_by_scheme", spy_by_scheme)
    monkeypatch.setattr(module, "convolve_tap_by_tap", spy_by_tap)
    use_schemes(monkeypatch)
    return ways


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
    cost=st.sampled_from([-(10**6), 1, 10**6]),
    innermost=st.tuples(st.booleans(), st.booleans()),
)
def test_it_is_a_convolution(
    batch, channels, frames, kernel, stride, padding, dilation, strip, cost, innermost
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
        use_schemes(patch, cost=cost, STRIP=strip)
        exact = convolve_by_matmul(x, weight, bias, *geometry)
        single = convolve_by_matmul(x.float(), weight.float(), bias.float(), *geometry)
    expected = F.conv1d(x, weight, bias, *geometry)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-12)
    assert exact.mT.is_contiguous() or exact.mT[0].is_contiguous()
    assert (single - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "frames", "way"),
    [
        (3, 1, 1, 8, (4, 3)),
        (3, 1, 2, 8, (4, 3)),
        # 27 products tap by tap, 20 in pairs, 18 in fours.
        (3, 1, 1, 9, (4, 3)),
        (3, 1, 3, 6, (2, 3)),
        (4, 2, 1, 8, (2, 2)),
        (2, 1, 3, 12, (2, 2)),
        # A pair is half empty.
        (3, 1, 1, 1, None),
        (3, 1, 9, 8, None),
        (1, 1, 1, 8, None),
        (4, 1, 1, 8, None),
        (3, 2, 1, 8, None),
        (4, 2, 2, 8, None),
    ],
)
def test_the_way_of_the_fewest_products_is_taken(taken, kernel, stride, dilation, frames, way):
    x, weight, bias = example(1, 2, frames), example(3, 2, kernel), example(3)
    padding = (kernel - 1) * dilation // 2
    with torch.no_grad():
        convolve_by_matmul(x, weight, bias, stride, padding, dilation)
    assert taken == [way]


@torch.no_grad()
def test_without_a_bias_zeros_are_added():
    x, weight = example(1, 2, 8), example(3, 2, 3)
    expected = F.conv1d(x, weight, None, 1, 1, 1)
    torch.testing.assert_close(convolve_by_matmul(x, weight, None, 1, 1, 1), expected)


@pytest.mark.parametrize("limit", ["fewest_channels", "cost"])
def test_no_scheme_is_taken_where_it_costs_more_than_it_saves(taken, monkeypatch, limit):
    use_schemes(monkeypatch, **{limit: 20})
    with torch.no_grad():
        convolve_by_matmul(example(1, 4, 8), example(4, 4, 3), example(4), 1, 1, 1)
    assert taken == [None]


@given(
    clips=st.integers(1, 5),
    tiles=st.integers(1, 9),
    values=st.integers(1, 9),
    strip=st.integers(1, 500),
)
def test_strips_cover_all_tiles_once_and_are_small(clips, tiles, values, strip):
    seen = torch.zeros(clips, tiles)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd_1d, "STRIP", strip)
        for cut in winograd_1d.cut_into_strips(clips, tiles, values):
            seen[cut] += 1
            assert seen[cut].numel() * values <= max(strip, values)
    assert torch.equal(seen, torch.ones(clips, tiles))


def test_it_is_taken_only_without_gradients(taken, monkeypatch):
    def convolve():
        x = example(1, 2, 8)
        return kernels_for(x).convolve(x, example(2, 2, 3), example(2), (1,), (1,), (1,))

    expected = convolve()
    assert taken == []
    with torch.no_grad():
        torch.testing.assert_close(convolve(), expected)
        assert taken == [(4, 3)]
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        convolve()
    assert taken == [(4, 3)]


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
        use_schemes(patch)
        whole = conv(x)
        pieces = run_steps(conv.step, x.split([length * stride for length in plan], dim=2))
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(pieces, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_block_gives_the_same_with_and_without_gradients(taken, causal, norm):
    block = ResConv1DBlock(6, 4, 3, "gelu", norm, causal=causal).double()
    randomize(block)
    x = example(2, 6, 20)
    before, expected = x.clone(), block(x)
    assert taken == []
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
    assert taken == [(4, 3), None]
    assert torch.equal(x, before)
