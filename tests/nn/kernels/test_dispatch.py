"""The table: what runs for autograd, for the compiler and for nobody, on each device."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tests.helpers import random_video, tiny
from wanvae.nn import ResConv1DBlock, ResidualBlock
from wanvae.nn.kernels import convolution, dispatch, winograd
from wanvae.nn.kernels.dispatch import (
    IN_PLACE,
    PYTORCH,
    TABLE,
    TRAINING,
    Kernels,
    Observer,
    current_observer,
    find_rehearsal,
    kernels_for,
)
from wanvae.nn.kernels.rms_norm import rms_norm_by_squares
from wanvae.nn.kernels.winograd import HEIGHT, TIME

ONES = (1, 1, 1)
# Operations whose backward pass is not PyTorch's, by device.
OWN_BACKWARD = {"cpu": ("join", "remember", "rms_norm", "add"), "cuda": ("join",)}
# Operations whose backward pass is not PyTorch's on any device, because PyTorch's is the last one.
TWICE_DIFFERENTIABLE = ("attend", "attend_to")


def example(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.fixture
def taken(monkeypatch):
    """The fast ways that were taken: Winograd's by the axis."""
    names = []
    by_winograd = convolution.convolve_by_winograd
    kernels = TABLE[Observer.NOBODY]["cpu"]

    def spy_by_winograd(*args):
        names.append({TIME: "time", HEIGHT: "height"}[args[-1]])
        return by_winograd(*args)

    def spy_in_phases(*args):
        names.append("phases")
        return kernels.convolve_doubled(*args)

    monkeypatch.setattr(convolution, "convolve_by_winograd", spy_by_winograd)
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    row = replace(kernels, convolve_doubled=spy_in_phases)
    monkeypatch.setitem(TABLE[Observer.NOBODY], "cpu", row)
    return names


def both_ways(frames=4, height=5, stride=ONES, padding=(0, 1, 1)):
    """A convolution, and one of doubled images."""
    x, weight, bias = example(1, 2, frames, height, 4), example(2, 2, 3, 3, 3), example(2)
    return [
        kernels_for(x).convolve(x, weight, bias, stride, padding, ONES),
        kernels_for(x).convolve_doubled(x[:, :, 0], weight[:, :, 0], bias),
    ]


def test_fast_ways_are_taken_only_without_gradients(taken, monkeypatch):
    plain = both_ways()
    assert taken == []
    with torch.no_grad():
        torch.testing.assert_close(both_ways(), plain)
        assert taken == ["time", "phases"]
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
    assert list(dict.fromkeys(taken)) == [*ways, "phases"]


def test_winograd_is_not_taken_for_few_channels(taken, monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 3)
    with torch.no_grad():
        both_ways()
    assert taken == ["phases"]


@pytest.mark.parametrize("changes", [{}, {"temporal_downsample": (True, False, True)}], ids=str)
def test_a_whole_model_gives_the_same_with_and_without_gradients(taken, changes):
    vae, video = tiny(**changes), random_video(13)
    moments = vae.encode_step(video, None)[0]
    latents = moments[:, :2].detach()
    decoded = vae.decode_step(latents, None)[0]
    assert taken == []
    with torch.no_grad():
        torch.testing.assert_close(vae.encode_step(video, None)[0], moments, rtol=0, atol=1e-9)
        assert {"time", "height"} < {*taken, "phases"}
        taken.clear()
        torch.testing.assert_close(vae.decode_step(latents, None)[0], decoded, rtol=0, atol=1e-9)
        assert {*taken} == {"time", "height", "phases"}
        taken.clear()
    torch.testing.assert_close(vae.encode(video).mean, latents, rtol=0, atol=1e-9)
    torch.testing.assert_close(vae.decode(latents, clamp=False), decoded, rtol=0, atol=1e-9)
    assert {*taken} == {"time", "height", "phases"}


@pytest.mark.parametrize(
    ("gradients", "expected"), [(True, TRAINING), (False, IN_PLACE)], ids=["training", "inference"]
)
def test_a_gpu_without_programs_is_like_any_other_device(monkeypatch, gradients, expected):
    monkeypatch.setattr(dispatch, "has_programs", lambda device: device.index == 1)
    with FakeTensorMode(), torch.set_grad_enabled(gradients):
        old, new = (torch.empty(1, device=f"cuda:{index}") for index in range(2))
        assert kernels_for(old) is expected
        assert kernels_for(new) is TABLE[current_observer()]["cuda"]
        found = [find_rehearsal(x.device) for x in (old, new)]
    assert found == ["others", "cuda"]
    assert [find_rehearsal(torch.device(kind)) for kind in ("cpu", "mps", "xpu")] == [
        "cpu",
        "mps",
        "others",
    ]


