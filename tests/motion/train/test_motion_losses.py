"""The loss terms, against their definitions."""

from dataclasses import replace

import pytest
import roma
import torch

from motion import RVQVAE, FeatureSpec, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig
from motion.errors import MotionError
from motion.features.heading import find_headings, turn_vectors
from motion.features.humanml3d import recover_positions, skeleton_of
from motion.features.rotations import extract_features
from motion.features.statistics import FeatureStatistics
from motion.model import Reconstruction
from motion.skeleton.clip import MotionClip
from motion.skeleton.joint_names import find_feet
from motion.train.losses import ERRORS, LossConfig, MotionLosses
from motion.train.positions import find_positions
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
@pytest.mark.parametrize("heading", ["world", "relative"])
def test_positions_among_the_features_are_these(root, heading):
    spec = FeatureSpec(rot6d="rows", root=root, heading=heading, positions=True, velocities=True)
    model = make(spec)
    output, target = random_pair(model)
    changed = output.clone()
    clip = random_clip(SKELETON, 6)
    features = extract_features(clip, spec).float()
    first = 30 + (3 + (heading == "relative")) * root
    ground = clip.root_positions * torch.tensor([1.0, 0.0, 1.0])
    expected = clip.pose.positions - ground[:, None]
    if heading == "relative":
        expected = turn_vectors(expected, -find_headings(clip.rotations[:, :1]))
    expected = expected.float().flatten(1)
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


def from_clips(model, spec, *clips):
    """Normalized features (1, T, D) of clips."""
    features = [extract_features(clip, spec).float() for clip in clips]
    model.normalizer.set(FeatureStatistics.fit(features))
    return [model.normalizer.normalize(x)[None] for x in features]


def walked(clip, moved=0.0):
    """The clip along a path that starts at the origin."""
    path = (clip.root_positions * 0.1).cumsum(0)
    path = (path - path[:1]) * (1 + moved)
    return replace(clip, root_positions=path + torch.tensor([0.0, 1.0, 0.0]))


SPECS = {
    "root": FeatureSpec(rot6d="rows"),
    "relative": FeatureSpec(rot6d="columns", heading="relative"),
    "positions": FeatureSpec(rot6d="rows", positions=True),
    "no root": FeatureSpec(rot6d="rows", root=False),
}


