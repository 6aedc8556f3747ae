"""Which part of its input a layer needs for a part of its output, and that it needs no more."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import randomize
from wanvae.nn import (
    AttentionBlock,
    AverageDown,
    BlockSpec,
    CausalConv,
    Downsample,
    DuplicateUp,
    Patchify,
    ResidualStage,
    Sequential,
    Unpatchify,
    Upsample,
    make_block,
)
from wanvae.nn.region import Span, crop, crop_whole, expand_to_whole, make_whole_region, union

KINDS = ["residual", "standard", "bottleneck", "preactivation", "dense"]
CHANNELS = 4


@st.composite
def spans(draw, size=None):
    size = draw(st.integers(1, 9)) if size is None else size
    start = draw(st.integers(0, size - 1))
    return Span(start, draw(st.integers(start + 1, size)), size)


@given(span=spans(), kernel=st.integers(1, 5), stride=st.integers(1, 3), before=st.integers(0, 4))
def test_a_span_before_a_convolution_is_what_it_reads(span, kernel, stride, before):
    kernel = max(kernel, stride)
    before = min(before, kernel - stride)
    size = span.size * stride
    x, weight = torch.randn(1, 1, size, requires_grad=True), torch.ones(1, 1, kernel)
    y = F.conv1d(F.pad(x, (before, kernel - stride - before)), weight, stride=stride)
    assert y.shape[2] == span.size
    (gradient,) = torch.autograd.grad(y[0, 0, span.start : span.stop].sum(), x)
    read = gradient[0, 0].nonzero().flatten().tolist()
    given = span.before_convolution(kernel, stride, before)
    assert read == list(range(given.start, given.stop))
    assert given.size == size
    padded = F.pad(x[:, :, given.start : given.stop], span.padding(kernel, stride, before))
    part = F.conv1d(padded, weight, stride=stride)
    torch.testing.assert_close(part, y[:, :, span.start : span.stop])


@given(span=spans(), times=st.integers(1, 3))
def test_repeating_covers_a_span(span, times):
    assert span.repeated(times) == Span(times * span.start, times * span.stop, times * span.size)
    made = Span(span.start, span.stop, times * span.size)
    read = sorted({position // times for position in range(made.start, made.stop)})
    before = made.before_repeating(times)
    assert list(range(before.start, before.stop)) == read
    assert before.size == span.size


@given(rows=spans(6), columns=spans(4), row=spans(6), column=spans(4))
def test_a_union_holds_both_and_can_be_cropped_to_each(rows, columns, row, column):
    both = union((rows, columns), (row, column))
    x = torch.arange(24).view(6, 4)
    part = x[both[0].start : both[0].stop, both[1].start : both[1].stop]
    for wanted in ((rows, columns), (row, column)):
        expected = x[wanted[0].start : wanted[0].stop, wanted[1].start : wanted[1].stop]
        assert torch.equal(crop(part, both, wanted), expected)
        assert torch.equal(crop_whole(x, wanted), expected)
    assert len(both[0]) == max(rows.stop, row.stop) - min(rows.start, row.start)
    assert crop_whole(x, None) is x
    assert expand_to_whole(both) == make_whole_region(6, 4)


def block(ndim, kind, out_dim=CHANNELS, norm="rms"):
    return make_block(ndim, CHANNELS, out_dim, BlockSpec(kind=kind, norm=norm))


def layers(ndim):
    """A layer of every kind, by name."""
    axes = (1,) * (ndim - 2)
    made = {
        f"{kind} to {out_dim}": block(ndim, kind, out_dim)
        for kind in KINDS
        for out_dim in (CHANNELS, 6)
    }
    for kernel, stride, dilation in ((1, 1, 1), (3, 1, 2), (5, 2, 1), (4, 3, 1), (2, 2, 1)):
        sizes = [(*axes, number, number) for number in (kernel, stride, dilation)]
        made[f"conv {kernel} {stride} {dilation}"] = CausalConv(ndim, CHANNELS, 3, *sizes)
    sizes = [(*axes, *pair) for pair in ((3, 4), (1, 2))]
    made["conv 3x4"] = CausalConv(ndim, CHANNELS, 3, *sizes)
    made["layer norm"] = block(ndim, "standard", norm="layer")
    made["group norm"] = block(ndim, "preactivation", norm="group")
    made["attention"] = Sequential(block(ndim, "residual"), AttentionBlock(CHANNELS))
    for temporal in (False, True)[: ndim - 1]:
        made[f"down {temporal}"] = Downsample(ndim, CHANNELS, temporal=temporal)
        made[f"up {temporal}"] = Upsample(ndim, CHANNELS, 3, temporal=temporal)
        if ndim == 3:
            made |= stages(temporal)
        made[f"sequential {temporal}"] = Sequential(
            block(ndim, "dense", 6),
            Downsample(ndim, 6, temporal=temporal),
            make_block(ndim, 6, CHANNELS, BlockSpec(kind="bottleneck")),
            Upsample(ndim, CHANNELS, 2, temporal=temporal),
            torch.nn.SiLU(),
            CausalConv(ndim, 2, 3, 3),
            torch.nn.SiLU(),
        )
    for layer in made.values():
        randomize(layer)
        layer.double().eval()
    return made


def stages(temporal):
    """Layers of Wan2.2, by name."""
    time, row = 2 if temporal else 1, block(3, "residual", 8)
    down = [row, Downsample(3, 8, temporal=temporal)]
    up = [row, Upsample(3, 8, 8, temporal=temporal)]
    return {
        f"patchify {temporal}": Patchify(2 + temporal),
        f"average {temporal}": AverageDown(CHANNELS, 8, time, 2),
        f"average channels {temporal}": AverageDown(CHANNELS, 2, 1, 1),
        f"duplicate {temporal}": DuplicateUp(CHANNELS, 8, time, 2),
        f"unpatchify {temporal}": Unpatchify(2, rows_first=temporal),
        f"halving stage {temporal}": ResidualStage(down, AverageDown(CHANNELS, 8, time, 2), "a"),
        f"doubling stage {temporal}": ResidualStage(up, DuplicateUp(CHANNELS, 8, time, 2), "a"),
    }


LAYERS = [(ndim, name, layer) for ndim in (2, 3) for name, layer in layers(ndim).items()]


@pytest.mark.parametrize(
    ("ndim", "layer"),
    [(ndim, layer) for ndim, _, layer in LAYERS],
    ids=[f"{ndim}D {name}" for ndim, name, _ in LAYERS],
)
@settings(max_examples=12)
@given(data=st.data(), gradients=st.booleans())
def test_a_step_of_a_region_is_that_region_of_a_step(ndim, layer, data, gradients):
    lengths = ((3, 2) if layer_streams(layer) else (3,)) if ndim == 3 else ((),)
    region = state = None
    state_of_part = None
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        time = (length,) if length else ()
        x = torch.randn(2, CHANNELS, *time, 12, 12, generator=generator, dtype=torch.float64)
        with torch.set_grad_enabled(gradients):
            y, state = layer.step(x, state)
            if region is None:
                region = tuple(data.draw(spans(side)) for side in y.shape[-2:])
            needed = layer.input_region(region)
            assert expand_to_whole(needed) == make_whole_region(12, 12)
            part = crop_whole(x, needed).clone()
            y_of_part, state_of_part = layer.step(part, state_of_part, region)
        torch.testing.assert_close(y_of_part, crop_whole(y, region), rtol=0, atol=1e-10)


def layer_streams(layer):
    return not any(isinstance(module, torch.nn.GroupNorm) for module in layer.modules())
