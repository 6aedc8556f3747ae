"""Layers in half types: under autocast and with half weights, training and inference agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.dtypes import ConvolutionDtypes
from tests.helpers import WAN22, random_video, randomize, run_steps, tensors_in, tiny
from tools.measuring import count_kept
from wanvae import Posterior, WanVAE
from wanvae.nn import (
    AttentionBlock,
    AverageDown,
    BlockSpec,
    CausalConv,
    Downsample,
    DuplicateUp,
    ResConv1DBlock,
    ResidualStage,
    TimeAttentionBlock,
    Upsample,
    make_block,
)
from wanvae.nn.kernels import precision

CHANNELS = 8
SHAPES = {1: (2, CHANNELS, 5), 2: (2, CHANNELS, 6, 4), 3: (1, CHANNELS, 5, 6, 4)}
KINDS = ["residual", "standard", "bottleneck", "preactivation", "dense"]
NORMS = ["rms", "layer", "group", "batch", "none"]


def resampled_stage(resample: nn.Module, shortcut: nn.Module, name: str) -> nn.Module:
    return ResidualStage([make_block(3, CHANNELS, CHANNELS, BlockSpec()), resample], shortcut, name)


def every_layer() -> dict[str, tuple[int, nn.Module]]:
    """Each kind of layer by name, with its rank."""
    layers: dict[str, tuple[int, nn.Module]] = {
        "attention": (3, AttentionBlock(CHANNELS)),
        "time attention": (1, TimeAttentionBlock(CHANNELS, causal=True, window=3)),
        "motion": (1, ResConv1DBlock(CHANNELS, CHANNELS)),
        "downsampling stage": (
            3,
            resampled_stage(
                Downsample(3, CHANNELS, temporal=True),
                AverageDown(CHANNELS, CHANNELS, 2, 2),
                "downsamples",
            ),
        ),
        "upsampling stage": (
            3,
            resampled_stage(
                Upsample(3, CHANNELS, CHANNELS, temporal=True),
                DuplicateUp(CHANNELS, CHANNELS, 2, 2),
                "upsamples",
            ),
        ),
    }
    for ndim in SHAPES:
        layers[f"convolution {ndim}D"] = ndim, CausalConv(ndim, CHANNELS, CHANNELS, 3)
        temporal = ndim != 2
        layers[f"down {ndim}D"] = ndim, Downsample(ndim, CHANNELS, temporal=temporal)
        layers[f"up {ndim}D"] = ndim, Upsample(ndim, CHANNELS, CHANNELS, temporal=temporal)
        for kind in KINDS:
            layers[f"{kind} {ndim}D"] = (
                ndim,
                make_block(ndim, CHANNELS, CHANNELS, BlockSpec(kind=kind, norm="layer")),
            )
        for norm in NORMS:
            layers[f"{norm} {ndim}D"] = (
                ndim,
                make_block(ndim, CHANNELS, CHANNELS, BlockSpec(norm=norm)),
            )
    return layers


LAYERS = every_layer()


@pytest.fixture(params=LAYERS)
def case(request) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A layer in float32, an input, and the output in float32."""
    ndim, layer = LAYERS[request.param]
    torch.manual_seed(0)
    layer.float().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(SHAPES[ndim])
    return layer, x, layer(x).detach()


def assert_close_in_half(y: torch.Tensor, expected: torch.Tensor) -> None:
    error, size = (y.float() - expected).norm(), expected.norm()
    assert 0 < error < 0.03 * size, error / size


@pytest.fixture(params=["slow", "fast"])
def slow(request, monkeypatch) -> bool:
    """Whether convolutions in bfloat16 count as slower than in float32."""
    slow = request.param == "slow"
    dtypes = frozenset({torch.bfloat16} if slow else ())
    monkeypatch.setattr(precision, "SLOW_DTYPES", dtypes)
    return slow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("slow")
def test_under_autocast_training_and_inference_agree(case, dtype):
    """In float32 inputs only the sum with a shortcut stays float32, as PyTorch promotes it."""
    layer, x, expected = case
    outputs = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
            outputs.append(layer(x.to(dtype)))
    for y in outputs:
        assert_close_in_half(y, expected)
    assert outputs[0].dtype == outputs[1].dtype
    if dtype == torch.bfloat16:
        assert outputs[0].dtype == torch.bfloat16


