"""HumanML3D and KIT: folders of features, their means and deviations, and joints from them.

The features of J joints are 12 J - 1 numbers a frame (263 for HumanML3D's 22 joints, 251 for KIT's
21): half of the turn of the root about the vertical to the next frame, its step (x, z) there in the
axes of the heading, and its height; positions of the other joints in these axes; their rotations (6
numbers each); velocities of all joints; 4 contacts of the feet.

Source: the features of "Generating Diverse and Natural 3D Human Motions from Text" (Guo et al.).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from motion.arrays import read_array, write_array
from motion.bodies import HUMANML3D, KIT
from motion.clip import ClipError
from motion.skeleton import Skeleton
from motion.statistics import FeatureStatistics

SKELETONS = {skeleton.joints: skeleton for skeleton in (HUMANML3D, KIT)}


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
    """Joints (..., T, J, 3) in the world from features (..., T, D), not normalised.

    In metres; KIT's features have millimetres. The person starts at the origin, facing +z.
    """
    joints = joints_of(features.shape[-1])
    turns, steps, height = features[..., 0], features[..., 1:3], features[..., 3]
    # Both are towards the next frame, so that the first frame is where the person starts.
    angles = turns.cumsum(dim=-1) - turns
    local = features[..., 4 : 4 + 3 * (joints - 1)].unflatten(-1, (joints - 1, 3))
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


@dataclass(frozen=True, kw_only=True)
class FeatureFolder:
    """Feature files of HumanML3D or KIT.

    Attributes:
        files: .npy files of (T, D), sorted.
        statistics: from Mean.npy and Std.npy beside them, or beside their folder.
    """

    files: tuple[Path, ...]
    statistics: FeatureStatistics


def read_folder(path: str | os.PathLike[str]) -> FeatureFolder:
    """Find the features of a folder, which is the data set's or its ``new_joint_vecs``.

    Raises:
        ClipError: there are no features, no Mean.npy or no Std.npy, or these do not fit.
    """
    path = Path(path)
    inner = path / "new_joint_vecs"
    files = sorted((inner if inner.is_dir() else path).glob("*.npy"))
    files = [file for file in files if file.name not in ("Mean.npy", "Std.npy")]
    if not files:
        raise ClipError(f"{path} has no .npy files, nor has {inner}; name the folder of the data")
    arrays = []
    for name in ("Mean.npy", "Std.npy"):
        places = [path / name, path.parent / name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise ClipError(f"{places[0]} does not exist; copy {name} of the data set there")
        arrays.append(read_array(found, ndim=1))
    try:
        joints_of(len(arrays[0]))
        statistics = FeatureStatistics(*arrays)
    except ValueError as error:
        raise ClipError(f"{path}, Mean.npy and Std.npy: {error}") from None
    return FeatureFolder(files=tuple(files), statistics=statistics)


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
