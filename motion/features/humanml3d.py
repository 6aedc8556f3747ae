"""HumanML3D and KIT: features, their means and deviations, and joints from them.

The features of J joints are 12 J - 1 numbers a frame (263 for HumanML3D's 22 joints, 251 for KIT's
21): half of the turn of the root about the vertical to the next frame, its step (x, z) there in the
axes of the heading, and its height; positions of the other joints in these axes; their rotations (6
numbers each); velocities of all joints; 4 contacts of the feet.

Source: the features of "Generating Diverse and Natural 3D Human Motions from Text" (Guo et al.).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from motion.features.statistics import FeatureStatistics
from motion.files.arrays import read_array, write_array
from motion.skeleton.clip import ClipError
from motion.skeleton.named import HUMANML3D, KIT
from motion.skeleton.tree import Skeleton
from wanvae.errors import UserError

SKELETONS = {skeleton.joints: skeleton for skeleton in (HUMANML3D, KIT)}
# The first and the last of the channels.
ROOT_CHANNELS, CONTACT_CHANNELS = 4, 4
# Files beside the features, of the mean and the standard deviation of each channel.
STATISTICS = ("Mean.npy", "Std.npy")


def joints_of(channels: int) -> int:
    """J for a number of channels; ClipError if they are no such features."""
    for joints in SKELETONS:
        if channels == 12 * joints - 1:
            return joints
    raise ClipError(f"the features have {channels} channels; HumanML3D's have 263 and KIT's 251")


def skeleton_of(channels: int) -> Skeleton:
    """The skeleton that features of so many channels are of."""
    return SKELETONS[joints_of(channels)]


def recover_positions(features: Tensor) -> Tensor:
    """Joints (..., T, J, 3) in the world from features (..., T, D), not normalized.

    In metres; KIT's features have millimetres. The person starts at the origin, facing +z.
    """
    joints = joints_of(features.shape[-1])
    turns, steps, height = features[..., 0], features[..., 1:3], features[..., 3]
    # Both are towards the next frame, so that the first frame is where the person starts.
    angles = turns.cumsum(dim=-1) - turns
    local = features[..., position_channels(features.shape[-1])].unflatten(-1, (joints - 1, 3))
    local = rotate_back(local, angles[..., None])
    steps = torch.stack([steps[..., 0], torch.zeros_like(height), steps[..., 1]], dim=-1)
    # A step is in the axes of the frame it leads to.
    steps = torch.cat([torch.zeros_like(steps[..., :1, :]), steps[..., :-1, :]], dim=-2)
    ground = rotate_back(steps, angles).cumsum(dim=-2)
    root = torch.stack([ground[..., 0], height, ground[..., 2]], dim=-1)
    others = local + ground[..., None, :]
    return torch.cat([root[..., None, :], others], dim=-2) * SKELETONS[joints].unit


def rotate_back(vectors: Tensor, angles: Tensor) -> Tensor:
    """Vectors (..., 3) from the axes of a heading to the world's, for halves of its angle (...)."""
    cosine, sine = torch.cos(2 * angles), torch.sin(2 * angles)
    x, y, z = vectors.unbind(dim=-1)
    return torch.stack([cosine * x - sine * z, y, sine * x + cosine * z], dim=-1)


def position_channels(channels: int) -> slice:
    """Those of so many channels that are positions of the joints but the root."""
    return slice(ROOT_CHANNELS, ROOT_CHANNELS + 3 * (joints_of(channels) - 1))


def features_folder(path: Path) -> Path:
    """Where the features of a data set are: its ``new_joint_vecs``, or the folder itself."""
    inner = path / "new_joint_vecs"
    return inner if inner.is_dir() else path


def read_statistics(folder: Path) -> FeatureStatistics | None:
    """Those in Mean.npy and Std.npy of a folder, or of the one that it is in; None without them.

    Raises:
        ClipError: there is only one of them, or they are not of such features.
    """
    for place in (folder, folder.parent):
        mean, std = (place / name for name in STATISTICS)
        if mean.is_file() or std.is_file():
            break
    else:
        return None
    arrays = read_array(mean, ndim=1), read_array(std, ndim=1)
    try:
        joints_of(len(arrays[0]))
        return FeatureStatistics(*arrays)
    except UserError as error:
        raise ClipError(f"{mean} and {std}: {error}") from None


def biased(statistics: FeatureStatistics, bias: float) -> FeatureStatistics:
    """Statistics by which the root and the contacts count ``bias`` times as much as before."""
    std = statistics.std.clone()
    std[:ROOT_CHANNELS] /= bias
    std[-CONTACT_CHANNELS:] /= bias
    return FeatureStatistics(statistics.mean, std)


def read_features(path: str | os.PathLike[str]) -> Tensor:
    """Features (T, D) of a .npy file, in float32.

    Raises:
        ClipError: there is no such file, or it holds no such features.
    """
    features = read_array(Path(path), ndim=2)
    try:
        joints_of(features.shape[1])
    except ClipError as error:
        raise ClipError(f"{path}: {error}") from None
    if not len(features):
        raise ClipError(f"{path} has no frames; get it again")
    return features


def write_features(path: str | os.PathLike[str], features: Tensor) -> None:
    """Write features (T, D) to a .npy file, complete or not at all.

    Raises:
        ClipError: the path ends otherwise.
        CheckpointError: it cannot be written.
    """
    if Path(path).suffix != ".npy":
        raise ClipError(f"{path} must end in .npy, for features of HumanML3D or KIT")
    write_array(path, features)
