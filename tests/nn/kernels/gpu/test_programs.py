"""Triton's programs against float64: by its interpreter, and on a GPU if there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.nn.kernels.gpu.interpreter import Interpreter, run_on_gpu

pytest.importorskip("triton", minversion="3.3")

Run = Callable[..., Any]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CHANNELS = [1, 3, 16, 96, 100, 384, 1024]
# Any number in float32, and some in half types.
CHANNELS_AND_DTYPES = [
    *((channels, torch.float32) for channels in CHANNELS),
    *((channels, dtype) for channels in (3, 96, 1024) for dtype in DTYPES[:2]),
]
ACTIVATIONS = {"none": lambda x: x, "silu": F.silu, "relu": F.relu}


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    """A process with Triton's interpreter."""
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Run:
    """Computes an operator by its program."""
    if request.param == "interpreter":
        return request.getfixturevalue("interpreter")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return run_on_gpu


def example(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values with channels (dim 1) innermost."""
    x = torch.randn(shape[:1] + shape[2:] + shape[1:2], generator=torch.Generator().manual_seed(0))
    return x.to(dtype).movedim(-1, 1)


def example_of_channels(channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A value for each channel."""
    x = torch.randn(channels, generator=torch.Generator().manual_seed(channels))
    return x.to(dtype)


# Ways to lay out (B, C, T, H, W) in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels innermost": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "channels outermost": lambda x: x.contiguous(),
    "a crop": lambda x: (
        F.pad(x, (1, 2, 2, 1)).movedim(1, -1).contiguous().movedim(-1, 1)[:, :, :, 2:-1, 1:-2]
    ),
    "some frames": lambda x: torch.cat([x, x, x], 2)[:, :, x.shape[2] : 2 * x.shape[2]],
    "every second column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every second channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "lines and columns swapped": lambda x: x.mT.contiguous().mT,
    "frames innermost": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2),
}

# For operators of two tensors: each layout twice, beside another one and beside itself.
PAIRS = [
    *zip(LAYOUTS, [*LAYOUTS][1:] + [*LAYOUTS][:1], strict=True),
    *zip(LAYOUTS, LAYOUTS, strict=True),
]


def assert_close(actual: Tensor, expected: Tensor, scale: float = 1) -> None:
    """Compares with float64: one rounding to the dtype, and the errors of float32.

    ``scale`` is the size of the largest values that cancel each other.
    """
    assert actual.shape == expected.shape
    rounding = torch.finfo(actual.dtype).eps / 2
    if actual.dtype == torch.bfloat16:
        rounding *= 2  # the interpreter cuts digits off; compiled programs round
    torch.testing.assert_close(
        actual.double(), expected, rtol=1.01 * rounding + 3e-6, atol=2e-6 * scale
    )


def assert_innermost(x: Tensor) -> None:
    """Checks that channels are innermost, without gaps."""
    assert x.movedim(1, -1).is_contiguous()