def test_under_autocast_every_parameter_gets_a_gradient_in_float32(case):
    layer, x, _ = case
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_with_half_weights_everything_is_half(case, gradients):
    layer, x, expected = case
    layer.bfloat16()
    with torch.set_grad_enabled(gradients):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close_in_half(y, expected)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_a_float32_shortcut_is_not_rounded_to_a_half_body(gradients):
    block = make_block(3, CHANNELS, CHANNELS, BlockSpec(norm="none")).bfloat16()
    nn.init.zeros_(block.body[-1].weight)
    nn.init.zeros_(block.body[-1].bias)
    x = torch.randn(SHAPES[3])
    with torch.set_grad_enabled(gradients):
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("autocast", [True, False])
def test_chunks_of_a_stream_in_half_types_equal_the_whole(gradients, autocast):
    vae = tiny().float()
    vae = vae if autocast else vae.bfloat16()
    video = random_video(9).to(vae.encode_dtype)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole, state = vae.encode_step(video, None)
        pieces = run_steps(vae.encode_step, video.split([1, 4, 4], dim=2))
    assert whole.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in tensors_in(state)} <= {torch.bfloat16, video.dtype}
    assert_close = torch.testing.assert_close
    assert_close(pieces, whole, rtol=0.02, atol=0.02 * float(whole.detach().abs().max()))


@pytest.mark.parametrize("variant", [{}, {"ndim": 2}, WAN22], ids=["3D", "2D", "wan22"])
def test_mixed_precision_convolves_in_bfloat16_alone_where_that_is_fast(variant, slow):
    vae, video = training_example(variant)
    with ConvolutionDtypes() as dtypes:
        with torch.autocast("cpu", torch.bfloat16):
            y = vae(video).video
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert dtypes.seen == {torch.float32 if slow else torch.bfloat16}


@pytest.mark.parametrize("variant", [{}, {"ndim": 2}, WAN22], ids=["3D", "2D", "wan22"])
@pytest.mark.usefixtures("slow")
def test_gradients_of_mixed_precision_are_those_of_float32_to_bfloat16(monkeypatch, variant):
    monkeypatch.setattr(Posterior, "sample", Posterior.mode)  # noise depends on the dtype
    vae, video = training_example(variant)

    def gradients(autocast: bool) -> torch.Tensor:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = vae(video).video
        loss = y.float().square().sum()
        of_all = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in of_all if g is not None])

    expected = gradients(autocast=False)
    error = (gradients(autocast=True) - expected).norm()
    # A value in bfloat16 is off by 1 / 256 at most, in each of some twenty layers and back.
    assert 0 < error < 20 / 256 * expected.norm(), error / expected.norm()


def test_convolutions_in_float32_keep_no_more_for_the_backward_pass(monkeypatch):
    """Inputs in bfloat16 are kept as they are, not in the dtype of the convolution."""
    vae, video = training_example({})
    kept = []
    for slow in (frozenset(), frozenset({torch.bfloat16})):
        monkeypatch.setattr(precision, "SLOW_DTYPES", slow)
        with torch.autocast("cpu", torch.bfloat16):
            kept.append(count_kept(lambda: vae(video).video, vae.parameters()))
    assert kept[1] <= 1.01 * kept[0]


def training_example(variant: dict[str, object]) -> tuple[WanVAE, torch.Tensor]:
    """A model in training, and a clip for it."""
    vae = tiny(**variant).float().train()
    return vae, random_video(1 if variant.get("ndim") == 2 else 5).float()


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.usefixtures("slow")
def test_a_compiled_step_follows_autocast(gradients):
    block = make_block(3, CHANNELS, CHANNELS, BlockSpec())
    randomize(block)
    step = torch.compile(block.step, fullgraph=True, backend="aot_eager")
    x = torch.randn(SHAPES[3]).bfloat16()
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
        y, expected = step(x, None)[0], block.step(x, None)[0]
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_weights_that_a_cpu_emulates_are_trained_through_float32(case, monkeypatch, dtype):
    """The backward pass too, which PyTorch does not have in every half type."""
    layer, x, _ = case
    monkeypatch.setattr(precision, "EMULATED_DTYPES", frozenset({dtype}))
    layer.to(dtype).zero_grad()
    with ConvolutionDtypes() as dtypes:
        y = layer(x.to(dtype))
        y.float().square().sum().backward()
    assert dtypes.seen <= {torch.float32}
    assert y.dtype == dtype
    assert all(parameter.grad.dtype == dtype for parameter in layer.parameters())
