"""The path of GPUs, run on the CPU by PyTorch's operations: the same values as every other path."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import (
    QWEN21,
    WAN22,
    WAN_ALPHA,
    random_video,
    randomize,
    run_steps,
    tensors_in,
    tiny,
    tiny_autoencoder,
)
from wanvae import WanVAE, WanVAEConfig
from wanvae.nn import ResidualBlock, make_norm, use_channels_last
from wanvae.nn.kernels.dispatch import FUSED, FUSED_WITH_GRADIENTS, TABLE, Observer, kernels_for
from wanvae.nn.kernels.gpu.fused import NormActivate
from wanvae.nn.kernels.gpu.operators import programs_exist
from wanvae.nn.kernels.history import concatenate
from wanvae.nn.kernels.pointwise import AddBias
from wanvae.nn.kernels.steps import Steps, find_steps
from wanvae.nn.residual import SequentialResidual

LENGTHS = (1, 4, 4, 8)
needs_programs = pytest.mark.skipif(
    not programs_exist(), reason="GPUs take the operators only with programs in Triton"
)
MODELS = {
    "wan21": {},
    "wan22": WAN22,
    "qwen21": QWEN21,
    "alpha": WAN_ALPHA,
    "standard": {"block": "standard"},
    "bottleneck": {"block": "bottleneck"},
    "preactivation": {"block": "preactivation"},
    "dense": {"block": "dense"},
    "layer_norm": {"norm": "layer"},
    "gelu": {"activation": "gelu"},
    "relu": {"activation": "relu"},
}


@pytest.fixture
def fused(monkeypatch):
    """Makes the CPU take the path of GPUs from now on."""

    def take() -> None:
        monkeypatch.setitem(TABLE[Observer.NOBODY], "cpu", FUSED)
        monkeypatch.setitem(TABLE[Observer.AUTOGRAD], "cpu", FUSED_WITH_GRADIENTS)

    return take


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


def video_for(vae, frames=17):
    return random_video(frames, 32, 48, channels=vae.config.in_channels)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_whole_clips_and_tiles_are_as_on_every_other_device(fused, changes):
    vae = tiny(**changes)
    video = video_for(vae)
    mean = vae.encode(video).mean
    decoded = vae.decode(mean, clamp=False)
    fused()
    tile = 2 * vae.config.spatial_factor
    for options in ({}, {"tile_size": tile}):
        assert_same(vae.encode(video, **options).mean, mean)
        assert_same(vae.decode(mean, clamp=False, **options), decoded)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, WAN22], ids=["wan21", "wan22"])
def test_any_plan_of_pieces_gives_the_whole_clip(fused, changes):
    vae = tiny(**changes)
    video = video_for(vae)
    moments, _ = vae.encode_step(video, None)
    fused()
    assert_same(run_steps(vae.encode_step, video.split(LENGTHS, 2)), moments)
    latents = moments.chunk(2, 1)[0]
    decoded, _ = vae.decode_step(latents, None)
    assert_same(run_steps(vae.decode_step, latents.split((1, 1, 2, 1), 2)), decoded)


def test_tiny_autoencoders_run_on_it(fused):
    vae = tiny_autoencoder()
    video = random_video(13, 32, 32)
    mean = vae.encode(video).mean
    decoded = vae.decode(mean)
    fused()
    assert_same(vae.encode(video).mean, mean)
    assert_same(vae.decode(mean), decoded)


@torch.no_grad()
def test_a_step_leaves_the_state_that_it_gets_unchanged(fused):
    vae = tiny()
    fused()
    _, state = vae.decode_step(torch.randn(1, 2, 2, 3, 4).double(), None)
    before = [x.clone() for x in tensors_in(state)]
    piece = torch.randn(1, 2, 1, 3, 4).double()
    first, _ = vae.decode_step(piece, state)
    assert all(map(torch.equal, tensors_in(state), before))
    assert torch.equal(vae.decode_step(piece, state)[0], first)


@pytest.mark.parametrize("changes", [{}, {"norm": "layer"}, {"activation": "relu"}], ids=str)
def test_gradients_are_those_of_pytorch(fused, changes):
    vae = tiny(**changes).train()
    video = random_video(5)

    def gradients():
        moments, _ = vae.encode_step(video, None)
        decoded, _ = vae.decode_step(moments.chunk(2, 1)[0], None)
        return torch.autograd.grad(decoded.square().mean(), list(vae.parameters()))

    expected = gradients()
    fused()
    for actual, plain in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(actual, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
def test_second_derivatives_are_those_of_pytorch(activation):
    """Otherwise ``autograd.grad`` leaves them out without a word where another path leads on."""
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    gamma = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, gamma: NormActivate.apply(x, gamma, activation), (x, gamma))


def test_a_penalty_on_gradients_is_as_on_every_other_device(fused):
    block = ResidualBlock(3, 4, 4).double()
    x = torch.randn(1, 4, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def penalty():
        (slope,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    expected = penalty()
    fused()
    torch.testing.assert_close(penalty(), expected)


def test_gradients_by_torch_func(fused):
    block = ResidualBlock(3, 4, 4).double()
    x = torch.randn(1, 4, 3, 4, 4, dtype=torch.float64)

    def loss(parameters):
        return torch.func.functional_call(block, parameters, (x,)).square().sum()

    parameters = dict(block.named_parameters())
    expected = torch.func.grad(loss)(parameters)
    fused()
    torch.testing.assert_close(torch.func.grad(loss)(parameters), expected)


@torch.no_grad()
@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("body", [[], [nn.Identity()], [nn.Dropout(0.5)], [nn.SiLU()]], ids=str)
def test_a_body_of_pointwise_layers_does_not_change_its_input(fused, on_gpu, body):
    block = SequentialResidual(body).eval()
    x = torch.randn(1, 4, 3)
    before, lengths = x.clone(), torch.tensor([3])
    expected = x + nn.Sequential(*body).eval()(x)
    if on_gpu:
        fused()
    for y in (block(x), block.forward_masked(x, lengths)[0]):
        torch.testing.assert_close(y, expected)
        assert torch.equal(x, before)


@torch.no_grad()
def test_a_sum_of_different_shapes_is_pytorchs():
    y, shortcut = torch.ones(2, 3, 1), torch.ones(2, 3, 4)
    sums = FUSED.add(y, layers_of("bias"), shortcut)
    assert torch.equal(sums, torch.arange(2.0, 5).view(3, 1).expand(2, 3, 4))


def layers_of(*kinds: str) -> list[nn.Module]:
    known = {
        "norm": make_norm("rms", 1, 3),
        "layer": make_norm("layer", 1, 3),
        "silu": nn.SiLU(),
        "relu": nn.ReLU(),
        "gelu": nn.GELU(),
        "none": nn.Identity(),
        "asleep": nn.Dropout(0.5).eval(),
        "never": nn.Dropout(0.0),
        "dropout": nn.Dropout(0.5),
        "bias": AddBias(torch.arange(3.0)),
    }
    return [known[kind] for kind in kinds]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kinds", "bias", "norm", "activation"),
    [
        ((), False, False, "none"),
        (("norm",), False, True, "none"),
        (("bias", "norm", "silu", "asleep"), True, True, "silu"),
        (("none", "bias", "never", "relu"), True, False, "relu"),
        (("bias",), True, False, "none"),
    ],
    ids=str,
)
def test_one_operator_does_these_layers(kinds, bias, norm, activation):
    layers = layers_of(*kinds)
    steps = find_steps(layers)
    assert steps is not None and steps.activation == activation
    assert (steps.bias is not None, steps.gamma is not None) == (bias, norm)
    x, past = torch.randn(2, 3, 4), torch.randn(2, 3, 1)
    expected, _ = concatenate(past, x.clone(), layers, 2)
    joined, last = FUSED.join(past, x, layers, 2)
    torch.testing.assert_close(joined, expected)
    assert torch.equal(last, joined[:, :, -2:])


@pytest.mark.parametrize(
    "kinds",
    [
        ("silu", "norm"),
        ("norm", "bias"),
        ("silu", "silu"),
        ("norm", "norm"),
        ("bias", "bias"),
        ("layer", "silu"),
        ("norm", "gelu"),
        ("norm", "silu", "dropout"),
    ],
    ids=str,
)
def test_other_layers_run_before_the_operator(kinds):
    layers = layers_of(*kinds)
    assert find_steps(layers) is None
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        torch.manual_seed(0)
        expected, _ = concatenate(None, x.clone(), layers, 1)
        torch.manual_seed(0)
        torch.testing.assert_close(FUSED.join(None, x, layers, 1)[0], expected)


def test_a_bias_alone_is_what_a_sum_and_paired_frames_add():
    assert Steps(bias=torch.ones(1)).only_adds and Steps().only_adds
    assert not Steps(activation="silu").only_adds
    assert not replace(Steps(), gamma=torch.ones(1)).only_adds


class Watch(TorchDispatchMode):
    """Notes each operation, and each convolution whose tensors do not have channels innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append(str(function))
        if function is torch.ops.aten.convolution.default and args[0].is_cuda:
            for name, x in (("input", args[0]), ("weight", args[1])):
                # An image has no layout along an axis of one position.
                if x.shape[1] > 1 and x.stride(1) != 1:
                    self.elsewhere.append(f"{name} {tuple(x.shape)} {x.stride()}")
        return result


