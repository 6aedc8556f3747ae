"""Motion files as a model sees them, and what it gives as motion again.

A model is of one of two kinds of features. Those of rotations are made of any BVH file or SMPL-X
npz and lead back to one, through rotations. Those of HumanML3D and KIT come as they are in .npy
files, and lead back to joint positions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from torch import Tensor
from tqdm import tqdm

from motion.config import RVQVAEConfig
from motion.errors import MotionError
from motion.features import humanml3d
from motion.features.rotations import extract_features, from_rot6d, restore_onto
from motion.files.formats import READERS, read_motion, write_motion
from motion.skeleton.clip import MotionClip, resample
from motion.skeleton.tree import Skeleton

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


class Joints(NamedTuple):
    """How joints move.

    Attributes:
        positions: ``(T, J, 3)`` in the world, metres.
        rotations: ``(T, J, 3, 3)``, each from the axes of a joint to those of its parent; of
            HumanML3D and KIT those of all joints but the root, ``(T, J - 1, 3, 3)``.
    """

    positions: Tensor
    rotations: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A piece of motion as features of a model.

    Attributes:
        config: of the model.
        features: ``(T, D)``, float32, in their own units.
        skeleton: whose joints move; of HumanML3D and KIT our own, for what bones there are.
        clip: the motion itself, at the frame rate of the model; None of HumanML3D's and KIT's.
        file_fps: frames per second of the file it was read from; None if they are not known.
    """

    config: RVQVAEConfig
    features: Tensor
    skeleton: Skeleton
    clip: MotionClip | None
    file_fps: float | None = None

    def __len__(self) -> int:
        """T, the number of frames."""
        return len(self.features)

    @property
    def joints(self) -> Joints:
        """The joints as they were recorded."""
        return self.joints_of(self.features) if self.clip is None else joints_of_clip(self.clip)

    def joints_of(self, features: Tensor) -> Joints:
        """The joints by ``features`` ``(T, D)``."""
        if self.clip is None:
            return joints_of_humanml3d(features)
        return joints_of_clip(self.restored(features))

    def restored(self, features: Tensor) -> MotionClip:
        """The clip of ``features`` ``(T, D)``, of the skeleton and at the place of this recording.

        Features without a root take its path from the recording.

        Raises:
            MotionError: they are HumanML3D's or KIT's, which have no clip.
        """
        clip, spec = self.clip, self.config.features
        if clip is None or spec is None:
            raise MotionError("features of HumanML3D and KIT have no clip; write them as .npy")
        return restore_onto(clip, features, spec)

    def write(self, path: str | os.PathLike[str], features: Tensor) -> None:
        """Write ``features`` ``(T, D)`` as motion: .bvh or .npz; .npy of HumanML3D's and KIT's.

        Raises:
            MotionError: the suffix is another, or the kind of file cannot hold the motion.
            CheckpointError: it cannot be written.
        """
        if self.clip is None:
            humanml3d.write_features(path, features)
        else:
            write_motion(path, self.restored(features))

    def __getitem__(self, frames: slice) -> Recording:
        """Some of the frames; the features are those they have in the whole."""
        clip = None if self.clip is None else self.clip[frames]
        return replace(self, features=self.features[frames], clip=clip)


def suffixes_of(config: RVQVAEConfig) -> tuple[str, ...]:
    """How the motion files end that a model of ``config`` reads and writes."""
    return (".npy",) if config.features is None else tuple(READERS)


def find_files(path: str | os.PathLike[str], config: RVQVAEConfig) -> list[Path]:
    """The motion files of a folder, with its subfolders, sorted; of a file, itself.

    Of a data set like HumanML3D's those of its features, which are in one folder among others.

    Raises:
        MotionError: there is no such file or folder, or the folder has none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MotionError(f"{path} does not exist; check the path")
    suffixes = suffixes_of(config)
    folder = humanml3d.features_folder(path) if config.features is None else path
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in suffixes
        and file.name not in humanml3d.STATISTICS
        and file.is_file()
    )
    if not files:
        raise MotionError(
            f"{path} has no {' or '.join(suffixes)} files; name the folder of the data"
        )
    return files


def share_files(files: Sequence[T], processes: PartialState, *, progress: bool) -> Iterator[T]:
    """Yields the files of this process: every n-th file if the run has n processes.

    Args:
        progress: show a progress bar, in the first process.
    """
    share = files[processes.process_index :: processes.num_processes]
    shown = progress and processes.is_main_process
    with tqdm(share, unit="file", disable=not shown) as bar:
        yield from bar


def read_recording(path: str | os.PathLike[str], config: RVQVAEConfig) -> Recording:
    """Read a motion file as features of a model; clips are brought to its frame rate.

    Raises:
        MotionError: it cannot be read, is of another kind, or its skeleton has another number of
            joints than the model.
    """
    path = Path(path)
    spec, channels = config.features, config.channels
    suffixes = suffixes_of(config)
    if path.suffix.lower() not in suffixes:
        raise MotionError(f"{path} must end in {' or '.join(suffixes)} for this model")
    if spec is None:
        skeleton = humanml3d.skeleton_of(channels)
        features = humanml3d.read_features(path)
        check_channels(path, features.shape[1], channels, "")
        return Recording(config=config, features=features, skeleton=skeleton, clip=None)
    clip = read_motion(path)
    joints = clip.skeleton.joints
    check_channels(path, spec.channels(joints), channels, f" of {joints} joints")
    file_fps = clip.fps
    clip = resample(clip, config.fps) if file_fps != config.fps else clip
    return Recording(
        config=config,
        features=extract_features(clip, spec).float(),
        skeleton=clip.skeleton,
        clip=clip,
        file_fps=file_fps,
    )


def check_channels(path: Path, found: int, channels: int, joints: str) -> None:
    """Raise MotionError if a file's features have not the model's number of channels."""
    if found != channels:
        raise MotionError(
            f"{path} has {found} channels{joints}, but the model has {channels}: it is of another "
            "skeleton or other features"
        )


def joints_of_clip(clip: MotionClip) -> Joints:
    return Joints(clip.pose.positions, clip.rotations)


def joints_of_humanml3d(features: Tensor) -> Joints:
    positions = humanml3d.recover_positions(features)
    bones = positions.shape[1] - 1
    rotations = features[:, 4 + 3 * bones : 4 + 9 * bones].unflatten(1, (bones, 6))
    return Joints(positions, from_rot6d(rotations, "columns"))