@pytest.mark.parametrize("name", SPECS)
def test_accelerations_are_of_joints_in_the_world(name):
    """In m/s^2; without a root, of joints around it."""
    spec = SPECS[name]
    model = make(spec)
    clips = [walked(random_clip(SKELETON, 7, 20)), walked(random_clip(SKELETON, 8, 20)[1:], 0.5)]
    output, target = from_clips(model, spec, *clips)
    output.requires_grad_()
    terms = terms_of(model, output, target, acceleration=2.0, position=1.0)
    found = []
    for clip in clips:
        places = clip.pose.positions
        if spec.relative:
            places = turn_vectors(places, -find_headings(clip.rotations[0, 0]))
        if not spec.root:
            places = places - clip.root_positions[:, None]
        fps = model.config.fps
        found.append((places[2:] - 2 * places[1:-1] + places[:-2]) * fps**2)
    expected = 2 * smooth(found[0] - found[1])
    torch.testing.assert_close(terms["acceleration"], expected.float(), rtol=2e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(terms["acceleration"], output)
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("name", ["root", "relative", "positions"])
def test_the_path_is_where_the_joints_are_in_the_world(name):
    """From the first frame of a window, which is at the origin and has the heading 0."""
    spec = SPECS[name]
    model = make(spec)
    clips = [walked(random_clip(SKELETON, 7, 20)), walked(random_clip(SKELETON, 8, 20)[1:], 0.5)]
    output, target = from_clips(model, spec, *clips)
    term = terms_of(model, output, target, path=2.0, position=1.0)["path"]
    found = []
    for clip in clips:
        places = clip.pose.positions - clip.root_positions[0] * torch.tensor([1.0, 0.0, 1.0])
        if spec.relative:
            places = turn_vectors(places, -find_headings(clip.rotations[0, 0]))
        found.append(places)
    torch.testing.assert_close(term, 2 * smooth(found[0] - found[1]).float(), rtol=2e-3, atol=1e-4)


def test_a_bias_of_velocities_costs_more_the_longer_the_window():
    """A drift of 3 cm/s: the cost grows with the square of the time, of velocities it does not."""
    spec = FeatureSpec(rot6d="rows", heading="relative")
    model = make(spec)
    target = torch.zeros(1, 80, model.config.channels)
    target[..., [0, 4]] = 1
    output = target.clone()
    output[..., 31] += 0.03
    costs = [
        terms_of(model, output[:, :n], target[:, :n], features=1.0, path=1.0) for n in (20, 80)
    ]
    assert costs[1]["path"] > 14 * costs[0]["path"] > 0
    torch.testing.assert_close(costs[1]["features"], costs[0]["features"])


def test_a_path_needs_a_root():
    model = make(FeatureSpec(rot6d="rows", root=False))
    with pytest.raises(ValueError, match=r"loss\.path must be 0, because .* have no root"):
        MotionLosses(LossConfig(path=1.0), model, SKELETON)


FEET = ("hips", "left_foot", "right_foot", "head", "hand")


def standing(right=0.0):
    """Feet below the hips, the right one higher by ``right`` metres."""
    skeleton = replace(
        random_skeleton(5), names=FEET, parents=(-1, 0, 0, 0, 3), end_sites=(),
        offsets=(
            (0.0, 0.9, 0.0), (0.1, -0.9, 0.0), (-0.1, right - 0.9, 0.0), (0.0, 0.6, 0.0),
            (0.0, 0.3, 0.0),
        ),
    )  # fmt: skip
    turns = torch.linspace(0, 0.5, 6, dtype=torch.float64)
    rotations = torch.eye(3, dtype=torch.float64).expand(6, 5, 3, 3).clone()
    rotations[:, 0] = roma.euler_to_rotmat("Y", turns[:, None])
    path = torch.tensor([0.0, 0.9, 0.0]).double() + turns[:, None] * torch.tensor([1.0, 0, 0.4])
    clip = MotionClip(skeleton=skeleton, rotations=rotations, root_positions=path, fps=20.0)
    still = replace(clip, rotations=rotations[:1].expand(6, -1, -1, -1))
    return skeleton, clip, replace(still, root_positions=path[:1].expand(6, -1))


@pytest.mark.parametrize(("right", "feet"), [(0.0, (1, 2)), (0.2, (1,))])
@pytest.mark.parametrize("root", [True, False])
def test_feet_on_the_ground_move_as_the_original(root, right, feet):
    """A foot that is 20 cm higher than the other may move."""
    spec = FeatureSpec(rot6d="rows", root=root)
    model = make(spec)
    skeleton, output, target = standing(right)
    pair = from_clips(model, spec, output, target)
    losses = MotionLosses(LossConfig(features=0, position=1, foot_velocity=3), model, skeleton)
    term = losses(reconstruct(model, *pair))["foot_velocity"]
    places = (
        output.pose.positions if root else output.pose.positions - output.root_positions[:, None]
    )
    velocities = places[:, [1, 2]].diff(dim=0) * 20
    velocities[:, [foot - 1 for foot in (1, 2) if foot not in feet]] = 0
    torch.testing.assert_close(term, 3 * smooth(velocities).float(), rtol=1e-3, atol=1e-5)


def test_feet_must_have_names():
    model = make(FeatureSpec(rot6d="rows"))
    with pytest.raises(MotionError, match=r"set loss\.foot_velocity to 0"):
        MotionLosses(LossConfig(foot_velocity=1.0), model, SKELETON)


@pytest.mark.parametrize("channels", [263, 251])
def test_humanml3d_and_kit_are_smooth_too(channels):
    model = make(channels=channels)
    output, target = random_pair(model)
    losses = MotionLosses(
        LossConfig(features=0, acceleration=1, foot_velocity=1), model, skeleton_of(channels)
    )
    terms = losses(reconstruct(model, output, target))
    places = [recover_positions(x) for x in (output, target)]
    accelerations = [x.diff(n=2, dim=1) * 20**2 for x in places]
    torch.testing.assert_close(terms["acceleration"], smooth(accelerations[0] - accelerations[1]))
    feet = [x[:, :, list(find_feet(skeleton_of(channels).names))] for x in places]
    heights = feet[1][..., 1]
    low = heights < heights.amin(dim=2, keepdim=True) + 0.05
    steps = (low[:, 1:] & low[:, :-1])[..., None]
    speeds = (feet[0] - feet[1]).diff(dim=1) * 20 * steps
    torch.testing.assert_close(terms["foot_velocity"], smooth(speeds))


def test_positions_are_found_once_for_both_losses(monkeypatch):
    model = make(FeatureSpec(rot6d="rows"))
    losses = MotionLosses(LossConfig(acceleration=1.0), model, SKELETON)
    calls = []
    monkeypatch.setattr(
        "motion.train.movement.find_positions",
        lambda tree, vectors: calls.append(1) or find_positions(tree, vectors),
    )
    losses(reconstruct(model, *random_pair(model)))
    assert len(calls) == 2


def test_a_perfect_output_costs_nothing():
    model = make(FeatureSpec(rot6d="columns"))
    _, target = random_pair(model)
    terms = terms_of(model, target, target, position=1.0, velocity=1.0, acceleration=1.0)
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
        ({"path": -1.0}, "path must be at least 0"),
        ({"acceleration": -1.0}, "acceleration must be at least 0"),
        ({"foot_velocity": -0.1}, "foot_velocity must be at least 0"),
        ({"features": 0.0, "position": 0.0}, "features must be above 0 if"),
        ({"error": "huber"}, "error must be smooth_l1 or l1 or l2"),
    ],
)
def test_impossible_weights_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**changes)
