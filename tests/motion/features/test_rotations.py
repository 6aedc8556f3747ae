"""Features of motion, and the way back."""

import dataclasses

import numpy as np
import pytest
import roma
import torch

from motion.config import FeatureSpec
from motion.errors import MotionError
from motion.features.rotations import extract_features, from_rot6d, restore_motion, to_rot6d
from motion.files.bvh import read_bvh, write_bvh
from motion.metrics import mpjpe, rotation_error
from motion.skeleton.clip import resample
from motion.skeleton.packaged import SMPLX
from motion.skeleton.sample import walk
from motion.skeleton.tree import end_positions
from tests.motion.helpers import RECORDINGS, largest_difference, random_clip, random_skeleton

FULL = FeatureSpec(rot6d="rows", positions=True, velocities=True, contacts=True)


def start_of(clip):
    return tuple(clip.root_positions[0, [0, 2]].tolist())


@pytest.mark.parametrize("lines", ["rows", "columns"])
@pytest.mark.parametrize("joints", [1, 2, 19, 24, 55, 78])
def test_files_to_features_and_back(tmp_path, joints, lines):
    skeleton = random_skeleton(joints, seed=joints)
    write_bvh(tmp_path / "a.bvh", random_clip(skeleton, frames=40))
    clip = read_bvh(tmp_path / "a.bvh", unit=skeleton.unit, up="y")
    spec = FeatureSpec(rot6d=lines, positions=joints % 2 == 0, velocities=joints % 3 == 0)
    features = extract_features(clip, spec)
    assert features.dtype == torch.float64
    assert features.shape == (40, spec.channels(joints))
    restored = restore_motion(features, spec, clip.skeleton, clip.fps, start=start_of(clip))
    write_bvh(tmp_path / "b.bvh", restored)
    again = read_bvh(tmp_path / "b.bvh", unit=skeleton.unit, up="y")
    height = max(clip.skeleton.span, 0.1)
    assert largest_difference(again.pose.positions, clip.pose.positions) < 1e-4 * height
    assert largest_difference(restored.pose.positions, clip.pose.positions) < 1e-11


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no shared recordings here")
@pytest.mark.parametrize("name", ["dab", "jesse_dance", "jumping_jacks", "wave_hello"])
def test_recordings_to_features_and_back(tmp_path, name):
    clip = read_bvh(RECORDINGS / f"{name}.bvh")
    spec = FeatureSpec(rot6d="columns")
    features = extract_features(clip, spec).float()
    restored = restore_motion(features, spec, clip.skeleton, clip.fps, start=start_of(clip))
    write_bvh(tmp_path / "b.bvh", restored)
    again = read_bvh(tmp_path / "b.bvh")
    assert largest_difference(again.pose.positions, clip.pose.positions) < 1e-4
    assert mpjpe(again.pose.positions, clip.pose.positions) < 0.01
    assert rotation_error(again.rotations, clip.rotations) < 1e-3


def test_channels_come_in_order():
    clip = walk(9)
    features = extract_features(clip, FULL)
    joints = SMPLX.joints
    widths = [6 * joints, 2, 1, 3 * joints, 3 * joints, 4]
    rot6d, velocity, height, positions, velocities, contacts = features.split(widths, dim=1)
    assert torch.equal(rot6d.view(9, joints, 2, 3), clip.rotations[:, :, :2])
    moved = clip.root_positions.diff(dim=0)[:, [0, 2]] * 30
    torch.testing.assert_close(velocity, torch.cat([torch.zeros_like(moved[:1]), moved]))
    assert torch.equal(height[:, 0], clip.root_positions[:, 1])
    placed = positions.view(9, joints, 3) + clip.root_positions[:, None] * torch.tensor([1.0, 0, 1])
    torch.testing.assert_close(placed, clip.pose.positions)
    steps = velocities.view(9, joints, 3)[1:] / 30
    torch.testing.assert_close(steps, clip.pose.positions.diff(dim=0))
    assert set(contacts.unique().tolist()) == {0.0, 1.0}


def test_the_seed_has_330_channels():
    spec = FeatureSpec(rot6d="rows", root=False)
    assert spec.channels(SMPLX.joints) == 330
    clip = walk(7)
    features = extract_features(clip, spec)
    assert features.shape == (7, 330)
    restored = restore_motion(features, spec, SMPLX, 30.0, start=(1.0, 2.0))
    assert largest_difference(restored.rotations, clip.rotations) < 1e-12
    assert restored.root_positions[:, [0, 2]].unique(dim=0).tolist() == [[1.0, 2.0]]
    assert 0.9 < restored.root_positions[0, 1] < 1.0
    placed = restore_motion(features, spec, SMPLX, 30.0, root_positions=clip.root_positions)
    assert mpjpe(placed.pose.positions, clip.pose.positions) < 1e-9


def test_where_the_motion_is_does_not_matter():
    clip = random_clip(random_skeleton(12))
    moved = dataclasses.replace(
        clip, root_positions=clip.root_positions + torch.tensor([5.0, 0.0, -7.0])
    )
    torch.testing.assert_close(extract_features(moved, FULL), extract_features(clip, FULL))


def test_velocities_are_per_second_at_any_rate():
    clip = random_clip(random_skeleton(3), frames=4, fps=10.0)
    spec = FeatureSpec(rot6d="rows")
    slow, fast = (extract_features(c, spec)[:, 18:20] for c in (clip, resample(clip, 40.0)))
    torch.testing.assert_close(fast[1:5], slow[1:2].expand(4, 2))


