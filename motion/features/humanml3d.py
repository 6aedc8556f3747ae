"""Features of HumanML3D and KIT: reading them, their statistics, and the positions of joints.

The features of J joints are 12 J - 1 numbers a frame: 263 for the 22 joints of HumanML3D, 251 for
the 21 joints of KIT. They are, in this order: half of the turn of the root about the vertical to
the next frame; the step (x, z) of the root to the next frame, in the axes of the heading; the
height of the root; positions of the other joints in the axes of the heading; rotations of the other
joints (6 numbers each); velocities of all joints; 4 contacts of the feet.

Source: the features of "Generating Diverse and Natural 3D Human Motions from Text" (Guo et al.).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from motion.errors import MotionError
from motion.features.statistics import FeatureStatistics
from motion.files.arrays import read_array, write_array
from motion.skeleton.packaged import HUMANML3D, KIT
from motion.skeleton.tree import Skeleton
from wanvae.errors import UserError

SKELETONS = {skeleton.joints: skeleton for skeleton in (HUMANML3D, KIT)}
# The number of channels of the root, which come first, and of the contacts, which come last.
ROOT_CHANNELS, CONTACT_CHANNELS = 4, 4
# Files beside the features, with the mean and the standard deviation of each channel.
STATISTICS = ("Mean.npy", "Std.npy")
# Files beside the features, with the names of the recordings of a part of the data set.
Split: TypeAlias = Literal["train.txt", "val.txt"]


def count_joints(channels: int) -> int:
    """Returns J for a number of channels; MotionError if no such features have that number."""
    for joints in SKELETONS:
        if channels == 12 * joints - 1:
            return joints
    raise MotionError(f"the features have {channels} channels; HumanML3D's have 263 and KIT's 251")


def skeleton_of(channels: int) -> Skeleton:
    """Returns the skeleton of features with so many channels."""
    return SKELETONS[count_joints(channels)]


def recover_positions(features: Tensor) -> Tensor:
    """Returns positions (..., T, J, 3) of joints, in metres in the world.

    The person starts at the origin, facing +z.

    Args:
        features: (..., T, D), not normalized; in metres for HumanML3D, in millimetres for KIT.
    """
    joints = count_joints(features.shape[-1])
    turns, steps, height = features[..., 0], features[..., 1:3], features[..., 3]
    # Turns and steps lead to the next frame, so the first frame is where the person starts.
    angles = turns.cumsum(dim=-1) - turns
    local = features[..., position_channels(features.shape[-1])].unflatten(-1, (joints - 1, 3))
    local = rotate_back(local, angles[..., None])
    steps = torch.stack([steps[..., 0], torch.zeros_like(height), steps[..., 1]], dim=-1)
    # A step is in the axes of the frame that it leads to.
    steps = torch.cat([torch.zeros_like(steps[..., :1, :]), steps[..., :-1, :]], dim=-2)
    ground = rotate_back(steps, angles).cumsum(dim=-2)
    root = torch.stack([ground[..., 0], height, ground[..., 2]], dim=-1)
    others = local + ground[..., None, :]
    return torch.cat([root[..., None, :], others], dim=-2) * SKELETONS[joints].unit


def rotate_back(vectors: Tensor, angles: Tensor) -> Tensor:
    """Turns vectors (..., 3) from the axes of a heading to the axes of the world.

    Args:
        angles: (...), half of the angle of the heading, in radians.
    """
    cosine, sine = torch.cos(2 * angles), torch.sin(2 * angles)
    x, y, z = vectors.unbind(dim=-1)
    return torch.stack([cosine * x - sine * z, y, sine * x + cosine * z], dim=-1)


def position_channels(channels: int) -> slice:
    """Returns the channels with the positions of all joints except the root."""
    return slice(ROOT_CHANNELS, ROOT_CHANNELS + 3 * (count_joints(channels) - 1))


def rotation_channels(channels: int) -> slice:
    """Returns the channels with the rotations of all joints except the root, 6 each."""
    start = position_channels(channels).stop
    return slice(start, start + 6 * (count_joints(channels) - 1))


def find_features_folder(path: Path) -> Path:
    """Returns the folder of the features of a data set: ``new_joint_vecs`` in it, or itself."""
    inner = path / "new_joint_vecs"
    return inner if inner.is_dir() else path


def read_statistics(folder: Path) -> FeatureStatistics | None:
    """Reads Mean.npy and Std.npy of a folder, or of its parent folder; None without them.

    Raises:
        MotionError: one of the files is missing, or they are not statistics of such features.
    """
    for place in (folder, folder.parent):
        mean, std = (place / name for name in STATISTICS)
        if mean.is_file() or std.is_file():
            break
    else:
        return None
    arrays = read_array(mean, ndim=1), read_array(std, ndim=1)
    try:
        count_joints(len(arrays[0]))
        return FeatureStatistics(*arrays)
    except UserError as error:
        raise MotionError(f"{mean} and {std}: {error}") from None


def read_split(folder: Path, name: Split) -> frozenset[str] | None:
    """Reads the names in train.txt or val.txt of a folder, or of its parent folder.

    Returns:
        The names of the files of this part, without suffix; None if there is no such list.

    Raises:
        MotionError: the list cannot be read, or has no names.
    """
    path = next((p for p in (folder / name, folder.parent / name) if p.is_file()), None)
    return None if path is None else read_names(path)


def read_names(path: Path) -> frozenset[str]:
    """Reads a list of names of motion files without suffix, like test.txt of HumanML3D.

    Raises:
        MotionError: the list cannot be read, or has no names.
    """
    try:
        names = frozenset(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise MotionError(f"{path} cannot be read as a list of names: {error}") from error
    if not names:
        raise MotionError(f"{path} has no names; get it again, or delete it")
    return names


def apply_bias(statistics: FeatureStatistics, bias: float) -> FeatureStatistics:
    """Returns statistics with which the root and the contacts count ``bias`` times as much."""
    std = statistics.std.clone()
    std[:ROOT_CHANNELS] /= bias
    std[-CONTACT_CHANNELS:] /= bias
    return FeatureStatistics(statistics.mean, std)


def read_features(path: str | os.PathLike[str]) -> Tensor:
    """Reads the features (T, D) of a .npy file, as float32.

    Raises:
        MotionError: the file does not exist, or does not hold such features.
    """
    features = read_array(Path(path), ndim=2)
    try:
        count_joints(features.shape[1])
    except MotionError as error:
        raise MotionError(f"{path}: {error}") from None
    if not len(features):
        raise MotionError(f"{path} has no frames; get it again")
    return features


def write_features(path: str | os.PathLike[str], features: Tensor) -> None:
    """Writes features (T, D) to a .npy file. If writing fails, no incomplete file is left.

    Raises:
        MotionError: the file has another suffix.
        FileError: the file cannot be written.
    """
    if Path(path).suffix != ".npy":
        raise MotionError(f"{path} must end in .npy, for features of HumanML3D or KIT")
    write_array(path, features)