def test_a_compiler_sees_no_trial_of_programs(monkeypatch):
    monkeypatch.setattr(dispatch, "has_programs", None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode():
        assert kernels_for(torch.empty(1, device="cuda")) is TABLE[Observer.COMPILER]["cuda"]


@pytest.mark.parametrize("gradients", [True, False])
def test_the_compiler_comes_before_autograd(monkeypatch, gradients):
    with torch.set_grad_enabled(gradients):
        assert current_observer() is (Observer.AUTOGRAD if gradients else Observer.NOBODY)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert current_observer() is Observer.COMPILER


# PyTorch warns of its own rules for forward derivatives.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "block",
    [ResidualBlock(3, 4, 4), ResConv1DBlock(50, 50, activation="relu", dropout=0.0)],
    ids=["3d", "1d"],
)
def test_transforms_of_torch_func(block, gradients):
    x = example(3, 50, 6, dtype=torch.float32)
    if isinstance(block, ResidualBlock):
        x = example(3, 4, 5, 4, 6, dtype=torch.float32)
    with torch.set_grad_enabled(gradients):
        y = block(x)
        each = torch.func.vmap(lambda clip: block(clip[None])[0])(x)
        torch.testing.assert_close(each, y, rtol=1e-4, atol=1e-5)
        change = torch.ones_like(x)
        forward = torch.func.jvp(block, (x,), (change,))[1]
    of_y = torch.randn_like(y)
    back = torch.func.vjp(block, x)[1](of_y)[0]
    torch.testing.assert_close((forward * of_y).sum(), (back * change).sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("observer", Observer)
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta", "mps"])
def test_every_observer_has_kernels_for_every_device(monkeypatch, observer, device):
    monkeypatch.setattr(dispatch, "current_observer", lambda: observer)
    kernels = kernels_for(SimpleNamespace(device=torch.device(device)))
    assert kernels is TABLE[observer].get(device, TABLE[observer][None])


@pytest.mark.parametrize("operation", [field.name for field in fields(Kernels)])
def test_only_inference_writes_in_place_or_takes_the_memory_of_the_pool(operation):
    """What else autograd and the compiler see are PyTorch's operations, on every device."""
    for observer in (Observer.AUTOGRAD, Observer.COMPILER):
        for device, kernels in TABLE[observer].items():
            own_device = device in ("cpu", "meta", "mps")
            convolves_its_way = operation.startswith("convolve") and own_device
            # The input of a convolution has a backward pass of its own.
            own_operations = OWN_BACKWARD.get(device, ())
            if device != "meta":
                own_operations += TWICE_DIFFERENTIABLE
            own_backward = observer is Observer.AUTOGRAD and operation in own_operations
            if not (convolves_its_way or own_backward):
                assert getattr(kernels, operation) == getattr(PYTORCH, operation)


@pytest.mark.parametrize("observer", Observer)
def test_a_row_of_the_table_is_what_layers_run(monkeypatch, observer):
    """One new row is all that another kernel needs."""
    ran = []

    def norm(x, gamma):
        ran.append(observer)
        return rms_norm_by_squares(x, gamma)

    monkeypatch.setattr(dispatch, "current_observer", lambda: observer)
    # In training, the input of a convolution is one operation, which normalizes on its own.
    plain = PYTORCH if observer is Observer.AUTOGRAD else TABLE[observer]["cpu"]
    row = replace(plain, rms_norm=norm)
    monkeypatch.setitem(TABLE[observer], "cpu", row)
    with torch.set_grad_enabled(observer is not Observer.NOBODY):
        ResidualBlock(3, 4, 4)(torch.randn(1, 4, 2, 3, 3))
    assert ran == [observer, observer]


@torch.no_grad()
def test_where_only_shapes_are_wanted_no_pointwise_layer_runs():
    x = torch.empty(1, 2, 3, 4, 5, device="meta")
    joined, _ = kernels_for(x).join(x, x, [torch.nn.Linear(7, 7)], 3)
    assert joined.is_meta and joined.shape == (1, 2, 6, 4, 5)
