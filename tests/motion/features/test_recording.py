"""Motion files as a model sees them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from motion.config import FeatureSpec, RVQVAEConfig
from motion.errors import MotionError
from motion.features.humanml3d import recover_positions
from motion.features.recording import find_files, read_recording
from motion.files.formats import read_motion, write_motion
from motion.skeleton.clip import resample
from motion.skeleton.packaged import HUMANML3D, KIT
from motion.skeleton.sample import walk
from tests.motion.helpers import largest_difference, random_clip, random_skeleton

JOINTS = 6
SPEC = FeatureSpec(rot6d="columns")


def config_of(spec=SPEC, joints=JOINTS, fps=30.0):
    return RVQVAEConfig(channels=spec.channels(joints), features=spec, fps=fps)


@pytest.fixture
def bvh(tmp_path):
    write_motion(tmp_path / "a.bvh", random_clip(random_skeleton(JOINTS), 20))
    return tmp_path / "a.bvh"


@pytest.fixture
def npy(tmp_path):
    features = np.random.default_rng(0).normal(size=(9, 263)).astype(np.float32)
    np.save(tmp_path / "a.npy", features)
    return tmp_path / "a.npy"


def test_files_are_found_by_the_kind_of_model(tmp_path):
    for name in ("b.bvh", "in/a.NPZ", "in/c.npy", "Mean.npy", "in/Std.npy", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(config):
        return [
            path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, config).paths
        ]

    assert names(config_of()) == ["b.bvh", "in/a.NPZ"]
    assert names(RVQVAEConfig()) == ["in/c.npy"]
    assert find_files(tmp_path / "d.txt", config_of()).paths == [tmp_path / "d.txt"]
    (tmp_path / "new_joint_vecs").mkdir()
    (tmp_path / "new_joint_vecs" / "e.npy").touch()
    assert names(RVQVAEConfig()) == ["new_joint_vecs/e.npy"]


def test_where_there_are_no_files_it_is_said(tmp_path):
    with pytest.raises(MotionError, match=r"none does not exist; check the path"):
        find_files(tmp_path / "none", config_of())
    with pytest.raises(MotionError, match=r"has no .bvh or .npz or .pkl files"):
        find_files(tmp_path, config_of())
    with pytest.raises(MotionError, match=r"has no .npy files"):
        find_files(tmp_path, RVQVAEConfig())


@pytest.mark.parametrize("root", [True, False])
def test_joints_come_back_from_their_features(bvh, root):
    """With the root's path from the features or, where these have none, from the recording."""
    recording = read_recording(bvh, config_of(FeatureSpec(rot6d="rows", root=root)))
    assert recording.features.dtype == torch.float32 and len(recording) == 20
    found, expected = recording.joints_of(recording.features), recording.joints
    assert torch.equal(expected.positions, read_motion(bvh).pose.positions)
    assert largest_difference(found.positions, expected.positions) < 1e-4
    assert largest_difference(found.rotations, expected.rotations) < 1e-5


def test_part_of_a_recording_stays_where_it_was(bvh):
    recording = read_recording(bvh, config_of())
    part = recording[5:12]
    assert torch.equal(part.features, recording.features[5:12])
    assert torch.equal(part.joints.positions, recording.joints.positions[5:12])
    restored = part.joints_of(part.features)
    assert largest_difference(restored.positions, part.joints.positions) < 1e-4


def test_clips_are_brought_to_the_rate_of_the_model(bvh):
    recording = read_recording(bvh, config_of(fps=15.0))
    expected = resample(read_motion(bvh), 15.0)
    assert recording.clip.fps == 15.0 and len(recording) == len(expected) == 10
    assert torch.equal(recording.joints.positions, expected.pose.positions)


@pytest.mark.parametrize("suffix", [".bvh", ".npz"])
def test_motion_is_written_as_files_of_its_kind(tmp_path, suffix):
    """Through features and back, with what the file says beside them."""
    clip = replace(walk(12), betas=(0.5, -1.0), gender="female")
    write_motion(tmp_path / f"in{suffix}", clip)
    recording = read_recording(tmp_path / f"in{suffix}", config_of(joints=55))
    recording.write(tmp_path / f"out{suffix}", recording.features)
    one, other = (read_motion(tmp_path / f"{name}{suffix}") for name in ("in", "out"))
    assert largest_difference(one.pose.positions, other.pose.positions) < 1e-4
    assert (one.fps, one.betas, one.gender) == (other.fps, other.betas, other.gender)


@pytest.mark.parametrize("skeleton", [HUMANML3D, KIT])
def test_humanml3d_and_kit_are_taken_as_they_are(tmp_path, skeleton):
    channels = 12 * skeleton.joints - 1
    features = np.random.default_rng(0).normal(size=(9, channels)).astype(np.float32)
    np.save(tmp_path / "a.npy", features)
    recording = read_recording(tmp_path / "a.npy", RVQVAEConfig(channels=channels))
    assert recording.skeleton is skeleton and recording.clip is None
    assert torch.equal(recording.features, torch.from_numpy(features))
    positions, rotations = recording.joints
    assert torch.equal(positions, recover_positions(recording.features))
    assert rotations.shape == (9, skeleton.joints - 1, 3, 3)
    # The first rotation follows from the six numbers after the positions.
    first = features[:, 4 + 3 * (skeleton.joints - 1) :][:, :3]
    directions = torch.nn.functional.normalize(torch.from_numpy(first), dim=1)
    torch.testing.assert_close(rotations[:, 0, :, 0], directions)
    recording[2:].write(tmp_path / "b.npy", recording.features[2:])
    assert np.array_equal(np.load(tmp_path / "b.npy"), features[2:])
    # Noise has no stiff bones, but it is a motion of these joints.
    clip = recording.restore(recording.features)
    assert clip.skeleton.names == skeleton.names and clip.fps == recording.config.fps


def test_files_of_another_kind_or_size_are_refused(bvh, npy):
    message = r"a\.npy must end in \.bvh or \.npz or \.pkl for this model; convert writes \.npy"
    with pytest.raises(MotionError, match=message):
        read_recording(npy, config_of())
    with pytest.raises(MotionError, match=r"a\.bvh must end in \.npy"):
        read_recording(bvh, RVQVAEConfig())
    with pytest.raises(MotionError, match=r"a\.bvh has 39 channels of 6 joints, .* model has 45"):
        read_recording(bvh, config_of(joints=7))
    with pytest.raises(MotionError, match=r"a\.npy has 263 channels, but the model has 251"):
        read_recording(npy, RVQVAEConfig(channels=251))
    with pytest.raises(MotionError, match=r"has 263 channels, but the model has 330"):
        read_recording(npy, RVQVAEConfig(channels=330))
