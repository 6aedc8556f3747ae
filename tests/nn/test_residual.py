"""Residual blocks against the seed's code, and what all of them have in common."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from wanvae.nn import (
    BlockSpec,
    BottleneckBlock,
    DenseBlock,
    PreActivationBlock,
    ResConv1DBlock,
    ResidualBlock,
    StandardBlock,
    make_block,
    unstreamable_layers,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SEED_SPEC = BlockSpec(norm="batch", activation="relu", causal=False)
KINDS = ["residual", "standard", "bottleneck", "preactivation", "dense"]
NORMS = ["rms", "layer", "group", "batch", "none"]
NORM_NAMES = {None: "none", "LN": "layer", "GN": "group", "BN": "batch"}


def example(ndim: int, channels: int, frames: int = 5) -> torch.Tensor:
    shape = {1: (frames,), 2: (6, 4), 3: (frames, 6, 4)}[ndim]
    return torch.randn(2, channels, *shape, generator=torch.Generator().manual_seed(0))


def randomize(module: nn.Module) -> None:
    """Give every parameter and statistic a value that matters."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + 0.2)
            if "weight" in name and tensor.dim() > 1:
                tensor.sub_(0.5)


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and statistics between modules that list them in the same order."""
    values = source.state_dict().values()
    keys = target.state_dict().keys()
    target.load_state_dict(dict(zip(keys, values, strict=True)))


def seed_body(ndim: int, *layers: tuple[str, int, int, int]) -> nn.Sequential:
    """Layers of the seed document: ("conv", in, out, kernel), ("norm", dim, ...), ("relu", ...)."""
    modules = {
        "conv": lambda i, o, k: CONVS[ndim](i, o, k, padding=k // 2),
        "norm": lambda i, o, k: BATCH_NORMS[ndim](i),
        "relu": lambda i, o, k: nn.ReLU(),
    }
    return nn.Sequential(*(modules[name](*sizes) for name, *sizes in layers))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_standard_block_equals_the_seed(ndim):
    body = seed_body(
        ndim,
        ("conv", 8, 8, 3), ("norm", 8, 0, 0), ("relu", 0, 0, 0),
        ("conv", 8, 8, 3), ("norm", 8, 0, 0),
    ).eval()  # fmt: skip
    randomize(body)
    block = StandardBlock(ndim, 8, 8, SEED_SPEC).eval()
    copy_in_order(body, block)
    x = example(ndim, 8)
    torch.testing.assert_close(block(x), torch.relu(x + body(x)))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("out_dim", [8, 12])
def test_bottleneck_block_equals_the_seed(ndim, out_dim):
    body = seed_body(
        ndim,
        ("conv", 8, 3, 1), ("norm", 3, 0, 0), ("relu", 0, 0, 0),
        ("conv", 3, 3, 3), ("norm", 3, 0, 0), ("relu", 0, 0, 0),
        ("conv", 3, out_dim, 1), ("norm", out_dim, 0, 0),
    ).eval()  # fmt: skip
    shortcut = nn.Identity()
    if out_dim != 8:
        shortcut = seed_body(ndim, ("conv", 8, out_dim, 1), ("norm", out_dim, 0, 0)).eval()
    randomize(body)
    randomize(shortcut)
    block = BottleneckBlock(ndim, 8, 3, out_dim, SEED_SPEC).eval()
    copy_in_order(body, block.residual)
    copy_in_order(shortcut, block.shortcut)
    x = example(ndim, 8)
    torch.testing.assert_close(block(x), torch.relu(shortcut(x) + body(x)))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pre_activation_block_equals_the_seed(ndim):
    body = seed_body(
        ndim,
        ("norm", 8, 0, 0), ("relu", 0, 0, 0), ("conv", 8, 8, 3),
        ("norm", 8, 0, 0), ("relu", 0, 0, 0), ("conv", 8, 8, 3),
    ).eval()  # fmt: skip
    randomize(body)
    block = PreActivationBlock(ndim, 8, 8, SEED_SPEC).eval()
    copy_in_order(body, block)
    x = example(ndim, 8)
    torch.testing.assert_close(block(x), x + body(x))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dense_block_equals_the_seed(ndim):
    layers = [
        seed_body(ndim, ("norm", 8 + 4 * i, 0, 0), ("relu", 0, 0, 0), ("conv", 8 + 4 * i, 4, 3))
        for i in range(3)
    ]
    stacked = nn.ModuleList(layers).eval()
    randomize(stacked)
    block = DenseBlock(ndim, 8, 4, 3, SEED_SPEC).eval()
    copy_in_order(stacked, block)
    x = example(ndim, 8)
    features = [x]
    for layer in stacked:
        features.append(layer(torch.cat(features, dim=1)))
    torch.testing.assert_close(block(x), torch.cat(features, dim=1))


@pytest.mark.parametrize("case", ["case0", "case1", "case2", "case3"])
def test_res_conv_1d_blocks_equal_the_reference_resnet1d(case):
    with safe_open(GOLDEN / "resnet1d.safetensors", "pt") as file:
        options = json.loads(file.metadata()[case])
        tensors = {k.removeprefix(f"{case}."): file.get_tensor(k) for k in file.keys() if case in k}  # noqa: SIM118
    dilations = [options["dilation_growth_rate"] ** depth for depth in range(options["n_depth"])]
    if options["reverse_dilation"]:
        dilations.reverse()
    blocks = nn.Sequential(
        *(
            ResConv1DBlock(32, 32, d, options["activation"], NORM_NAMES[options["norm"]])
            for d in dilations
        )
    )
    prefix = "weights.model."
    blocks.load_state_dict(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    )
    torch.testing.assert_close(blocks(tensors["input"]), tensors["output"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "norm", "activation"), list(product(KINDS, NORMS, ["silu", "relu", "gelu"]))
)
def test_every_block_trains_in_every_rank(kind, norm, activation):
    spec = BlockSpec(kind=kind, norm=norm, activation=activation, dropout=0.1)
    for ndim in (1, 2, 3):
        block = make_block(ndim, 6, 10, spec)
        y = block(example(ndim, 6))
        assert y.shape == (2, 10, *example(ndim, 6).shape[2:])
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize(("kind", "norm", "ndim"), list(product(KINDS, NORMS, [1, 3])))
def test_every_block_streams_or_says_that_it_cannot(kind, norm, ndim):
    block = make_block(ndim, 6, 10, BlockSpec(kind=kind, norm=norm)).eval()
    randomize(block)
    x = example(ndim, 6, frames=7)
    first, state = block.step(x[:, :, :3], None)
    if norm == "group":
        assert unstreamable_layers(block)
        with pytest.raises(ValueError, match="cannot continue a stream"):
            block.step(x[:, :, 3:], state)
    else:
        assert not unstreamable_layers(block)
        rest, _ = block.step(x[:, :, 3:], state)
        torch.testing.assert_close(torch.cat([first, rest], dim=2), block(x))


def test_batch_norm_cannot_stream_while_training():
    block = make_block(3, 4, 4, BlockSpec(norm="batch"))
    assert unstreamable_layers(block)
    assert not unstreamable_layers(block.eval())


def test_gradients_are_right():
    block = ResidualBlock(3, 2, 3).double()
    x = torch.randn(1, 2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="bottleneck"):
        make_block(3, 4, 4, BlockSpec(kind="resnext"))
    with pytest.raises(ValueError, match="batch"):
        make_block(3, 4, 4, BlockSpec(norm="instance"))
    with pytest.raises(ValueError, match="silu"):
        make_block(3, 4, 4, BlockSpec(activation="tanh"))
