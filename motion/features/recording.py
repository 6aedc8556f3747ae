"""Recordings: motion files as features of a model, and features as motion files.

There are two kinds of features. Features with rotations are computed from a BVH or SMPL-X file, and
can be written as such a file again. Features of HumanML3D and KIT are read from .npy files, and can
be turned into positions of joints.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from motion.config import RVQVAEConfig
from motion.errors import MotionError
from motion.features import humanml3d
from motion.features.actors import match_file
from motion.features.rotations import extract_features, from_rot6d, restore_onto
from motion.files.formats import (
    READERS,
    WRITERS,
    read_in_file_order,
    write_motion,
)
from motion.files.reading import GUESSED, Reading
from motion.skeleton.clip import MotionClip, resample
from motion.skeleton.matching import Matching
from motion.skeleton.tree import Skeleton
from wanvae.engine.litter import describe_ignored, is_litter, suffix_of


class Joints(NamedTuple):
    """The movement of joints.

    Attributes:
        positions: ``(T, J, 3)`` in the world, metres.
        rotations: ``(T, J, 3, 3)``; each turns vectors from the axes of a joint to the axes of its
            parent. HumanML3D and KIT have no rotation of the root: ``(T, J - 1, 3, 3)``.
    """

    positions: Tensor
    rotations: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """Motion as features of a model.

    Attributes:
        config: the config of the model.
        features: ``(T, D)``, float32, in their own units.
        skeleton: the skeleton that moves; for HumanML3D and KIT a packaged one, for its bones.
        clip: the motion itself, at the frame rate of the model, with the order and the names of the
            joints of the model; None for HumanML3D and KIT.
        file_fps: frames per second of the file; None if they are not known.
        matching: which joints of the file the joints of ``clip`` are; None if they are the same.
    """

    config: RVQVAEConfig
    features: Tensor
    skeleton: Skeleton
    clip: MotionClip | None
    file_fps: float | None = None
    matching: Matching | None = None

    @property
    def file_skeleton(self) -> Skeleton:
        """The skeleton with the order and the names of the joints in the file."""
        return self.skeleton if self.matching is None else self.matching.own

    def __len__(self) -> int:
        """Returns T, the number of frames."""
        return len(self.features)

    @property
    def joints(self) -> Joints:
        """The joints as they were recorded."""
        return self.joints_of(self.features) if self.clip is None else joints_of_clip(self.clip)

    def joints_of(self, features: Tensor) -> Joints:
        """Returns the joints that ``features`` ``(T, D)`` describe."""
        if self.clip is None:
            return joints_of_humanml3d(features)
        return joints_of_clip(self.restore(features))

    def restore(self, features: Tensor) -> MotionClip:
        """Returns the clip of ``features`` ``(T, D)``, at the place of this recording.

        Features without a root take the path of this recording.

        Raises:
            MotionError: these are features of HumanML3D or KIT, which cannot become a clip.
        """
        clip, spec = self.clip, self.config.features
        if clip is None or spec is None:
            raise MotionError("features of HumanML3D and KIT have no clip; write them as .npy")
        return restore_onto(clip, features, spec)

    def write(self, path: str | os.PathLike[str], features: Tensor) -> None:
        """Writes ``features`` ``(T, D)`` as .bvh or .npz; as .npy for HumanML3D and KIT.

        The joints have the order and the names that they have in the file of this recording.

        Raises:
            MotionError: the file has another suffix, or its format cannot hold the motion.
            FileError: the file cannot be written.
        """
        if self.clip is None:
            humanml3d.write_features(path, features)
            return
        clip = self.restore(features)
        write_motion(path, clip if self.matching is None else self.matching.restore(clip))

    def __getitem__(self, frames: slice) -> Recording:
        """Returns some of the frames, with the features that they have in the whole recording."""
        clip = None if self.clip is None else self.clip[frames]
        return replace(self, features=self.features[frames], clip=clip)


def suffixes_read(config: RVQVAEConfig) -> tuple[str, ...]:
    """Returns the suffixes of motion files that a model of ``config`` reads."""
    return (".npy",) if config.features is None else tuple(READERS)


def suffixes_written(config: RVQVAEConfig) -> tuple[str, ...]:
    """Returns the suffixes of motion files that a model of ``config`` writes."""
    return (".npy",) if config.features is None else tuple(WRITERS)


@dataclass(frozen=True)
class MotionFiles:
    """The motion files of a folder.

    Attributes:
        paths: the motion files, sorted.
        others: the files of another kind, sorted.
    """

    paths: list[Path]
    others: list[Path] = field(default_factory=list)

    @property
    def ignored(self) -> str:
        """How many files are of another kind, by suffix; empty if none are."""
        return describe_ignored(Counter(suffix_of(path.name) for path in self.others))


def find_files(path: str | os.PathLike[str], config: RVQVAEConfig) -> MotionFiles:
    """Finds the motion files of a folder and its subfolders. A file is returned alone.

    Hidden files, and what systems leave in folders, are passed over.

    A data set such as HumanML3D has its features in one of its folders; only these are returned.

    Raises:
        MotionError: the path does not exist, or the folder has no motion files.
    """
    path = Path(path)
    if path.is_file():
        return MotionFiles([path])
    if not path.is_dir():
        raise MotionError(f"{path} does not exist; check the path")
    suffixes = suffixes_read(config)
    folder = humanml3d.find_features_folder(path) if config.features is None else path
    found, others = [], []
    for file in sorted(folder.rglob("*")):
        passed = is_litter(file.relative_to(folder).as_posix())
        if passed or file.name in humanml3d.STATISTICS or not file.is_file():
            continue
        if suffix_of(file.name) in suffixes:
            found.append(file)
        else:
            others.append(file)
    if not found:
        raise MotionError(
            f"{path} has no {' or '.join(suffixes)} files; name the folder of the data"
        )
    return MotionFiles(found, others)


def read_recording(
    path: str | os.PathLike[str],
    config: RVQVAEConfig,
    reading: Reading = GUESSED,
    skeleton: Skeleton | None = None,
) -> Recording:
    """Reads a motion file as features of a model. Clips are converted to its frame rate.

    Joints are matched with the joints of the model by name, and a warning tells that their order or
    their names differ.

    Args:
        reading: what the file does not tell.
        skeleton: the skeleton of the model; None if it is not known.

    Raises:
        MotionError: the file cannot be read, has another format, or its skeleton has another number
            of joints than the model.
        SkeletonError: it has other joints than the model, or another rest pose.
    """
    path = Path(path)
    spec, channels = config.features, config.channels
    suffixes = suffixes_read(config)
    if path.suffix.lower() not in suffixes:
        raise MotionError(f"{path} must end in {' or '.join(suffixes)} for this model")
    if spec is None:
        packaged = humanml3d.skeleton_of(channels)
        features = humanml3d.read_features(path)
        check_channels(path, features.shape[1], channels)
        return Recording(config=config, features=features, skeleton=packaged, clip=None)
    clip = read_in_file_order(path, reading)
    matching = match_file(path, clip.skeleton, config, skeleton)
    clip = clip if matching is None else matching.arrange(clip)
    file_fps = clip.fps
    clip = resample(clip, config.fps) if file_fps != config.fps else clip
    return Recording(
        config=config,
        features=extract_features(clip, spec).float(),
        skeleton=clip.skeleton,
        clip=clip,
        file_fps=file_fps,
        matching=matching,
    )


def check_channels(path: Path, found: int, channels: int) -> None:
    """Raises MotionError if a file has another number of channels than the model."""
    if found != channels:
        raise MotionError(
            f"{path} has {found} channels, but the model has {channels}: its features are others"
        )


def joints_of_clip(clip: MotionClip) -> Joints:
    return Joints(clip.pose.positions, clip.rotations)


def joints_of_humanml3d(features: Tensor) -> Joints:
    positions = humanml3d.recover_positions(features)
    rotations = features[:, humanml3d.rotation_channels(features.shape[1])].unflatten(1, (-1, 6))
    return Joints(positions, from_rot6d(rotations, "columns"))