def reference_join(
    past: Tensor | None,
    x: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    activation: str,
    history: int,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """``join`` in float64."""
    x = x.double()
    shape = (-1, *[1] * (x.dim() - 2))
    if bias is not None:
        x = x + bias.double().view(shape)
    if gamma is not None:
        x = F.normalize(x, dim=1, eps=1e-12) * x.shape[1] ** 0.5 * gamma.double().view(shape)
    x = ACTIVATIONS[activation](x)
    if past is not None:
        x = torch.cat([past.double(), x], 2)
        history -= past.shape[2]
    zeros = torch.zeros_like(x[:, :, :1]).expand(-1, -1, history, *x.shape[3:])
    x = torch.cat([zeros, x], 2)
    return x, x[:, :, x.shape[2] - kept :]


def check_join(run: Run, *arguments: Any) -> None:
    """Compares ``join`` with the reference."""
    joined, last = run("join", *arguments)
    expected, expected_last = reference_join(*arguments)
    assert joined.dtype == last.dtype == arguments[1].dtype
    assert_close(joined, expected)
    assert torch.equal(last, joined[:, :, joined.shape[2] - last.shape[2] :])
    assert last.shape == expected_last.shape
    assert_innermost(joined)
    assert_innermost(last)


@pytest.mark.parametrize("channels, dtype", CHANNELS_AND_DTYPES)
def test_join_any_number_of_channels(run, channels, dtype):
    x, past = (example(2, channels, length, 2, 5, dtype=dtype) for length in (2, 1))
    bias, gamma = example_of_channels(channels, dtype), example(channels, 1, 1, 1, dtype=dtype)
    check_join(run, past, x, bias, gamma, "silu", 2, 2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_gamma", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_join_any_layers(run, activation, with_gamma, with_bias):
    bias = example_of_channels(48) if with_bias else None
    gamma = example(48, 1, 1, 1) if with_gamma else None
    check_join(run, None, example(1, 48, 2, 3, 5), bias, gamma, activation, 0, 1)


@pytest.mark.parametrize(
    "past_frames, history, frames, kept",
    [
        (0, 0, 1, 0),
        (0, 0, 3, 3),
        (0, 2, 1, 0),
        (0, 2, 1, 3),
        (1, 2, 1, 2),
        (1, 2, 4, 2),
        (2, 2, 1, 2),
        (2, 2, 3, 5),
        (3, 5, 2, 6),
    ],
)
def test_join_any_history(run, past_frames, history, frames, kept):
    past = example(2, 24, past_frames, 5, 3) if past_frames else None
    gamma = example(24, 1, 1, 1)
    check_join(run, past, example(2, 24, frames, 5, 3), None, gamma, "silu", history, kept)


def test_no_past_frame_is_no_past(run):
    x = example(1, 4, 2, 3, 3)
    expected, _ = run("join", None, x, None, None, "none", 2, 3)
    actual, _ = run("join", x[:, :, :0], x, None, None, "none", 2, 3)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("layout, past_layout", PAIRS)
def test_join_any_strides(run, layout, past_layout):
    x = LAYOUTS[layout](example(2, 6, 3, 3, 7))
    past = LAYOUTS[past_layout](example(2, 6, 1, 3, 7))
    check_join(run, past, x, example_of_channels(6), example(6, 1, 1, 1), "silu", 2, 2)


def test_join_repeated_values(run):
    clip = example(1, 6, 2, 3, 5)
    check_join(run, None, clip.expand(3, -1, -1, -1, -1), None, None, "relu", 1, 1)
    check_join(run, None, clip[..., :1].expand(-1, -1, -1, -1, 9), None, None, "relu", 1, 1)
    check_join(run, None, clip[:, :1].expand(-1, 6, -1, -1, -1), None, None, "relu", 1, 1)


@pytest.mark.parametrize("shape", [(2, 20, 7), (2, 20, 600), (3, 20, 5, 7), (1, 20, 1, 1, 1)])
def test_join_any_rank(run, shape):
    gamma = example(20, *[1] * (len(shape) - 2))
    x = example(*shape)
    check_join(run, None, x, None, gamma, "silu", 0, 0)
    check_join(run, None, x.contiguous(), None, gamma, "silu", 0, 0)
    if len(shape) != 4:
        check_join(run, x[:, :, -1:], x, None, gamma, "silu", 2, 2)


def test_join_parameters_of_another_dtype(run):
    x = example(1, 20, 2, 3, 3, dtype=torch.bfloat16)
    past = example(1, 20, 1, 3, 3)
    check_join(run, past, x, example_of_channels(20), example(20, 1, 1, 1), "silu", 1, 2)


def test_parameters_with_gaps(run):
    x, bias, gamma = example(1, 20, 2, 3, 3), example_of_channels(40)[::2], example(20, 2, 1, 1)
    check_join(run, None, x, bias, gamma[:, 1:], "silu", 1, 2)
    check_join(run, None, x, bias, torch.ones(()).expand(20, 1, 1, 1), "silu", 1, 2)
    check_add(run, x.clone(), bias, x)
    check_backward(run, x.flip(-1), x, gamma[:, 1:], "silu")
    phases, frames = example(1, 80, 3, 3), example(1, 20, 2, 3, 3)
    assert_close(run("interleave", phases, bias), reference_interleave(phases, bias))
    y = run("interleave_frames", frames, bias)
    assert_close(y, reference_interleave_frames(frames, bias))


def test_join_extreme_values(run):
    x = example(1, 8, 1, 2, 3)
    x[..., 0, 0], x[..., 0, 1], x[..., 0, 2] = 0, 1e-15, 1e15
    gamma = 100 * example(8, 1, 1, 1)
    joined, _ = run("join", None, x, None, gamma, "silu", 0, 0)
    assert_close(joined, reference_join(None, x, None, gamma, "silu", 0, 0)[0], scale=100)
    assert (joined[..., 0, 0] == 0).all()
    x[0, 0, 0, 0, 0] = math.nan
    for activation in ACTIVATIONS:
        joined, _ = run("join", None, x, None, gamma, activation, 0, 0)
        assert joined[..., 0, 0].isnan().all()
        assert not joined[..., 0, 1:].isnan().any()


sizes = st.integers(1, 9)


@given(st.data())
@settings(max_examples=12)
def test_join_random_arguments(interpreter, data):
    batch, frames = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 4))
    channels, height, width = (
        data.draw(strategy) for strategy in (st.integers(1, 70), sizes, sizes)
    )
    history = data.draw(st.integers(0, 3))
    past_frames = data.draw(st.integers(0, history))
    kept = data.draw(st.integers(0, history + frames))
    layouts = st.sampled_from(sorted(LAYOUTS))
    dtype = data.draw(st.sampled_from(DTYPES))
    x, past = (
        LAYOUTS[data.draw(layouts)](example(batch, channels, length, height, width, dtype=dtype))
        for length in (frames, max(past_frames, 1))
    )
    check_join(
        interpreter,
        past if past_frames else None,
        x,
        data.draw(st.sampled_from([None, example_of_channels(channels)])),
        data.draw(st.sampled_from([None, example(channels, 1, 1, 1)])),
        data.draw(st.sampled_from(sorted(ACTIVATIONS))),
        history,
        kept,
    )


