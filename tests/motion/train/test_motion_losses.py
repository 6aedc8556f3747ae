"""The loss terms, against their definitions."""

import pytest
import torch

from motion import RVQVAE, FeatureSpec, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig
from motion.features.rotations import extract_features
from motion.features.statistics import FeatureStatistics
from motion.model import Reconstruction
from motion.train.losses import ERRORS, LossConfig, MotionLosses
from tests.motion.helpers import random_clip, random_skeleton

SKELETON = random_skeleton(5)
RESNET = ResnetConfig(width=4, depth=1)
QUANTIZER = QuantizerConfig(num_quantizers=2, codebook_size=3)


def make(features=None, channels=None):
    channels = channels or features.channels(SKELETON.joints)
    return RVQVAE(
        RVQVAEConfig(
            channels=channels,
            code_dim=3,
            resnet=RESNET,
            quantizer=QUANTIZER,
            features=features,
        )
    )


def reconstruct(model, output, target):
    quantized = model.quantizer.eval()(torch.randn(len(output), 3, 4))
    return Reconstruction(output, target, quantized)


def terms_of(model, output, target, **weights):
    weights = {"features": 0.0, "position": 0.0, "commitment": 0.0, **weights}
    return MotionLosses(LossConfig(**weights), model, SKELETON)(reconstruct(model, output, target))


def random_pair(model):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, 6, model.config.channels)
    return torch.randn(shape, generator=generator).mul(0.7).unbind()


def smooth(error):
    """SmoothL1, written out."""
    error = error.abs()
    return torch.where(error < 1, error.square() / 2, error - 0.5).mean()


def test_features_and_their_changes():
    model = make(FeatureSpec(rot6d="rows"))
    output, target = random_pair(model)
    terms = terms_of(model, output, target, features=2.0, velocity=3.0)
    assert terms.keys() == {"features", "velocity"}
    torch.testing.assert_close(terms["features"], 2 * smooth(output - target))
    steps = [x[:, 1:] - x[:, :-1] for x in (output, target)]
    torch.testing.assert_close(terms["velocity"], 3 * smooth(steps[0] - steps[1]))


@pytest.mark.parametrize(
    ("kind", "of"),
    [("smooth_l1", smooth), ("l1", lambda x: x.abs().mean()), ("l2", lambda x: x.square().mean())],
)
def test_kinds_of_error(kind, of):
    output, target = torch.randn(2, 3, 5, 4).mul(2).unbind()
    torch.testing.assert_close(ERRORS[kind](output, target), of(output - target))


def test_commitment_is_that_of_the_quantizer():
    model = make(FeatureSpec(rot6d="rows"))
    output, target = random_pair(model)
    reconstruction = reconstruct(model, output, target)
    terms = MotionLosses(LossConfig(position=0.0), model, SKELETON)(reconstruction)
    torch.testing.assert_close(terms["commitment"], 0.02 * reconstruction.quantized.commitment_loss)


@pytest.mark.parametrize("channels", [263, 251])
def test_positions_of_humanml3d_and_kit_are_channels(channels):
    """As MoMask has it: 3 for each joint but the root, after the root's 4."""
    model = make(channels=channels)
    output, target = random_pair(model)
    joints = {263: 22, 251: 21}[channels]
    terms = terms_of(model, output, target, position=0.5)
    part = slice(4, 4 + 3 * (joints - 1))
    expected = 0.5 * smooth(output[..., part] - target[..., part])
    torch.testing.assert_close(terms["position"], expected)


@pytest.mark.parametrize("root", [True, False])
def test_positions_among_the_features_are_these(root):
    spec = FeatureSpec(rot6d="rows", root=root, positions=True, velocities=True)
    model = make(spec)
    output, target = random_pair(model)
    changed = output.clone()
    clip = random_clip(SKELETON, 6)
    features = extract_features(clip, spec).float()
    first = 30 + 3 * root
    ground = clip.root_positions * torch.tensor([1.0, 0.0, 1.0])
    expected = (clip.pose.positions - ground[:, None]).float().flatten(1)
    torch.testing.assert_close(features[:, first : first + 15], expected)
    changed[..., :first] += 1
    changed[..., first + 15 :] += 1
    before, after = (
        terms_of(model, x, target, position=1.0)["position"] for x in (output, changed)
    )
    assert torch.equal(before, after)
    part = slice(first, first + 15)
    torch.testing.assert_close(before, smooth(output[..., part] - target[..., part]))


@pytest.mark.parametrize("lines", ["rows", "columns"])
def test_positions_follow_from_rotations(lines):
    """In metres, the root at the origin; gradients reach the rotations and nothing else."""
    spec = FeatureSpec(rot6d=lines)
    model = make(spec)
    clips = [random_clip(SKELETON, 6), random_clip(random_skeleton(5, seed=0), 7)[1:]]
    features = [extract_features(clip, spec).float() for clip in clips]
    model.normalizer.set(FeatureStatistics.fit(features))
    output, target = (model.normalizer.normalize(x)[None] for x in features)
    output.requires_grad_()
    term = terms_of(model, output, target, position=10.0)["position"]
    places = [clip.pose.positions - clip.root_positions[:, None] for clip in clips]
    expected = 10 * smooth(places[0] - places[1])
    torch.testing.assert_close(term, expected.float(), rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(term, output)
    assert gradient.isfinite().all()
    assert gradient[..., :30].abs().sum() > 0 and gradient[..., 30:].eq(0).all()


def test_a_perfect_output_costs_nothing():
    model = make(FeatureSpec(rot6d="columns"))
    _, target = random_pair(model)
    terms = terms_of(model, target, target, features=1.0, position=1.0, velocity=1.0)
    assert all(term == 0 for term in terms.values())


def test_terms_are_float32_whatever_the_model_computes_in():
    model = make(FeatureSpec(rot6d="rows"))
    output, target = random_pair(model)
    terms = terms_of(model, output.bfloat16(), target, features=1.0, position=1.0, velocity=1.0)
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_a_term_without_weight_is_not_computed():
    model = make(FeatureSpec(rot6d="rows"))
    losses = MotionLosses(LossConfig(position=0.0), model, SKELETON)
    losses.locate = None
    assert losses(reconstruct(model, *random_pair(model))).keys() == {"features", "commitment"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocity": -1.0}, "velocity must be at least 0"),
        ({"features": 0.0, "position": 0.0}, "features must be above 0 if"),
        ({"error": "huber"}, "error must be smooth_l1 or l1 or l2"),
    ],
)
def test_impossible_weights_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**changes)
