"""Resnet1D as the seed writes it, against the published code; a light import."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from motion import Resnet1D
from tests.motion.golden import GOLDEN


@pytest.mark.parametrize("case", ["case0", "case1", "case2", "case3"])
def test_it_equals_the_published_code(case):
    with safe_open(GOLDEN / "resnet1d.safetensors", "pt") as file:
        options = json.loads(file.metadata()[case])
        tensors = {k.removeprefix(f"{case}."): file.get_tensor(k) for k in file.keys() if case in k}  # noqa: SIM118
    resnet = Resnet1D(**options)
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    resnet.load_state_dict(weights)
    torch.testing.assert_close(resnet(tensors["input"]), tensors["output"], atol=1e-4, rtol=0)


def test_the_example_of_the_seed():
    resnet1d = Resnet1D(
        n_in=512,
        n_depth=3,
        dilation_growth_rate=3,
        reverse_dilation=True,
        activation="relu",
        norm=None,
    )
    x = torch.randn(2, 512, 64)
    assert resnet1d(x).shape == torch.Size([2, 512, 64])


@pytest.mark.parametrize(
    ("reverse", "dilations"), [(True, [9, 3, 1]), (False, [1, 3, 9])], ids=["reversed", "growing"]
)
def test_dilations_are_powers_of_the_growth(reverse, dilations):
    resnet = Resnet1D(4, 3, 3, reverse)
    assert [block.conv1.dilation[0] for block in resnet.model] == dilations


@pytest.mark.parametrize("norm", [None, "LN", "GN", "BN"])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_every_norm_and_activation_trains(norm, activation):
    resnet = Resnet1D(64, 2, 3, activation=activation, norm=norm, dropout=0.1)
    resnet(torch.randn(2, 64, 20)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in resnet.parameters())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'LN', 'GN' or 'BN', not 'layer'"):
        Resnet1D(4, 1, norm="layer")
    with pytest.raises(ValueError, match="activation must be one of"):
        Resnet1D(4, 1, activation="tanh")


def test_importing_motion_is_light():
    heavy = ["accelerate", "av", "jsonargparse", "matplotlib", "roma", "torchmetrics", "yaml"]
    code = f"import sys, motion; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
