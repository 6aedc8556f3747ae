"""Where the root is, and the path that its turns and velocities add up to."""

import pytest
import torch

from motion import FeatureSpec
from motion.features.heading import find_headings, turn_vectors, wrap
from motion.features.paths import trace_path
from motion.features.rotations import extract_features
from tests.motion.helpers import random_clip, random_skeleton

CLIP = random_clip(random_skeleton(5), 9)
SPECS = [
    FeatureSpec(rot6d="rows"),
    FeatureSpec(rot6d="rows", heading="relative"),
    FeatureSpec(rot6d="columns", positions=True, contacts=True, contact_joints=(1, 2)),
    FeatureSpec(rot6d="rows", heading="relative", positions=True, velocities=True),
]


@pytest.mark.parametrize("spec", SPECS)
def test_the_path_of_features_is_the_path_of_the_clip(spec):
    features = extract_features(CLIP, spec)
    root = spec.find_root(features.shape[1])
    assert root.stop - root.start == spec.root_channels
    headings, path = trace_path(features[None, :, root], CLIP.fps)
    torch.testing.assert_close(features[:, root.stop - 1], CLIP.root_positions[:, 1])
    moved = CLIP.root_positions - CLIP.root_positions[0]
    moved[:, 1] = 0
    if spec.relative:
        found = find_headings(CLIP.rotations[:, 0])
        torch.testing.assert_close(wrap(headings[0] - (found - found[0])), torch.zeros(9).double())
        moved = turn_vectors(moved, -found[0])
    else:
        assert not headings.any()
    torch.testing.assert_close(path[0], moved)


def test_features_without_a_root_have_no_channels_of_one():
    root = FeatureSpec(rot6d="rows", root=False).find_root(30)
    assert root == slice(30, 30)
