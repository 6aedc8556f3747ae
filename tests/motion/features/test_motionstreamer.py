"""The features of MotionStreamer: there and back, and what each channel is."""

from dataclasses import replace

import pytest
import torch

from motion.errors import MotionError
from motion.features.heading import make_turns, turn_vectors
from motion.features.motionstreamer import (
    CHANGES,
    POSITIONS,
    ROTATIONS,
    STEP,
    TURN,
    extract_streamer_features,
    find_fronts,
    recover_streamer_positions,
    restore_streamer_clip,
)
from motion.features.rotations import to_rot6d
from motion.skeleton.clip import MotionClip, turn_world
from motion.skeleton.packaged import HUMANML3D
from motion.skeleton.sample import walk
from motion.skeleton.selection import select_joints
from tests.motion.helpers import largest_difference, random_clip


def turning_walk() -> MotionClip:
    """A walk of 22 joints that turns by more than a whole turn, and begins elsewhere."""
    clip = select_joints(walk(40)).clip
    angles = torch.linspace(1.0, 8.0, 40, dtype=torch.float64)
    rotations = clip.rotations.clone()
    rotations[:, 0] = make_turns(angles) @ rotations[:, 0]
    path = turn_vectors(clip.root_positions, angles) + torch.tensor([2.0, 0.5, -1.0]).double()
    return replace(clip, rotations=rotations, root_positions=path)


def place(clip: MotionClip) -> MotionClip:
    """The same motion on the floor, from the origin, and to +z."""
    clip = turn_world(clip, make_turns(-find_fronts(clip.rotations[0, 0])))
    start = clip.root_positions[0].clone()
    start[1] = clip.pose.positions[..., 1].min()
    return replace(clip, root_positions=clip.root_positions - start)


@pytest.mark.parametrize(
    "clip", [turning_walk(), random_clip(HUMANML3D, 25)], ids=["walk", "noise"]
)
def test_motion_comes_back(clip: MotionClip) -> None:
    features = extract_streamer_features(clip)
    assert features.shape == (len(clip), 272)
    placed, back = place(clip), restore_streamer_clip(features)
    assert largest_difference(back.rotations, placed.rotations) < 1e-9
    assert largest_difference(back.pose.positions, placed.pose.positions) < 1e-9
    assert largest_difference(recover_streamer_positions(features), placed.pose.positions) < 1e-9
    assert (
        largest_difference(torch.tensor(back.skeleton.offsets), torch.tensor(clip.skeleton.offsets))
        < 1e-9
    )
    assert largest_difference(extract_streamer_features(back), features) < 1e-9


def test_channels_are_what_they_are_called() -> None:
    clip = place(turning_walk())
    features, positions = extract_streamer_features(clip), clip.pose.positions
    headings = find_fronts(clip.rotations[:, 0])
    step = features[5, STEP]
    moved = turn_vectors(torch.stack([step[0], 0 * step[0], step[1]]), headings[4])
    expected = positions[5, 0] - positions[4, 0]
    assert largest_difference(moved[[0, 2]], expected[[0, 2]]) < 1e-12
    # The turn leads from the heading of this frame back to the heading of the frame before.
    turn = make_turns(headings[4] - headings[5])
    assert largest_difference(features[5, TURN], to_rot6d(turn, "rows")) < 1e-12
    local = features[:, POSITIONS].unflatten(1, (22, 3))
    assert local[:, 0, [0, 2]].abs().max() < 1e-12
    assert largest_difference(local[:, 0, 1], positions[:, 0, 1]) < 1e-12
    assert largest_difference(features[1:, CHANGES], local.flatten(1).diff(dim=0)) < 1e-12
    own = features[:, ROTATIONS].unflatten(1, (22, 6))[:, 1:]
    assert largest_difference(own, to_rot6d(clip.rotations[:, 1:], "rows")) < 1e-12
    still = torch.tensor([0, 0, 1, 0, 0, 0, 1, 0]).double()
    assert largest_difference(features[0, :8], still) < 1e-12
    assert features[0, CHANGES].abs().max() == 0


def test_batches_have_the_joints_of_their_clips() -> None:
    one, other = (extract_streamer_features(random_clip(HUMANML3D, 9)) * x for x in (1.0, 1.1))
    both = recover_streamer_positions(torch.stack([one, other]))
    assert torch.equal(both[1], recover_streamer_positions(other))


def test_other_features_and_skeletons_are_refused() -> None:
    with pytest.raises(MotionError, match="55 joints; the 22 joints of HumanML3D"):
        extract_streamer_features(walk(4))
    for shape in ((4, 263), (0, 272), (272,)):
        with pytest.raises(MotionError, match=r"\(T, 272\)"):
            restore_streamer_clip(torch.zeros(shape))
