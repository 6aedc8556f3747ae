"""Winograd's algorithm in 3D: the values of a convolution, strip by strip."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wanvae.nn.kernels import winograd as module
from wanvae.nn.kernels.convolution import convolve_by_pytorch, with_fewest_multiplications
from wanvae.nn.kernels.winograd import HEIGHT, TIME, convolve_by_winograd


def example(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@settings(max_examples=100)
@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pairs=st.integers(1, 5),
    size=st.tuples(st.integers(3, 9), st.integers(3, 6)),
    axis_and_kernel=st.sampled_from(
        [(TIME, (3, 3, 3)), (TIME, (3, 1, 1)), (HEIGHT, (3, 3, 3)), (HEIGHT, (1, 3, 3))]
    ),
    padding=st.integers(0, 1),
    strip=st.sampled_from([1, 100, 10**6]),
    most=st.integers(1, 4),
    fewest=st.sampled_from([1, 99]),
)
def test_winograd_is_a_convolution(
    batch, channels, pairs, size, axis_and_kernel, padding, strip, most, fewest
):
    axis, kernel = axis_and_kernel
    convolve = with_fewest_multiplications(convolve_by_pytorch)
    padding = (0, *(padding if extent == 3 else 0 for extent in kernel[1:]))
    size = list(size)
    size.insert(axis - 2, 2 * pairs + 2 - 2 * padding[axis - 2])
    x = example(batch, channels[0], *size)
    weight, bias = example(channels[1], channels[0], *kernel), example(channels[1])
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "STRIP", strip)
        patch.setattr(module, "MOST_STRIPS", most)
        patch.setattr(module, "FEWEST_CHANNELS", fewest)  # 1: strips are convolved by it as well
        exact = convolve_by_winograd(convolve, x, weight, bias, padding, axis)
        single = convolve_by_winograd(
            convolve, x.float(), weight.float(), bias.float(), padding, axis
        )
    expected = F.conv3d(x, weight, bias, padding=padding)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-12)
    assert (single - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("axis", "heights"),
    [
        # Four convolutions each of 4 + 4 + 2 rows, with a row more above and below.
        (TIME, [6] * 8 + [4] * 4),
        # And each of as many pairs of rows.
        (HEIGHT, [2] * 8 + [1] * 4),
    ],
)
def test_winograd_goes_strip_by_strip(monkeypatch, axis, heights):
    taken = []

    def spy(x, *arguments):
        taken.append(x.shape[3])
        return convolve_by_pytorch(x, *arguments)

    monkeypatch.setattr(module, "STRIP", 1)
    monkeypatch.setattr(module, "MOST_STRIPS", 4)
    with torch.no_grad():
        convolve_by_winograd(
            spy, example(1, 2, 4, 10, 5), example(2, 2, 3, 3, 3), example(2), (0, 1, 1), axis
        )
    assert taken == heights