def check_add(run: Run, y: Tensor, bias: Tensor | None, shortcut: Tensor) -> None:
    """Compares ``add_`` with float64, and the memory around ``y`` with itself."""
    everything = y.as_strided((y.untyped_storage().nbytes() // y.itemsize,), (1,), 0)
    before, old = everything.clone(), y.double()
    expected = old + shortcut.double()
    if bias is not None:
        expected += bias.double().view(-1, *[1] * (y.dim() - 2))
    result = run("add_", y, bias, shortcut)
    assert torch.equal(result, y)
    assert_close(y, expected)
    y.copy_(old)
    assert torch.equal(everything, before)


@pytest.mark.parametrize("channels, dtype", CHANNELS_AND_DTYPES)
def test_add_any_number_of_channels(run, channels, dtype):
    y, shortcut = (example(2, channels, 2, 2, size, dtype=dtype) for size in (5, 6))
    check_add(run, y, example_of_channels(channels, dtype), shortcut[..., 1:])


@pytest.mark.parametrize("layout, shortcut_layout", PAIRS)
def test_add_any_strides(run, layout, shortcut_layout):
    y = LAYOUTS[layout](example(2, 6, 3, 3, 7))
    shortcut = LAYOUTS[shortcut_layout](example(2, 6, 3, 7, 3).mT)
    check_add(run, y, None, shortcut)


@pytest.mark.parametrize("shape", [(2, 20, 7), (3, 20, 5, 7), (1, 20, 1, 1, 1), (2, 20, 40, 9)])
def test_add_any_rank(run, shape):
    bias = example_of_channels(20)
    check_add(run, example(*shape), bias, example(*shape).flip(-1))
    check_add(run, example(*shape), bias, example(*shape)[..., :1].expand(shape))
    check_add(run, example(*shape), bias, example(*shape)[:1, :1].expand(shape))


def reference_phases(weight: Tensor) -> Tensor:
    """``make_phases`` in float64."""
    rows = {0: [[0], [1, 2]], 1: [[0, 1], [2]]}
    kernels = [
        [[weight.double()[:, :, y][..., x].sum((2, 3)) for x in rows[column]] for y in rows[row]]
        for row in range(2)
        for column in range(2)
    ]
    return torch.cat([torch.stack([torch.stack(line, -1) for line in k], -2) for k in kernels])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs, inputs", [(1, 1), (3, 5), (2, 130), (5, 384)])
def test_make_phases(run, outputs, inputs, dtype):
    weight = example(outputs, inputs, 3, 3, dtype=dtype)
    for one in (
        weight,
        weight.contiguous(),
        example(inputs, outputs, 3, 3).to(dtype).movedim(0, 1),
    ):
        phases = run("make_phases", one)
        assert phases.dtype == dtype
        assert_close(phases, reference_phases(one), scale=4)
        assert_innermost(phases)


@pytest.mark.parametrize("height, width", [(1, 1), (3, 5), (2, 9)])
def test_phases_convolve_a_doubled_image(run, height, width):
    x, weight, bias = example(2, 5, height, width), example(3, 5, 3, 3), example_of_channels(3)
    phases = F.conv2d(x, run("make_phases", weight), padding=1)
    doubled = F.interpolate(x.double(), scale_factor=2.0, mode="nearest-exact")
    expected = F.conv2d(doubled, weight.double(), bias.double(), padding=1)
    assert_close(run("interleave", phases, bias), expected, scale=10)


def reference_interleave(phases: Tensor, bias: Tensor | None) -> Tensor:
    """``interleave`` in float64."""
    images, channels, height, width = phases.shape
    y = phases.new_empty(
        (images, channels // 4, 2 * height - 2, 2 * width - 2), dtype=torch.float64
    )
    for row in range(2):
        for column in range(2):
            phase = phases.unflatten(1, (4, -1))[:, 2 * row + column]
            rows, columns = slice(row, row + height - 1), slice(column, column + width - 1)
            y[:, :, row::2, column::2] = phase[:, :, rows, columns]
    return y if bias is None else y + bias.double().view(-1, 1, 1)


@pytest.mark.parametrize("channels, dtype", CHANNELS_AND_DTYPES)
def test_interleave_any_number_of_channels(run, channels, dtype):
    phases = example(2, 4 * channels, 3, 4, dtype=dtype)
    bias = example_of_channels(channels, dtype)
    y = run("interleave", phases, bias)
    assert y.dtype == dtype
    assert_close(y, reference_interleave(phases, bias))
    assert_innermost(y)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 8), (7, 2), (13, 11)])