def full_size(dtype):
    """A full-size model without values."""
    with torch.device("meta"):
        vae = WanVAE(WanVAEConfig()).to(dtype).eval()
    use_channels_last(vae)
    return vae


def move_to_fake_gpu(vae):
    """Makes the parameters fake tensors on a GPU; call it inside ``FakeTensorMode``."""
    for layer in vae.modules():
        for name, x in layer._parameters.items():
            if x is not None:
                fake = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
                layer._parameters[name] = nn.Parameter(fake)


@needs_programs
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_no_convolution_on_a_gpu_gets_another_layout_and_little_is_copied(direction):
    channels, pieces = (3, (1, 4)) if direction == "encode" else (16, (1, 1))
    sides = (64, 96) if direction == "encode" else (8, 12)
    # Without a GPU, PyTorch takes bfloat16 for a dtype that cuDNN does not know.
    dtype, state = torch.float16, None
    vae = full_size(dtype)
    with FakeTensorMode(), torch.no_grad():
        move_to_fake_gpu(vae)
        step = vae.encode_step if direction == "encode" else vae.decode_step
        for frames in pieces:
            with Watch() as watch:
                x = torch.empty(1, frames, *sides, channels, device="cuda", dtype=dtype)
                _, state = step(x.movedim(-1, 1), state)
            assert watch.elsewhere == []
    # The later step copies nothing but what the operators write. After each halving, PyTorch copies
    # the part of the frames that the 1-conv of a shortcut reads.
    assert watch.operations.count("wanvae.join.default") > 20
    assert watch.operations.count("aten.clone.default") <= (2 if direction == "encode" else 0)
    names = {operation.split(".")[1] for operation in watch.operations}
    assert not names & {"cat", "constant_pad_nd", "copy_", "silu", "linalg_vector_norm"}


