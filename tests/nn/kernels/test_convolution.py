"""Fast ways to convolve: the values of the plain one, and taken only where nobody looks on."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from wanvae.nn.kernels.convolve import (
    HEIGHT,
    TIME,
    convolve,
    convolve_doubled,
    in_four_phases,
    winograd,
)

from tests.helpers import random_video, tiny
from wanvae.nn.kernels import convolve as module

ONES, ZEROS = (1, 1, 1), (0, 0, 0)


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
    padding = (0, *(padding if extent == 3 else 0 for extent in kernel[1:]))
    size = list(size)
    size.insert(axis - 2, 2 * pairs + 2 - 2 * padding[axis - 2])
    x = example(batch, channels[0], *size)
    weight, bias = example(channels[1], channels[0], *kernel), example(channels[1])
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "STRIP", strip)
        patch.setattr(module, "MOST_STRIPS", most)
        patch.setattr(module, "FEWEST_CHANNELS", fewest)  # 1: strips are convolved by it as well
        exact = winograd(x, weight, bias, padding, axis)
        single = winograd(x.float(), weight.float(), bias.float(), padding, axis)
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
        return plain(x, *arguments)

    plain = module.plain
    monkeypatch.setattr(module, "plain", spy)
    monkeypatch.setattr(module, "STRIP", 1)
    monkeypatch.setattr(module, "MOST_STRIPS", 4)
    with torch.no_grad():
        winograd(example(1, 2, 4, 10, 5), example(2, 2, 3, 3, 3), example(2), (0, 1, 1), axis)
    assert taken == heights


@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_four_phases_are_a_convolution_of_the_doubled(batch, channels, size):
    x, weight = example(batch, channels[0], *size), example(channels[1], channels[0], 3, 3)
    bias = example(channels[1])
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(doubled, weight, bias, padding=1)
    torch.testing.assert_close(in_four_phases(x, weight, bias), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(convolve_doubled(x, weight, bias), expected, rtol=0, atol=1e-12)


@pytest.fixture
def taken(monkeypatch):
    """The fast ways that were taken: Winograd's by the axis."""
    names = []

    def spy(name, label):
        fast = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (names.append(label(args)), fast(*args))[1])

    spy("winograd", lambda args: {TIME: "time", HEIGHT: "height"}[args[-1]])
    spy("in_four_phases", lambda args: "in_four_phases")
    monkeypatch.setattr(module, "FEWEST_CHANNELS", 1)
    return names


def both_ways(frames=4, height=5, stride=ONES, padding=(0, 1, 1)):
    """A convolution, and one of doubled images."""
    x, weight, bias = example(1, 2, frames, height, 4), example(2, 2, 3, 3, 3), example(2)
    return [
        convolve(x, weight, bias, stride, padding, ONES),
        convolve_doubled(x[:, :, 0], weight[:, :, 0], bias),
    ]


def test_fast_ways_are_taken_only_without_gradients(taken, monkeypatch):
    plain = both_ways()
    assert taken == []
    with torch.no_grad():
        torch.testing.assert_close(both_ways(), plain)
        assert taken == ["time", "in_four_phases"]
        taken.clear()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.testing.assert_close(both_ways(), plain)
        assert taken == []


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({}, ["time"]),
        ({"height": 4}, ["time", "height"]),
        ({"frames": 3, "height": 4}, ["height"]),
        ({"frames": 3}, []),
        ({"frames": 5}, []),
        ({"stride": (1, 2, 2)}, []),
        ({"padding": (1, 1, 1)}, []),
        ({"height": 4, "frames": 3, "padding": (0, 2, 1)}, []),
    ],
    ids=str,
)
def test_winograd_is_taken_where_it_applies(taken, changes, ways):
    plain = both_ways(**changes)
    with torch.no_grad():
        torch.testing.assert_close(both_ways(**changes), plain)
    assert list(dict.fromkeys(taken)) == [*ways, "in_four_phases"]


def test_winograd_is_not_taken_for_few_channels(taken, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_CHANNELS", 3)
    with torch.no_grad():
        both_ways()
    assert taken == ["in_four_phases"]


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
        monkeypatch.setattr(module, "EMULATED", frozenset(emulated))
        y = convolve(*half, ONES, (0, 1, 1), ONES)
        z = convolve_doubled(half[0][:, :, 0], half[1][:, :, 0], half[2])
        assert y.dtype == z.dtype == torch.bfloat16
        errors.append(((y - of_3d).norm(), (z - of_2d).norm()))
    rounding = [(truth.bfloat16() - truth).norm() for truth in (of_3d, of_2d)]
    for emulated, native, best in zip(*errors, rounding, strict=True):
        assert emulated <= 1.0001 * native
        # Nothing but the result was rounded.
        assert emulated <= 1.01 * best


@torch.no_grad()
def test_four_phases_in_a_half_type_are_about_as_exact_as_the_convolution():
    x, weight, bias = example(2, 64, 6, 6), example(64, 64, 3, 3), example(64)
    half = [t.bfloat16() for t in (x, weight, bias)]
    doubled = [F.interpolate(t, scale_factor=2.0, mode="nearest-exact") for t in (x, half[0])]
    exact = F.conv2d(doubled[0], weight, bias, padding=1)
    plain = F.conv2d(doubled[1], *half[1:], padding=1)
    assert (in_four_phases(*half) - exact).norm() <= 1.25 * (plain - exact).norm()


def test_the_result_has_the_dtype_of_the_weight():
    weight, bias = example(2, 2, 3, 3, 3), example(2)
    x = example(1, 2, 4, 4, 4, dtype=torch.float32)
    with torch.no_grad():
        y = convolve(x, weight, bias, ONES, ZEROS, ONES)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, F.conv3d(x.double(), weight, bias))


def test_a_single_frame_is_convolved_as_an_image(monkeypatch):
    weight, bias = example(3, 2, 1, 3, 3), example(3)
    x = example(2, 2, 1, 5, 6)
    expected = F.conv3d(x, weight, bias, stride=(1, 2, 1), padding=(0, 1, 1))
    monkeypatch.setitem(module.CONVOLUTIONS, 5, None)
    y = convolve(x, weight, bias, (1, 2, 1), (0, 1, 1), ONES)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"temporal_downsample": (True, False, True)}], ids=str)
def test_a_whole_model_gives_the_same_with_and_without_gradients(taken, changes):
    vae, video = tiny(**changes), random_video(13)
    moments = vae.encode_step(video, None)[0]
    latents = moments[:, :2].detach()
    decoded = vae.decode_step(latents, None)[0]
    assert taken == []
    with torch.no_grad():
        torch.testing.assert_close(vae.encode_step(video, None)[0], moments, rtol=0, atol=1e-9)
        assert {"time", "height"} < {*taken, "in_four_phases"}
        taken.clear()
        torch.testing.assert_close(vae.decode_step(latents, None)[0], decoded, rtol=0, atol=1e-9)
        assert {*taken} == {"time", "height", "in_four_phases"}
        taken.clear()
    torch.testing.assert_close(vae.encode(video).mean, latents, rtol=0, atol=1e-9)
    torch.testing.assert_close(vae.decode(latents, clamp=False), decoded, rtol=0, atol=1e-9)
    assert {*taken} == {"time", "height", "in_four_phases"}
