"""What the full-size model may cost on a GPU, counted without one: nobody brings a copy back.

A change that lowers a count may lower its budget here. ``tools/benchmark.py --count --by both``
shows where kernels and bytes come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tools.benchmark_count import Job, count
from tools.counting import OUTSIDE, Kind, Work
from wanvae import WanVAE, WanVAEConfig
from wanvae.execution.budget import Planner
from wanvae.execution.cost import Workload
from wanvae.execution.plan import make_default_plan
from wanvae.nn.kernels import dispatch
from wanvae.nn.kernels.dispatch import Observer

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="only PyTorch for CUDA knows what a GPU would run"
)

SMALL = (64, 96)
MIDDLE = 240, 416
LARGE = (480, 832)
CLIP = 81


@dataclass(frozen=True)
class Budget:
    """The most that our model may take in bfloat16.

    Attributes:
        kernels: that are launched.
        megabytes: that kernels other than convolutions and matrix products read and write.
        peak: megabytes that live at once.
        hidden_copies: kernels that change the layout of an input or a weight of a convolution.
    """

    kernels: int
    megabytes: float
    peak: float
    hidden_copies: int


# By direction and frames, at the size SMALL.
BUDGETS = {
    ("decode", 1): Budget(kernels=132, megabytes=156, peak=6, hidden_copies=30),
    ("decode", 9): Budget(kernels=234, megabytes=626, peak=50, hidden_copies=32),
    ("encode", 1): Budget(kernels=102, megabytes=106, peak=6, hidden_copies=22),
    ("encode", 9): Budget(kernels=181, megabytes=411, peak=45, hidden_copies=22),
}
# The same relative to diffusers at 81 frames of the size LARGE.
RATIOS = {
    "decode": {"kernels": 0.20, "traffic": 0.19, "peak": 0.66},
    "encode": {"kernels": 0.18, "traffic": 0.20, "peak": 0.69},
}


def work_of(side: str, direction: str, frames: int, size: tuple[int, int]) -> Work:
    return count(Job(direction, frames, *size, "bfloat16"), side, WanVAEConfig())


@pytest.mark.parametrize(("direction", "frames"), BUDGETS)
def test_the_full_size_model_keeps_its_budget(direction: str, frames: int) -> None:
    work, budget = work_of("ours", direction, frames, SMALL), BUDGETS[direction, frames]
    assert work.kernels() <= budget.kernels
    assert work.traffic(OUTSIDE) / 1e6 <= budget.megabytes
    assert work.peak / 1e6 <= budget.peak
    assert work.kernels([Kind.HIDDEN_COPY]) <= budget.hidden_copies


@pytest.mark.slow
@pytest.mark.parametrize("direction", RATIOS)
def test_a_long_clip_against_diffusers(direction: str) -> None:
    ours, peer = (work_of(side, direction, CLIP, LARGE) for side in ("ours", "diffusers"))
    ratios = {
        "kernels": ours.kernels() / peer.kernels(),
        "traffic": ours.traffic(OUTSIDE) / peer.traffic(OUTSIDE),
        "peak": ours.peak / peer.peak,
    }
    assert {name: ratio for name, ratio in ratios.items() if ratio > RATIOS[direction][name]} == {}
    # Nothing is left out: both do the convolutions of the model.
    assert 0.9 < ours.multiply_adds / peer.multiply_adds <= 1


@pytest.mark.parametrize(("direction", "slack"), [("decode", 0.01), ("encode", 0.1)])
@pytest.mark.parametrize("rehearsal", ["cuda", "mps", "others"])
def test_plans_for_gpus_expect_the_memory_that_is_counted(
    monkeypatch: pytest.MonkeyPatch, rehearsal: str, direction: str, slack: float
) -> None:
    """Except that PyTorch's fake ``cat`` keeps its inputs for a while, which counts in encode."""
    frames, latents = 17, 5
    if rehearsal == "others":
        monkeypatch.setattr(dispatch, "has_programs", lambda _: False)
    elif rehearsal == "mps":
        inference = dispatch.TABLE[Observer.NOBODY]
        monkeypatch.setitem(inference, "cuda", inference["mps"])
    with torch.device("meta"):
        vae = WanVAE(WanVAEConfig()).bfloat16().eval()
    decodes = direction == "decode"
    network = vae.decoder_network() if decodes else vae.encoder_network()
    channels = vae.config.z_dim if decodes else 3
    workload = Workload(1, channels, latents, *MIDDLE, torch.bfloat16, True, rehearsal)
    plan = make_default_plan(network, *MIDDLE, None, workload.step_pixels)
    expected = Planner(network, overhead=0).memory(workload, plan)
    counted = work_of("ours", direction, frames, MIDDLE).peak
    assert (1 - slack) * counted <= expected <= counted