def test_interleave_any_size_and_strides(run, height, width):
    phases = example(2, 24, height + 1, width + 1)
    wide = F.pad(phases, (1, 1))[..., 1:-1]
    for one in (phases, phases.contiguous(), wide, phases.mT.contiguous().mT):
        assert_close(run("interleave", one, None), reference_interleave(one, None))


def reference_interleave_frames(x: Tensor, bias: Tensor | None) -> Tensor:
    """``interleave_frames`` in float64."""
    x = x.double()
    if bias is not None:
        x = x + bias.double().view(-1, *[1] * (x.dim() - 2))
    return torch.stack(x.chunk(2, dim=1), 3).flatten(2, 3)


@pytest.mark.parametrize("channels, dtype", CHANNELS_AND_DTYPES)
def test_interleave_frames_any_number_of_channels(run, channels, dtype):
    x = example(2, 2 * channels, 2, 2, 5, dtype=dtype)
    bias = example_of_channels(2 * channels, dtype)
    y = run("interleave_frames", x, bias)
    assert y.dtype == dtype
    assert_close(y, reference_interleave_frames(x, bias))
    assert_innermost(y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_interleave_frames_any_size_and_strides(run, layout):
    for size in ((1, 1, 1), (3, 3, 7), (2, 12, 15)):
        x = LAYOUTS[layout](example(2, 12, *size))
        assert_close(run("interleave_frames", x, None), reference_interleave_frames(x, None))


def norm_activate(x: Tensor, gamma: Tensor, activation: str) -> Tensor:
    """The layer that ``norm_activate_backward`` is the gradient of."""
    inverse = x.square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt()
    return ACTIVATIONS[activation](x * inverse * x.shape[1] ** 0.5 * gamma)


def reference_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, activation: str
) -> tuple[Tensor, ...]:
    """``norm_activate_backward`` in float64."""
    inputs = x.double().requires_grad_(), gamma.double().requires_grad_()
    return torch.autograd.grad(norm_activate(*inputs, activation), inputs, grad.double())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_reference_is_the_gradient(activation):
    x, gamma = example(1, 3, 1, 2, 2).double(), example(3, 1, 1, 1).double()
    assert torch.autograd.gradcheck(
        lambda *inputs: norm_activate(*inputs, activation),
        (x.requires_grad_(), gamma.requires_grad_()),
    )


def check_backward(
    run: Run, grad: Tensor, x: Tensor, gamma: Tensor, activation: str, **constants: int
) -> None:
    """Compares ``norm_activate_backward`` with float64."""
    of_x, of_gamma = run("norm_activate_backward", grad, x, gamma, activation, **constants)
    expected, expected_of_gamma = reference_backward(grad, x, gamma, activation)
    assert (of_x.dtype, of_gamma.dtype) == (x.dtype, gamma.dtype)
    # Terms of the size of grad * gamma * sqrt(C) / norm cancel.
    assert_close(of_x, expected, scale=10)
    assert_close(of_gamma, expected_of_gamma, scale=10 * (x.numel() / x.shape[1]) ** 0.5)
    assert_innermost(of_x)


