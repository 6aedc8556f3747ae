"""Double backward, as in penalties of gradients (R1): equal to PyTorch's own, in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.helpers import QWEN21, WAN22, WAN_ALPHA, random_video, randomize, tiny
from wanvae import WanVAE
from wanvae.nn import (
    AttentionBlock,
    BlockSpec,
    Downsample,
    Upsample,
    make_block,
)
from wanvae.nn.kernels.dispatch import PYTORCH, TABLE, Observer
from wanvae.nn.kernels.training import products
from wanvae.nn.sequential import step_through
from wanvae.train.discriminator import PatchDiscriminator3D
from wanvae.train.distillation import DistillConfig, make_student

Function = Callable[[Tensor], Tensor]


def penalty_and_gradients(
    function: Function, x: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The R1 penalty of a function, and its gradients: of parameters it does not depend on, 0."""
    x = x.clone().requires_grad_()
    output = function(x)
    # Not linear, so that each layer has second derivatives of its own.
    (of_x,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    penalty = of_x.square().sum()
    inputs = (x, *parameters)
    gradients = torch.autograd.grad(penalty, inputs, allow_unused=True, materialize_grads=True)
    return (penalty.detach(), *gradients)


def assert_like_pytorch(
    monkeypatch: pytest.MonkeyPatch, function: Function, x: Tensor, module: nn.Module
) -> None:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    ours = penalty_and_gradients(function, x, parameters)
    monkeypatch.setitem(TABLE[Observer.AUTOGRAD], "cpu", PYTORCH)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivatives
        plain = penalty_and_gradients(function, x, parameters)
    assert plain[0] > 0 and plain[1].any()
    # The bias of the last layer has no part in the first derivatives of a linear layer.
    assert sum(bool(gradient.any()) for gradient in plain[2:]) > len(parameters) // 2
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * float(plain[0]))


@pytest.fixture(params=[1, products.FEWEST_CHANNELS], ids=["products", "convolutions"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow layers convolve as wide ones do, or as they do themselves."""
    monkeypatch.setattr(products, "FEWEST_CHANNELS", request.param)


# The discriminator


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("size", [(1, 8, 8), (5, 12, 16)])
@pytest.mark.usefixtures("narrow")
def test_a_penalty_of_the_discriminator(
    monkeypatch: pytest.MonkeyPatch, layers: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator3D(3, 4, layers).double()
    randomize(model)

    def judge(video: Tensor) -> Tensor:
        return model(video, video.detach().flip(0)).fake

    assert_like_pytorch(monkeypatch, judge, random_video(*size, batch=2), model)


def test_second_derivatives_of_the_discriminator_are_right() -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator3D(1, 2, 1).double()
    randomize(model)
    video = random_video(2, 4, 4, channels=1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: model(x).fake, (video,))


# Blocks


def blocks() -> dict[str, nn.Module]:
    """Every kind of block of the coders, by name."""
    found: dict[str, nn.Module] = {
        f"{kind} {norm} {activation}": make_block(
            3, 4, 8, BlockSpec(kind=kind, norm=norm, activation=activation)
        )
        for kind in ("residual", "standard", "bottleneck", "preactivation", "dense")
        for norm in ("rms", "layer", "none")
        for activation in ("silu", "gelu")
    }
    found["attention"] = AttentionBlock(4)
    for temporal in (False, True):
        found[f"downsample {temporal}"] = Downsample(3, 4, temporal=temporal)
        found[f"upsample {temporal}"] = Upsample(3, 4, 4, temporal=temporal)
    return found


@pytest.mark.parametrize("name", blocks())
@pytest.mark.usefixtures("narrow")
def test_a_penalty_of_a_block(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    torch.manual_seed(0)
    block = blocks()[name].double()
    randomize(block)
    x = torch.randn(2, 4, 5, 4, 6, generator=torch.Generator().manual_seed(2)).double()

    def run(x: Tensor) -> Tensor:
        return step_through([block], x, None)[0]

    assert_like_pytorch(monkeypatch, run, x, block)


# The whole model


VARIANTS: dict[str, dict[str, object]] = {
    "wan2.1": {},
    "wan2.2": WAN22,
    "qwen-image-2.1": QWEN21,
    "wan-alpha": WAN_ALPHA,
    "upscales": {"upscale_factor": 2},
    "attention": {"attn_scales": (0.5,)},
    "image": {"ndim": 2},
    "patches": {"dim_mult": (2, 4), "temporal_downsample": (True,), "patch_size": 2},
}


def reconstruct(vae: WanVAE, *, recompute: bool) -> Function:
    def function(video: Tensor) -> Tensor:
        return vae(video, recompute=recompute).video

    return function


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("narrow")
def test_a_penalty_of_a_model(monkeypatch: pytest.MonkeyPatch, name: str, recompute: bool) -> None:
    vae = tiny(**VARIANTS[name])
    video = random_video(1 if vae.config.ndim == 2 else 5, channels=vae.config.in_channels)
    assert_like_pytorch(monkeypatch, reconstruct(vae, recompute=recompute), video, vae)


def test_a_penalty_of_a_tiny_student(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DistillConfig(half="decoder", tiny_dims=(4, 4, 2, 2), start="new")
    student = make_student(tiny(), config).double().eval()

    def run(latents: Tensor) -> Tensor:
        return student.decode_step(latents, None)[0]

    latents = torch.randn(1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(2)).double()
    assert_like_pytorch(monkeypatch, run, latents, student)
