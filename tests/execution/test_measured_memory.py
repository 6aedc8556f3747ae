"""The memory that plans are expected to take against what they take in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wanvae import WanVAE, WanVAEConfig
from wanvae.execution.budget import Planner
from wanvae.execution.cost import Workload
from wanvae.execution.plan import Plan

ROOT = Path(__file__).parents[2]

# Full-size model; peak of the resident memory over what it was before the call.
MEASURE = """
import sys, torch
from tools.measuring import measure_peak_resident_memory
from wanvae import WanVAE, WanVAEConfig
from wanvae.execution.limits import Limits
from wanvae.execution.plan import Plan
from wanvae.execution.run import Runner
from wanvae.nn import use_channels_last

dtype = getattr(torch, sys.argv[1])
decoding, frames, height, width, *plan = map(int, sys.argv[2:])
vae = WanVAE(WanVAEConfig()).to(dtype).eval()
use_channels_last(vae)
vae.decode(vae.encode(torch.rand(1, 3, 5, 64, 64)).mean)
tile_size = None if plan[0] == 0 else (plan[0], plan[1])
limits = Limits(plan=Plan(tile_size, plan[2], lean=True))
network = vae.decoder_network() if decoding else vae.encoder_network()
latents = torch.randn(1, 16, 1 + (frames - 1) // 4, height // 8, width // 8).to(dtype)
video = torch.rand(1, 3, frames, height, width).to(dtype)
with torch.no_grad():
    x = latents if decoding else video
    print(measure_peak_resident_memory(lambda: Runner(network, limits).run(x)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize(
    ("dtype", "frames", "height", "width", "tile_size", "at_once"),
    [
        ("float32", 5, 256, 256, None, 4),
        ("float32", 9, 256, 256, None, 2),
        ("float32", 5, 256, 320, None, 1),
        ("float32", 5, 384, 384, (192, 384), 2),
        ("float32", 9, 320, 320, (160, 160), 2),
        ("bfloat16", 5, 256, 256, None, 2),
    ],
)
def test_predicted_memory_is_what_is_taken(
    decoding, dtype, frames, height, width, tile_size, at_once
):
    plan = Plan(tile_size, at_once, lean=True)
    sizes = decoding, frames, height, width, *(tile_size or (0, 0)), at_once
    command = [sys.executable, "-c", MEASURE, dtype, *(str(int(size)) for size in sizes)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    computed_in = getattr(torch, dtype)
    with torch.device("meta"):
        vae = WanVAE(WanVAEConfig()).to(computed_in)
    network = vae.decoder_network() if decoding else vae.encoder_network()
    channels, latents = 16 if decoding else 3, 1 + (frames - 1) // 4
    workload = Workload(1, channels, latents, height, width, computed_in)
    expected = Planner(network).memory(workload, plan)
    print(
        f"{sizes} {dtype}: measured {int(run.stdout) / 2**20:.0f}, expected {expected / 2**20:.0f}"
    )
    assert expected == pytest.approx(int(run.stdout), rel=0.15)
