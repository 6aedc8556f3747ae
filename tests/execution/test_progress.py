"""What a run tells of its progress, and how it is stopped."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers import WAN22, random_video, tiny, tiny_autoencoder

from wanvae.execution.budget import Planner
from wanvae.execution.cost import Workload
from wanvae.execution.limits import Limits
from wanvae.execution.plan import make_default_plan
from wanvae.execution.run import Runner

MODELS = {
    "Wan2.1": tiny,
    "Wan2.2": lambda: tiny(**WAN22),
    "whole clips": lambda: tiny(norm="group"),
    "tiny": tiny_autoencoder,
}


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        *product(MODELS, [{}]),
        *product(["Wan2.1", "Wan2.2", "tiny"], [{"tile_size": 32}]),
        ("Wan2.1", {"max_memory": "400MB"}),
    ],
)
@pytest.mark.parametrize("decoding", [False, True])
def test_progress_grows_to_one(kind: str, limits: dict[str, object], decoding: bool) -> None:
    vae = MODELS[kind]()
    told: list[float] = []
    video = random_video(9, 64, 96, batch=2)
    latents = torch.randn(2, vae.config.z_dim, 3, 4, 6, dtype=torch.float64)
    if decoding:
        result = vae.decode(latents, progress=told.append, **limits)
        assert torch.equal(result, vae.decode(latents, **limits))
    else:
        result = vae.encode(video, progress=told.append, **limits).mode()
        assert torch.equal(result, vae.encode(video, **limits).mode())
    assert told == sorted(told) and told[0] < 0.2 and told[-1] == 1
    # Steps of few frames count a little less than the same frames in one step.
    assert told[-2] > 0.75
    assert len(set(told)) > 10


@pytest.mark.parametrize("decoding", [False, True])
def test_what_progress_raises_ends_the_run(decoding: bool) -> None:
    vae = tiny()
    told: list[float] = []

    def stop(share: float) -> None:
        told.append(share)
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        if decoding:
            vae.decode(torch.zeros(1, 2, 3, 4, 6, dtype=torch.float64), progress=stop, tile_size=16)
        else:
            vae.encode(random_video(9, 32, 48), progress=stop, tile_size=16)
    assert 0.5 < told[-1] < 0.9 and told[-2] <= 0.5


@pytest.mark.parametrize("tile_size", [None, 32])
def test_the_memory_of_a_clip_is_estimated(tile_size: int | None) -> None:
    network = tiny().decoder_network()
    found = Runner(network, Limits(tile_size)).estimate_memory((1, 2, 3, 8, 12))
    sides = None if tile_size is None else (tile_size, tile_size)
    workload = Workload(1, 2, 3, 64, 96, torch.float64)
    plan = make_default_plan(network, 64, 96, sides)
    assert found == Planner(network).memory(workload, plan)