@needs_programs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_gpus_take_the_operators(monkeypatch, dtype, gradients):
    vae = full_size(dtype)
    with FakeTensorMode(), torch.set_grad_enabled(gradients):
        move_to_fake_gpu(vae)
        with Watch() as watch:
            latents = torch.empty(1, 16, 1, 8, 12, device="cuda", dtype=dtype)
            y, _ = vae.decode_step(latents, None)
        joins = watch.operations.count("wanvae.join.default")
        assert y.dtype == dtype and joins > 20
        assert ("wanvae.add_.default" in watch.operations) != gradients
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert kernels_for(y) is TABLE[Observer.COMPILER]["cuda"]


def test_mixed_precision_trains_through_the_operators(fused):
    """Errors of half types are larger than differences between paths."""
    vae, video = tiny().float().train(), random_video(5).float()

    def gradients(dtype):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            moments, _ = vae.encode_step(video, None)
            decoded, _ = vae.decode_step(moments.chunk(2, 1)[0], None)
        return torch.autograd.grad(decoded.float().square().mean(), list(vae.parameters()))

    exact, plain = gradients(torch.float32), gradients(torch.bfloat16)
    fused()
    with Watch() as watch:
        rounded = gradients(torch.bfloat16)
    assert "wanvae.norm_activate_backward.default" in watch.operations

    def error(some):
        return sum((a - b).norm() for a, b in zip(some, exact, strict=True))

    assert error(rounded) < 1.2 * error(plain)


def test_randomized_gammas_matter(fused):
    """The comparisons above would not see a scale of one."""
    vae = tiny()
    randomize(vae)
    assert all((p != 1).any() for name, p in vae.named_parameters() if "gamma" in name)
