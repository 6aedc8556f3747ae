"""Headings, and features that do not depend on where a person looks."""

import math
from dataclasses import replace

import pytest
import roma
import torch
from hypothesis import given
from hypothesis import strategies as st

from motion import FeatureSpec
from motion.features.heading import find_headings, make_turns, turn_roots, turn_vectors, wrap
from motion.features.rotations import extract_features, restore_motion, restore_onto
from motion.features.turning import turn_features
from motion.skeleton.clip import turn_world
from motion.skeleton.sample import walk
from tests.motion.helpers import largest_difference, random_clip, random_skeleton

ANGLES = st.floats(-math.pi, math.pi)
CLIP = random_clip(random_skeleton(6), 9)
SPECS = [
    FeatureSpec(rot6d="rows"),
    FeatureSpec(rot6d="columns", positions=True, velocities=True),
    FeatureSpec(rot6d="rows", root=False),
    FeatureSpec(
        rot6d="rows", velocities=True, contacts=True, contact_joints=(1, 2), contact_threshold=0.1
    ),
]


def relative(spec):
    return replace(spec, heading="relative")


def turned(clip, angle):
    return turn_world(clip, make_turns(torch.tensor(angle, dtype=torch.float64)))


@given(angle=ANGLES)
def test_a_turn_changes_the_heading_by_its_angle(angle):
    rotations = roma.random_rotmat(20, dtype=torch.float64)
    turns = make_turns(torch.tensor(angle, dtype=torch.float64)) @ rotations
    change = wrap(find_headings(turns) - find_headings(rotations) - angle)
    assert wrap(change + 1).sub(1).abs().max() < 1e-6


def test_turns_are_from_z_towards_x():
    quarter = torch.tensor([math.pi / 2], dtype=torch.float64)
    ahead = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(turn_vectors(ahead, quarter), expected)
    torch.testing.assert_close((make_turns(quarter) @ ahead[..., None])[..., 0], expected)
    assert find_headings(make_turns(quarter)).item() == pytest.approx(math.pi / 2)
    # A person who bows has no other heading.
    bow = roma.euler_to_rotmat("X", torch.tensor([0.7]))
    assert find_headings(bow).item() == pytest.approx(0.0)


def test_only_the_root_turns():
    angles = torch.linspace(0, 1, 9, dtype=torch.float64)
    rotations = turn_roots(CLIP.rotations, angles)
    assert torch.equal(rotations[:, 1:], CLIP.rotations[:, 1:])
    torch.testing.assert_close(rotations[:, 0], make_turns(angles) @ CLIP.rotations[:, 0])


@pytest.mark.parametrize("spec", SPECS)
@given(angle=ANGLES)
def test_turning_a_clip_changes_no_relative_feature(spec, angle):
    features = extract_features(CLIP, relative(spec))
    found = extract_features(turned(CLIP, angle), relative(spec))
    torch.testing.assert_close(found, features, rtol=0, atol=1e-8)
    assert features.shape[1] == relative(spec).channels(6) == spec.channels(6) + spec.root


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("heading", ["world", "relative"])
def test_clips_come_back_from_their_features(spec, heading):
    spec = replace(spec, heading=heading)
    clip = turned(CLIP, 2.0)
    found = restore_onto(clip, extract_features(clip, spec), spec)
    assert largest_difference(found.rotations, clip.rotations) < 1e-12
    assert largest_difference(found.root_positions, clip.root_positions) < 1e-12


def test_turned_clips_differ_in_their_start_alone():
    spec = relative(SPECS[0])
    clip, other = walk(40), turned(walk(40), 2.5)
    features = extract_features(clip, spec)
    start = find_headings(other.rotations[0, 0]).item()
    found = restore_motion(
        features, spec, clip.skeleton, 30.0, start=other.start, start_heading=start
    )
    assert largest_difference(found.pose.positions, other.pose.positions) < 1e-9


def test_rates_are_in_radians_per_second_and_steps_in_the_axes_of_the_person():
    """Somebody who walks 1 m/s in a circle, always ahead."""
    spec, fps = relative(SPECS[0]), 50.0
    headings = torch.arange(100, dtype=torch.float64) * 0.4 / fps
    steps = turn_vectors(torch.tensor([[0.0, 0.0, 1 / fps]]).double().expand(100, 3), headings)
    still = torch.eye(3, dtype=torch.float64).expand(100, 6, 3, 3)
    clip = replace(
        random_clip(random_skeleton(6), 100, fps),
        rotations=turn_roots(still, headings),
        root_positions=steps.cumsum(0) + torch.tensor([0, 0.9, 0]),
    )
    root = extract_features(clip, spec)[1:, 36:40]
    expected = torch.tensor([0.4, 0.0, 1.0, 0.9]).double().expand(99, 4)
    torch.testing.assert_close(root, expected)


def test_a_heading_that_a_network_adds_is_left_out():
    """The heading of the result is the sum of the turns, or the one of the file."""
    spec = relative(SPECS[2])
    features = extract_features(CLIP, spec)
    features = features + 0.1 * torch.randn_like(features)
    found = restore_onto(CLIP, features, spec)
    difference = wrap(find_headings(found.rotations[:, 0]) - find_headings(CLIP.rotations[:, 0]))
    assert difference.abs().max() < 1e-9
    again = restore_onto(found, features, spec)
    assert largest_difference(again.rotations, found.rotations) < 1e-9


@pytest.mark.parametrize("spec", SPECS)
@given(angle=ANGLES)
def test_turned_features_are_the_features_of_the_turned_clip(spec, angle):
    found = turn_features(spec, 6, extract_features(CLIP, spec), angle)
    expected = extract_features(turned(CLIP, angle), spec)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    same = extract_features(CLIP, relative(spec))
    assert turn_features(relative(spec), 6, same, angle) is same


def test_unknown_headings_are_refused():
    with pytest.raises(ValueError, match="heading must be world or relative"):
        FeatureSpec(rot6d="rows", heading="north")
