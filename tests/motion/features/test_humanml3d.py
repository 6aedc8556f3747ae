"""HumanML3D and KIT."""

import numpy as np
import pytest
import torch

from motion.errors import MotionError
from motion.features.feature_files import read_features
from motion.features.humanml3d import (
    find_features_folder,
    read_statistics,
    recover_positions,
    skeleton_of,
)
from motion.skeleton.packaged import HUMANML3D, KIT
from tests.motion.helpers import RECORDINGS, largest_difference


def features_of(positions: torch.Tensor, headings: torch.Tensor) -> torch.Tensor:
    """Features of joints (T, J, 3) whose root faces (sin, 0, cos) of the headings (T,)."""
    root = positions[:, 0]
    turn = torch.complex(torch.cos(headings), torch.sin(headings))  # z + ix
    plane = torch.complex(positions[..., 2], positions[..., 0])
    ground = torch.complex(root[:, 2], root[:, 0])
    local = (plane - ground[:, None]) / turn[:, None]
    steps = ground.diff() / turn[1:]
    features = torch.zeros(len(positions), 12 * positions.shape[1] - 1, dtype=positions.dtype)
    features[:-1, 0] = headings.diff() / -2
    features[:-1, 1], features[:-1, 2] = steps.imag, steps.real
    features[:, 3] = root[:, 1]
    others = torch.stack([local.imag, positions[..., 1], local.real], dim=-1)[:, 1:]
    features[:, 4 : 4 + others[0].numel()] = others.flatten(1)
    return features


@pytest.mark.parametrize("skeleton", [HUMANML3D, KIT])
def test_joints_come_back(skeleton):
    positions = torch.randn(20, skeleton.joints, 3, dtype=torch.float64).cumsum(dim=0)
    positions[..., [0, 2]] -= positions[0, 0, [0, 2]]
    headings = torch.randn(20, dtype=torch.float64).cumsum(dim=0)
    headings -= headings[0].clone()
    features = features_of(positions, headings)
    recovered = recover_positions(features)
    assert largest_difference(recovered, positions * skeleton.unit) < 1e-12
    batch = recover_positions(torch.stack([features, features]))
    assert torch.equal(batch[1], recovered)


def test_what_features_are_of():
    assert skeleton_of(263) is HUMANML3D and skeleton_of(251) is KIT
    with pytest.raises(MotionError, match="330 channels; HumanML3D's have 263"):
        recover_positions(torch.zeros(4, 330))


def make_folder(path, channels=263, inner="new_joint_vecs"):
    (path / inner).mkdir(parents=True, exist_ok=True)
    for name in ("b", "a"):
        np.save(path / inner / f"{name}.npy", np.zeros((5, channels)))
    np.save(path / "Mean.npy", np.full(channels, 2.0))
    np.save(path / "Std.npy", np.full(channels, 3.0))
    return path


def test_features_and_statistics_of_folders(tmp_path):
    inner = tmp_path / "new_joint_vecs"
    assert find_features_folder(make_folder(tmp_path)) == find_features_folder(inner) == inner
    for path in (tmp_path, inner):
        statistics = read_statistics(path)
        assert statistics.mean.tolist() == [2.0] * 263
        assert statistics.std.tolist() == [3.0] * 263
    flat = make_folder(tmp_path / "flat", channels=251, inner=".")
    assert find_features_folder(flat) == flat and len(read_statistics(flat).mean) == 251
    features = read_features(flat / "a.npy")
    assert features.shape == (5, 251) and features.dtype == torch.float32


def test_bad_statistics_say_why(tmp_path):
    inner = tmp_path / "data" / "new_joint_vecs"
    folder = make_folder(inner.parent)
    np.save(folder / "Std.npy", np.ones(251))
    with pytest.raises(MotionError, match=r"\(263,\) and \(251,\)"):
        read_statistics(folder)
    np.save(folder / "Mean.npy", np.ones(100))
    with pytest.raises(MotionError, match="100 channels"):
        read_statistics(folder)
    (folder / "Mean.npy").unlink()
    for path in (folder, inner):
        with pytest.raises(MotionError, match=r"Mean.npy does not exist"):
            read_statistics(path)
    (folder / "Std.npy").unlink()
    assert read_statistics(folder) is read_statistics(inner) is None


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros(263), "2 axes"),
        (np.zeros((0, 263)), "no frames"),
        (np.full((5, 263), np.nan), "not finite"),
        (np.full((5, 263), "x"), "no array of numbers"),
        (np.array([None]), "no complete .npy file"),
    ],
)
def test_bad_features_say_why(tmp_path, array, message):
    path = tmp_path / "bad.npy"
    np.save(path, array)
    with pytest.raises(MotionError, match=message) as caught:
        read_features(path)
    assert str(path) in str(caught.value)


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((5, 263)))
    whole = path.read_bytes()
    for size in (0, 20, len(whole) - 7):
        path.write_bytes(whole[:size])
        with pytest.raises(MotionError, match=r"no complete .npy file"):
            read_features(path)
    with pytest.raises(MotionError, match=r"none\.npy does not exist"):
        read_features(tmp_path / "none.npy")


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no shared recordings here")
def test_a_recording():
    features = read_features(RECORDINGS / "humanml3d_012314.npy")
    joints = torch.from_numpy(np.load(RECORDINGS / "humanml3d_012314_joints.npy"))
    assert largest_difference(recover_positions(features), joints) < 1e-6
