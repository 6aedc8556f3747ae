"""Gradients of norm, activation, history and convolution, and what is kept for them."""

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import random_video, tiny
from wanvae.nn import ResidualBlock
from wanvae.nn.conv import CausalConv, use_channels_last
from wanvae.nn.kernels import products
from wanvae.nn.kernels.dispatch import PYTORCH, TABLE, Observer
from wanvae.nn.norm import make_norm
from wanvae.nn.residual import make_activation
from wanvae.nn.sequential import step_through

SHAPES = {1: (2, 4, 5), 2: (2, 4, 3, 4), 3: (2, 4, 3, 3, 4)}


def example(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE[Observer.AUTOGRAD], "cpu", PYTORCH)


def make_layers(ndim: int, norm: str, activation: str) -> nn.ModuleList:
    torch.manual_seed(0)
    layers = [make_norm(norm, ndim, 4), make_activation(activation), CausalConv(ndim, 4, 3, 3)]
    for parameter in (layers := nn.ModuleList(layers)).parameters():
        nn.init.normal_(parameter)
    return layers.double()


def run(layers: nn.ModuleList, *pieces: Tensor) -> Tensor:
    state, outputs = None, []
    for piece in pieces:
        y, state = step_through(layers, piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    ("norm", "activation"), [("rms", "silu"), ("rms", "relu"), ("none", "silu")]
)
def test_first_and_second_derivatives(check, ndim, norm, activation):
    layers = make_layers(ndim, norm, activation)
    x = example(*SHAPES[ndim]).requires_grad_()
    # In 2D there is no time to cut, in 1D and 3D the second piece sees the past.
    cuts = [x.shape[2]] if ndim == 2 else [1, x.shape[2] - 1]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return run(layers, *x.split(cuts, dim=2))

    assert check(function, (x, *layers.parameters()))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("cuts", [[3], [2, 1], [1, 2]])
def test_derivatives_by_products(monkeypatch, check, cuts):
    monkeypatch.setattr(products, "FEWEST_CHANNELS", 1)
    torch.manual_seed(0)
    layers = nn.ModuleList([make_norm("rms", 3, 2), CausalConv(3, 2, 2, 3)]).double()
    x = example(1, 2, 3, 2, 2).requires_grad_()

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return run(layers, *x.split(cuts, dim=2))

    assert check(function, (x, *layers.parameters()))


@pytest.mark.parametrize("fewest_channels", [1, 48])
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu"])
def test_gradients_are_those_of_pytorch_in_float32(
    monkeypatch, fewest_channels, frames, activation
):
    monkeypatch.setattr(products, "FEWEST_CHANNELS", fewest_channels)
    layers = make_layers(3, "rms", activation).float()
    use_channels_last(layers)
    x = example(2, 4, frames, 5, 6, dtype=torch.float32).requires_grad_()

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(layers, x).square().sum(), (x, *layers.parameters()))

    ours = gradients()
    by_pytorch(monkeypatch)
    for one, other in zip(ours, gradients(), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_gradients_of_zeros_are_finite_and_those_of_pytorch(monkeypatch):
    layers, x = make_layers(3, "rms", "silu"), torch.zeros(1, 4, 3, 3, 4, dtype=torch.float64)
    x[:, :, 1] = example(1, 4, 3, 4)
    x.requires_grad_()

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(layers, x).square().sum(), (x, *layers.parameters()))

    ours = gradients()
    by_pytorch(monkeypatch)
    torch.testing.assert_close(ours, gradients())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_types_give_the_dtypes_and_about_the_gradients_of_float64(dtype, autocast):
    layers = make_layers(3, "rms", "silu")
    x = example(2, 4, 3, 5, 6).requires_grad_()
    exact = torch.autograd.grad(run(layers, x).square().mean(), (x, *layers.parameters()))
    layers = layers.float() if autocast else layers.to(dtype)
    x = x.detach().to(torch.float32 if autocast else dtype).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=autocast):
        y = run(layers, x)
    assert y.dtype == dtype
    inputs = (x, *layers.parameters())
    found = torch.autograd.grad(y.float().square().mean(), inputs)
    for gradient, like, other in zip(found, inputs, exact, strict=True):
        assert gradient.dtype == like.dtype
        assert (gradient - other).norm() < 0.03 * other.norm()


def kept_bytes(function, *apart: Tensor) -> int:
    """The bytes of different memory that are kept for a backward pass, parameters apart."""
    known = {x.untyped_storage().data_ptr() for x in apart}
    kept = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = function()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_a_block_keeps_its_input_and_one_tensor_more():
    block, x = ResidualBlock(3, 8, 8).train(), example(1, 8, 5, 9, 10, dtype=torch.float32)
    x.requires_grad_()
    assert kept_bytes(lambda: block(x), *block.parameters()) == 2 * x.nbytes


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_keeps_little(monkeypatch, autocast):
    vae, video = tiny(dim=16).float().train(), random_video(5, 32, 32).float()

    def run_model() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return vae(video).video

    ours = kept_bytes(run_model, *vae.parameters())
    by_pytorch(monkeypatch)
    assert ours < 0.4 * kept_bytes(run_model, *vae.parameters())
