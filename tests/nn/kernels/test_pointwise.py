"""Layers applied block by block: as at once, and every position exactly once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.helpers import randomize
from wanvae.nn import make_norm
from wanvae.nn.kernels import pointwise as module
from wanvae.nn.kernels.pointwise import add_in_place, apply, apply_into, cut_into_blocks

side = st.integers(1, 7)
shapes = st.integers(1, 3).flatmap(
    lambda ndim: st.tuples(st.integers(1, 2), st.integers(1, 4), *[side] * ndim)
)


@given(shape=shapes, limit=st.integers(1, 2000), norm=st.sampled_from(["rms", "layer"]))
def test_blocks_give_what_the_whole_gives(shape, limit, norm):
    x = torch.randn(shape, dtype=torch.float64)
    layers = nn.Sequential(make_norm(norm, x.dim() - 2, shape[1]), nn.SiLU()).double()
    randomize(layers)
    out = torch.full_like(x, torch.nan)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "CPU_BLOCK", limit)
        apply_into(layers, x, out)
        torch.testing.assert_close(out, apply(layers, x), rtol=0, atol=1e-12)


@given(shape=shapes, limit=st.integers(1, 2000))
def test_blocks_cover_everything_once_and_are_small(shape, limit):
    x = torch.zeros(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CPU_BLOCK", limit)
        cuts = list(cut_into_blocks(x))
    largest = limit * torch.get_num_threads()
    # No block can be less than a row (5 axes), or a position along the third.
    smallest_cut = x.numel() // x.shape[2] // (x.shape[3] if x.dim() == 5 else 1)
    for cut in cuts:
        x[cut] += 1
        assert x[cut].numel() <= max(largest, smallest_cut)
    assert torch.equal(x, torch.ones(shape))


def test_no_layers_copy():
    x = torch.randn(1, 2, 3, 4, 5)
    out = torch.empty_like(x, dtype=torch.float64)
    apply_into([], x, out)
    assert torch.equal(out, x.double())


@pytest.mark.parametrize(
    ("dtype", "other", "in_place"),
    [
        (torch.float32, torch.float32, True),
        (torch.float32, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, False),
        (torch.bfloat16, torch.float16, False),
    ],
    ids=str,
)
def test_a_sum_is_written_in_place_only_where_nothing_is_rounded(dtype, other, in_place):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, generator=generator).to(kind) for kind in (dtype, other))
    expected = x + y
    total = add_in_place(x, (), y)
    assert total.dtype == expected.dtype
    assert torch.equal(total, expected)
    assert (total is x) == in_place