@pytest.mark.parametrize("channels, dtype", [(2, torch.float32), *CHANNELS_AND_DTYPES[1:]])
def test_gradients_for_any_number_of_channels(run, channels, dtype):
    x, grad = (example(2, channels, *size, dtype=dtype) for size in ((2, 3, 4), (2, 4, 3)))
    check_backward(run, grad.mT, x, example(channels, 1, 1, 1, dtype=dtype), "silu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(2, 20, 7), (3, 20, 5, 7), (2, 20, 1, 1, 1), (2, 20, 5, 9, 7)])
def test_gradients_for_any_rank_and_activation(run, shape, activation):
    gamma = example(20, *[1] * (len(shape) - 2))
    check_backward(run, example(*shape).flip(-1), example(*shape), gamma, activation)


@pytest.mark.parametrize("layout, grad_layout", PAIRS)
def test_gradients_for_any_strides(run, layout, grad_layout):
    x = LAYOUTS[layout](example(2, 6, 3, 3, 7))
    grad = LAYOUTS[grad_layout](example(2, 6, 3, 7, 3).mT)
    check_backward(run, grad, x, example(6, 1, 1, 1), "silu")


def test_the_gradient_of_a_sum(run):
    x, one = example(2, 6, 2, 3, 7), torch.ones(())
    check_backward(run, one.expand(x.shape), x, example(6, 1, 1, 1), "silu")


@pytest.mark.parametrize("programs", [1, 3, 4])
def test_programs_share_the_blocks_of_gradients(run, programs):
    x, grad = example(2, 96, 3, 7, 5), example(2, 96, 3, 5, 7).mT
    gamma = example(96, 1, 1, 1)
    check_backward(run, grad, x, gamma, "silu", MOST_PROGRAMS=programs)
    first, second = (
        run("norm_activate_backward", grad, x, gamma, "silu", MOST_PROGRAMS=programs)
        for _ in range(2)
    )
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_gradients_of_zeros_are_finite(run):
    x, grad = example(1, 8, 1, 2, 2), example(1, 8, 1, 2, 2)
    x[..., 0, 0] = 0
    of_x, of_gamma = run("norm_activate_backward", grad, x, example(8, 1, 1, 1), "silu")
    expected, expected_of_gamma = reference_backward(grad, x, example(8, 1, 1, 1), "silu")
    assert of_x.isfinite().all() and of_x[..., 0, 0].any()
    torch.testing.assert_close(of_x.double(), expected, rtol=1e-5, atol=1e-5)
    assert_close(of_gamma, expected_of_gamma, scale=10)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1023, 1040, 2048, 4096])
def test_very_many_channels(run, channels, dtype):
    x, gamma = example(1, channels, 2, 3, 3, dtype=dtype), example(channels, 1, 1, 1)
    check_join(run, x[:, :, :1], x, example_of_channels(channels), gamma, "silu", 2, 2)
    check_add(run, x.clone(), None, x)
    check_backward(run, x.flip(-1), x, gamma, "silu")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_positions(run, dtype):
    x, gamma = example(1, 96, 3, 17, 23, dtype=dtype), example(96, 1, 1, 1)
    crop = x[..., 1:-1, 2:-1]
    check_join(run, crop[:, :, :1], crop, example_of_channels(96), gamma, "silu", 2, 2)
    check_add(run, crop, None, crop.clone())
    check_backward(run, crop.flip(-1), crop, gamma, "silu")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("axis", range(5))
def test_offsets_beyond_32_bits(axis):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    from wanvae.nn.kernels.gpu import programs

    shape = [1, 8, 1, 3, 4]
    shape[axis] = 2
    strides = [96, 1, 96, 32, 8]
    strides[axis] = 2**31 + 64
    memory = torch.empty(2**31 + 4096, dtype=torch.float16, device="cuda")
    x = memory.as_strided(shape, strides)
    x.copy_(torch.randn(shape))
    expected = x.double()
    joined, _ = programs.join(None, x, None, None, "none", 1, 0)
    assert torch.equal(joined[:, :, 1:].double(), expected)
    programs.add_(x, None, x.clone())
    assert torch.equal(x.double(), 2 * expected)
