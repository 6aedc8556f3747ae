"""What encoding and decoding costs behind diffusers' class: what it costs in the library.

Counted, not timed: the operators that run, the bytes of the tensors that they allocate, and the
peak of the memory of a process.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import QWEN21, WAN22, random_video, tiny
from wanvae import WanVAE, WanVAEConfig

pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing it and its dependencies says is not ours
    pytest.importorskip("diffusers")

ROOT = Path(__file__).parents[1]
CHANNELS = 4
# The standard deviation and variance that diffusers computes of each log variance.
OF_THE_DISTRIBUTION = Counter(
    {"aten.clamp.default": 1, "aten.mul.Tensor": 1, "aten.exp.default": 2}
)


@dataclass(frozen=True)
class Cost:
    """What a piece of work needs: operators that run, and bytes that they allocate."""

    operators: Counter[str]
    allocated: int


class Costs(TorchDispatchMode):
    """Counts operators, and the memory of their results that none of their inputs has."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.allocated = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.operators[str(function)] += 1
        before = storages((args, kwargs))
        new = {k: size for k, size in storages(results).items() if k not in before}
        self.allocated += sum(new.values())
        return results


def storages(tree: object) -> dict[int, int]:
    """The address and the size in bytes of the memory of all tensors in nested containers."""
    found = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def cost_of(work: Callable[[], object]) -> Cost:
    """What ``work`` costs when memory and plans of earlier work are there."""
    work()
    with Costs() as costs:
        work()
    return Cost(costs.operators, costs.allocated)


def inputs(vae: WanVAE, side: int) -> tuple[Tensor, Tensor]:
    """A short video, or a picture of an image model, and latents of it."""
    config = vae.config
    video = random_video(1 + config.temporal_factor, side, side, channels=config.in_channels)
    latents = side // config.spatial_factor
    frames = video.shape[2] // 2 if config.ndim == 3 else video.shape[2]
    return video.float(), torch.randn(1, config.z_dim, frames, latents, latents)


@torch.no_grad()
def check_cost(vae: WanVAE, side: int, **limits: object) -> None:
    """Checks that the adapter runs the operators and takes the bytes of the library, no more."""
    adapter, (video, latents) = vae.as_diffusers(), inputs(vae, side)
    if limits:
        adapter.enable_tiling(*limits.get("tile_size", ()), max_memory=limits.get("max_memory"))
    library = cost_of(partial(vae.encode_moments, video, **limits))
    assert cost_of(partial(adapter._encode, video)) == library

    # In the library mean and logvar are views. Diffusers computes std and var of them.
    of_library = cost_of(partial(vae.encode, video, **limits))
    of_adapter = cost_of(partial(adapter.encode, video))
    assert of_adapter.operators - of_library.operators == OF_THE_DISTRIBUTION
    moments = vae.encode_moments(video)
    assert of_adapter.allocated - of_library.allocated == 2 * moments.nbytes
    assert of_adapter.allocated < 1.03 * of_library.allocated

    library = cost_of(partial(vae.decode, latents, **limits))
    assert cost_of(partial(adapter.decode, latents)) == library
    assert library.allocated > video.nbytes


@pytest.mark.parametrize(
    "limits",
    [{}, {"tile_size": (16, 16)}, {"max_memory": "300MB"}],
    ids=["whole", "tiles", "max_memory"],
)
def test_it_costs_what_the_library_costs(limits: dict) -> None:
    check_cost(tiny(z_dim=CHANNELS).float(), 32, **limits)


@pytest.mark.parametrize("changes", [WAN22, QWEN21], ids=["wan2.2", "qwen-image-2.1"])
def test_so_do_other_kinds(changes: dict) -> None:
    check_cost(tiny(z_dim=CHANNELS, **changes).float(), 32)


@pytest.mark.slow  # a full-size model
def test_so_does_the_full_size_model() -> None:
    check_cost(WanVAE(WanVAEConfig()).eval(), 128)


def test_copies_are_counted() -> None:
    x = torch.zeros(1000)
    assert cost_of(lambda: x.view(10, 100).add_(1)[2:]).allocated == 0
    assert cost_of(lambda: torch.cat([x, x])).allocated == 8000


def test_tiled_methods_use_tiles() -> None:
    vae, video = tiny(z_dim=CHANNELS).float(), random_video(1, 64, 64).float()
    adapter = vae.as_diffusers().requires_grad_(False)
    latents = vae.encode(video).mode()
    adapter.enable_tiling(16, 16)
    adapter.disable_tiling()
    for method, library, x in (
        (adapter.tiled_encode, vae.encode_moments, video),
        (adapter.tiled_decode, vae.decode, latents),
    ):
        whole = cost_of(partial(library, x)).operators.total()
        tiles = cost_of(partial(library, x, tile_size=16))
        assert tiles.operators.total() > 2 * whole
        assert cost_of(partial(method, x)) == tiles


# Full-size model; peaks of the resident memory over what it was before the call.
MEASURE = """
import sys, torch
from tools.measuring import measure_peak_resident_memory
from wanvae import WanVAE, WanVAEConfig
from wanvae.nn import use_channels_last

vae = WanVAE(WanVAEConfig()).eval()
use_channels_last(vae)
x = torch.rand(1, *{"encode": (3, 5, 160, 160), "decode": (16, 2, 20, 20)}[sys.argv[1]])
with torch.no_grad():
    for model in (vae, vae.as_diffusers()) * 2:
        run = getattr(model, sys.argv[1])
        print(measure_peak_resident_memory(lambda: run(x)))
"""


@pytest.mark.slow  # a full-size model
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_its_peak_of_memory_is_that_of_the_library(direction: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, direction]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    peaks = [int(line) for line in run.stdout.split()]
    print([f"{peak / 2**20:.0f} MiB" for peak in peaks])
    assert min(peaks[1::2]) < 1.03 * min(peaks[::2])