def test_a_long_walk_in_float32_does_not_drift():
    clip = random_clip(random_skeleton(2), frames=5000)
    spec = FeatureSpec(rot6d="rows")
    features = extract_features(clip, spec).float()
    restored = restore_motion(features, spec, clip.skeleton, clip.fps, start=start_of(clip))
    assert restored.rotations.dtype == torch.float32
    assert largest_difference(restored.root_positions, clip.root_positions) < 1e-3


def test_rows_and_columns_are_those_of_the_matrix():
    matrix = torch.arange(9.0).view(3, 3)
    assert to_rot6d(matrix, "rows").tolist() == [0, 1, 2, 3, 4, 5]
    assert to_rot6d(matrix, "columns").tolist() == [0, 3, 6, 1, 4, 7]


@pytest.mark.parametrize("lines", ["rows", "columns"])
def test_any_six_numbers_are_a_rotation(lines):
    rotations = roma.random_rotmat(20).double()
    assert largest_difference(from_rot6d(to_rot6d(rotations, lines), lines), rotations) < 1e-6
    noisy = from_rot6d(torch.randn(50, 6, dtype=torch.float64), lines)
    assert roma.is_rotation_matrix(noisy, epsilon=1e-9)
    assert from_rot6d(torch.zeros(6), lines).isfinite().all()


def test_contacts_of_a_walk():
    contacts = extract_features(walk(66), FULL)[:, -4:]
    left, right = contacts[:, [0, 2]].amax(dim=1), contacts[:, [1, 3]].amax(dim=1)
    assert 0.4 < left.mean() < 0.9 and 0.4 < right.mean() < 0.9
    assert torch.maximum(left, right).mean() > 0.85
    assert (left * right).mean() < 0.7


def test_contacts_are_where_the_next_step_is_short():
    clip = dataclasses.replace(walk(5), rotations=torch.eye(3).double().expand(5, 55, 3, 3))
    path = torch.tensor([0.0, 0.009, 0.018, 0.029, 0.040], dtype=torch.float64)
    positions = torch.stack([path, torch.ones(5).double(), torch.zeros(5).double()], dim=1)
    moving = dataclasses.replace(clip, root_positions=positions)
    assert extract_features(moving, FULL)[:, -1].tolist() == [1, 1, 0, 0, 0]


def test_bad_features_say_why():
    spec = FeatureSpec(rot6d="rows")
    with pytest.raises(MotionError, match=r"features are \(3, 330\); 55 joints need \(T, 333\)"):
        restore_motion(torch.zeros(3, 330), spec, SMPLX, 30.0)
    with pytest.raises(MotionError, match="at least one frame"):
        restore_motion(torch.zeros(0, 333), spec, SMPLX, 30.0)
    with pytest.raises(MotionError, match=r"contact_joints are .* the skeleton has 3 joints"):
        extract_features(random_clip(random_skeleton(3)), dataclasses.replace(spec, contacts=True))
    arms = dataclasses.replace(spec, contacts=True, contact_joints=(18, 20))
    message = r"are left_elbow, left_wrist here and no feet; set .* to \[10, 11\]"
    with pytest.raises(MotionError, match=message):
        extract_features(walk(4), arms)
    with pytest.raises(ValueError, match="rows or columns, not 'both'"):
        FeatureSpec(rot6d="both")
    with pytest.raises(ValueError, match="contact_threshold must be above 0"):
        FeatureSpec(rot6d="rows", contact_threshold=0.0)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no shared recordings here")
def test_beat2_has_rows():
    from motion.files.smplx import read_npz

    clip = read_npz(RECORDINGS / "beat2_2_scott_0_1_1.npz")
    mean = torch.from_numpy(np.load(RECORDINGS / "beat2_330_mean.npy"))
    errors = {
        lines: (extract_features(clip, FeatureSpec(rot6d=lines, root=False)).mean(dim=0) - mean)
        .abs()
        .mean()
        for lines in ("rows", "columns")
    }
    assert errors["rows"] < 0.05 < 0.2 < errors["columns"]


def turned_rest(clip, turn):
    """The same motion of a skeleton whose rest pose is turned by a matrix (3, 3)."""
    offsets = torch.tensor(clip.skeleton.offsets, dtype=torch.float64) @ turn.T
    ends = [
        dataclasses.replace(
            site, offset=tuple((turn @ torch.tensor(site.offset).double()).tolist())
        )
        for site in clip.skeleton.end_sites
    ]
    skeleton = dataclasses.replace(
        clip.skeleton, offsets=tuple(map(tuple, offsets.tolist())), end_sites=tuple(ends)
    )
    rotations = turn @ clip.rotations @ turn.T
    rotations[:, 0] = clip.rotations[:, 0] @ turn.T
    return dataclasses.replace(clip, skeleton=skeleton, rotations=rotations)


@pytest.mark.parametrize("axis", [None, [1, 0, 0], [0, 0, 1]], ids=str)
def test_feet_are_on_the_ground_without_a_root(axis):
    """However the rest pose lies."""
    clip, spec = walk(60), FeatureSpec(rot6d="rows", root=False)
    if axis is not None:
        turn = roma.rotvec_to_rotmat(torch.tensor(axis).double() * np.pi / 2)
        turned = turned_rest(clip, turn)
        assert largest_difference(turned.pose.positions, clip.pose.positions) < 1e-12
        clip = turned
    features = extract_features(clip, spec)
    restored = restore_motion(features, spec, clip.skeleton, clip.fps)
    pose = restored.pose
    points = torch.cat([pose.positions, end_positions(clip.skeleton, pose)], dim=1)
    assert points[..., 1].amin(dim=1).abs().max() < 0.05
    assert abs((restored.root_positions - clip.root_positions)[:, 1].mean()) < 0.03
