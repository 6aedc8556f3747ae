"""Errors of path and heading are fed back to the motion that is encoded."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from motion import FeatureSpec, RVQVAEConfig
from motion.autoencoder import MotionAutoencoder
from motion.config import ResnetConfig
from motion.features.paths import trace_path
from motion.features.rotations import extract_features
from motion.steering import steer
from tests.motion.small_tokenizers import WALK, tiny_tokenizer, tiny_vae

FPS = 20.0
SPECS = {
    "world": FeatureSpec(rot6d="rows"),
    "relative": FeatureSpec(rot6d="rows", heading="relative", positions=True),
}


def wander(spec: FeatureSpec, frames: int = 300) -> Tensor:
    """Features of two joints: a way with turns, at up to 1 m/s."""
    time = torch.arange(frames) / FPS
    motion = torch.randn(frames, spec.channels(2), generator=torch.Generator().manual_seed(0))
    *turns, x, z, _ = range(12, 12 + spec.root_channels)
    for turn in turns:
        motion[:, turn] = (time / 3).sin()
    motion[:, x], motion[:, z] = 0.4 * time.cos(), 1 + 0.3 * (2 * time).sin()
    return motion


def imprecise(spec: FeatureSpec, motion: Tensor) -> Tensor:
    """Motion with rounded velocities and turns, a bias and a part of their size lost."""
    moving = slice(12, 11 + spec.root_channels)
    motion = motion.clone()
    motion[:, moving] = ((0.9 * motion[:, moving] + 0.03) / 0.2).round() * 0.2
    return motion


def drift(spec: FeatureSpec, motion: Tensor, original: Tensor, fps: float = FPS) -> float:
    """The mean distance of the path from the path of the original, in metres."""
    root = spec.find_root(motion.shape[1])
    (_, path), (_, goal) = (trace_path(x[None, :, root].double(), fps) for x in (motion, original))
    return (path - goal).norm(dim=-1).mean().item()


@pytest.mark.parametrize("name", SPECS)
def test_the_decoded_path_stays_near_the_original(name: str) -> None:
    spec = SPECS[name]
    motion = wander(spec)

    def reconstruct(x: Tensor) -> Tensor:
        return imprecise(spec, x)

    steered = steer(motion, spec, FPS, torch.ones(motion.shape[1]), reconstruct, 12)
    before, after = (drift(spec, reconstruct(x), motion) for x in (motion, steered))
    assert before > 0.5 and after < 0.1
    moving = [*range(12, 11 + spec.root_channels)]
    others = [channel for channel in range(motion.shape[1]) if channel not in moving]
    assert torch.equal(steered[:, others], motion[:, others])


def test_no_feedback_is_better_than_bad_feedback() -> None:
    """Where velocities that are fed back spoil the pose, or change nothing, motion stays."""
    spec = SPECS["world"]
    motion = wander(spec)

    def spoil(x: Tensor) -> Tensor:
        poses = x + (x[:, 12:14] - motion[:, 12:14]).abs().sum(dim=1, keepdim=True)
        return torch.cat([poses[:, :12], imprecise(spec, x)[:, 12:14], poses[:, 14:]], dim=1)

    for reconstruct in (spoil, lambda x: motion + 0.1, lambda x: x):
        steered = steer(motion, spec, FPS, torch.ones(motion.shape[1]), reconstruct, 5)
        assert torch.equal(steered, motion)


RELATIVE = FeatureSpec(rot6d="rows", heading="relative")


def with_rounds(model: MotionAutoencoder, rounds: int) -> MotionAutoencoder:
    model.config = replace(model.config, path_rounds=rounds)
    return model


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_clips_of_a_batch_are_steered_as_alone(frames: int) -> None:
    features = extract_features(WALK, RELATIVE).float()
    motion = torch.stack([features, features.flip(0)])
    tokenizer = with_rounds(tiny_tokenizer(RELATIVE), 3)
    both = tokenizer.encode(motion, [frames, 41])
    alone = [tokenizer.encode(motion[:1, :frames]), tokenizer.encode(motion[1:])]
    assert torch.equal(both[:1, : alone[0].shape[1]], alone[0])
    assert both[0, alone[0].shape[1] :].eq(-1).all()
    assert torch.equal(both[1:], alone[1])
    vae = with_rounds(tiny_vae(RELATIVE, causal=False), 3)
    latents = vae.encode(motion, [frames, 41]).mean
    count = alone[0].shape[1]
    torch.testing.assert_close(latents[:1, :count], vae.encode(motion[:1, :frames]).mean)


@pytest.mark.parametrize("make", [tiny_tokenizer, lambda spec: tiny_vae(spec, causal=False)])
def test_encode_steers_and_leaves_its_input(make) -> None:
    model, features = make(RELATIVE), extract_features(WALK, RELATIVE).float()[None]
    before = features.clone()
    steered = with_rounds(model, 8)._steer(features, None)
    assert torch.equal(features, before)
    plain = with_rounds(model, 0)._reconstruct(features)
    found = with_rounds(model, 8)._reconstruct(steered)
    errors = [drift(RELATIVE, x[0], features[0], 30.0) for x in (plain, found)]
    assert errors[1] <= errors[0] and all(map(math.isfinite, errors))


@pytest.mark.parametrize(
    "changes",
    [
        {"features": None},
        {"features": FeatureSpec(rot6d="rows", root=False)},
        {"resnet": ResnetConfig(causal=True)},
        {"network": "wan"},
    ],
)
def test_a_model_that_has_no_path_or_streams_is_not_steered(changes) -> None:
    options = {"features": RELATIVE, "channels": 136, **changes}
    with pytest.raises(ValueError, match="path_rounds must be 0, unless the features have a root"):
        RVQVAEConfig(path_rounds=1, **options)
    RVQVAEConfig(**options)
    with pytest.raises(ValueError, match="path_rounds must be at least 0"):
        RVQVAEConfig(path_rounds=-1, **options)
