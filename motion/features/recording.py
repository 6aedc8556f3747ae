"""Recordings: motion files as features of a model, and features as motion files.

There are three kinds of features. Features with rotations are computed from a BVH or SMPL-X file,
and can be written as such a file again. Published features of joints, as of HumanML3D, KIT and
MotionStreamer, are read from .npy files, and can be turned into positions of joints and into motion
files. Any other features are read from .npy files, and written as such files alone.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from motion.config import RVQVAEConfig
from motion.errors import MotionError
from motion.features import humanml3d
from motion.features.actors import match_file
from motion.features.feature_files import SUFFIX as FEATURES_SUFFIX
from motion.features.feature_files import read_features, write_features
from motion.features.published import PUBLISHED, PublishedFeatures, Source
from motion.features.rotations import extract_features, restore_onto
from motion.files.formats import READERS, WRITERS, find_suffix, read_in_file_order, write_motion
from motion.files.joints import SUFFIX as JOINTS_SUFFIX
from motion.files.joints import describe_lost_rate, write_positions
from motion.files.reading import GUESSED, AsRead, Reading
from motion.metrics import joint_distances
from motion.skeleton.clip import MotionClip, resample
from motion.skeleton.matching import Matching
from motion.skeleton.retarget import retarget
from motion.skeleton.tree import Skeleton
from wanvae.engine.files import FileError
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
        skeleton: the skeleton that moves; for published features of joints a packaged one, for its
            bones; None for features that are not known.
        clip: the motion itself, at the frame rate of the model, with the order and the names of the
            joints of the model; None for features of .npy files.
        file_fps: frames per second of the file; None if they are not known.
        matching: which joints of the file the joints of ``clip`` are; None if they are the same.
        read_as: what the skeleton of the file was read as; None for features of .npy files.
    """

    config: RVQVAEConfig
    features: Tensor
    skeleton: Skeleton | None
    clip: MotionClip | None
    file_fps: float | None = None
    matching: Matching | None = None
    read_as: AsRead | None = None

    @property
    def file_skeleton(self) -> Skeleton:
        """The skeleton with the order and the names of the joints in the file."""
        return self.bones if self.matching is None else self.matching.own

    def __len__(self) -> int:
        """Returns T, the number of frames."""
        return len(self.features)

    @property
    def bones(self) -> Skeleton:
        """The skeleton that moves; MotionError if the features are not known."""
        if self.skeleton is None:
            raise MotionError(
                f"what the {self.config.channels} channels of the features are is not known, so "
                "they tell no joints"
            )
        return self.skeleton

    @property
    def published(self) -> PublishedFeatures | None:
        """What is known about features of a .npy file; None for a clip, and if nothing is."""
        return find_published(self.config)

    @property
    def joints(self) -> Joints:
        """The joints as they were recorded."""
        return self.joints_of(self.features) if self.clip is None else joints_of_clip(self.clip)

    def joints_of(self, features: Tensor) -> Joints:
        """Returns the joints that ``features`` ``(T, D)`` describe.

        Raises:
            MotionError: the features are not known, so they tell no joints.
        """
        if self.published is not None:
            return Joints(*self.published.recover(features))
        return joints_of_clip(self.restore(features))

    def restore(self, features: Tensor) -> MotionClip:
        """Returns the clip of ``features`` ``(T, D)``, at the place of this recording.

        Features without a root take the path of this recording. Published features of joints become
        a clip by their rotations or by inverse kinematics, and start at the origin.

        Raises:
            MotionError: the features are not known.
        """
        clip, spec, published = self.clip, self.config.features, self.published
        if published is not None:
            restored = published.restore(features.double(), published.source)
            return replace(restored, fps=self.config.fps)
        if clip is None or spec is None:
            raise MotionError(
                f"what the {self.config.channels} channels of the features are is not known, so "
                "they tell no joints; write them as .npy"
            )
        return restore_onto(clip, features, spec)

    def write(self, path: str | os.PathLike[str], features: Tensor) -> None:
        """Writes ``features`` ``(T, D)``: as .npy where they are read from it, or as motion.

        The joints have the order and the names that they have in the file of this recording.

        Raises:
            MotionError: the file has another suffix, or its format cannot hold the motion.
            FileError: the file cannot be written.
        """
        suffix = find_suffix(path)
        if self.clip is None and suffix == FEATURES_SUFFIX:
            write_features(path, features)
        elif self.published is not None and suffix == JOINTS_SUFFIX:
            write_positions(path, self.joints_of(features).positions)
        else:
            clip = self.restore(features)
            write_motion(path, clip if self.matching is None else self.matching.restore(clip))

    def describe_loss(self, path: str | os.PathLike[str], features: Tensor) -> str:
        """Returns a sentence on what ``write`` loses; empty if nothing is lost.

        Published features have no stiff bones, and files of joints have no frame rate.
        """
        suffix = find_suffix(path)
        if suffix == JOINTS_SUFFIX:
            return describe_lost_rate(self.config.fps)
        if self.published is None or suffix == FEATURES_SUFFIX:
            return ""
        joints = self.joints_of(features).positions.double()
        distances = joint_distances(self.restore(features).pose.positions, joints)
        return describe_distances(distances, self.published.source)

    def __getitem__(self, frames: slice) -> Recording:
        """Returns some of the frames, with the features that they have in the whole recording."""
        clip = None if self.clip is None else self.clip[frames]
        return replace(self, features=self.features[frames], clip=clip)


def describe_distances(distances: Tensor, source: Source) -> str:
    """Returns a sentence on distances in mm of joints from where features have them."""
    how = "rotations" if source == "rotations" else "inverse kinematics"
    return (
        f"bones of one length, by {how}: joints are {distances.mean():.3g} mm from their places in "
        f"the features, at most {distances.max():.3g} mm"
    )


def check_output(path: str | os.PathLike[str], config: RVQVAEConfig, *others: str) -> None:
    """Raises FileError if a model cannot write a file with this suffix.

    Args:
        others: suffixes of files that are not motion.
    """
    suffixes = (*suffixes_written(config), *others)
    if find_suffix(path) not in suffixes:
        raise FileError(f"{path} must end in {' or '.join(suffixes)}; change its name")


def suffixes_read(config: RVQVAEConfig) -> tuple[str, ...]:
    """Returns the suffixes of motion files that a model of ``config`` reads."""
    return (FEATURES_SUFFIX,) if config.features is None else tuple(READERS)


def suffixes_written(config: RVQVAEConfig) -> tuple[str, ...]:
    """Returns the suffixes of motion files that a model of ``config`` writes."""
    if config.features is not None:
        return tuple(WRITERS)
    return (FEATURES_SUFFIX,) if find_published(config) is None else (FEATURES_SUFFIX, *WRITERS)


def find_published(config: RVQVAEConfig) -> PublishedFeatures | None:
    """Returns what is known about the features of .npy files for a model; None if nothing is."""
    return PUBLISHED.get(config.channels) if config.features is None else None


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


def retarget_onto_model(path: Path, clip: MotionClip, skeleton: Skeleton) -> MotionClip:
    """Returns the motion of a file as motion of the skeleton of a model, and warns of it.

    Raises:
        MotionError: the names of the joints do not tell hips and legs, or hips and arms.
    """
    warnings.warn(
        "the skeleton of the motion is another; the body of the model, of "
        f"{skeleton.joints} joints, moves as it moves, and errors are of this body",
        stacklevel=3,
    )
    try:
        return retarget(clip, skeleton)
    except MotionError as error:
        raise MotionError(f"{path} with the skeleton of the model: {error}") from None


def read_recording(
    path: str | os.PathLike[str],
    config: RVQVAEConfig,
    reading: Reading = GUESSED,
    skeleton: Skeleton | None = None,
) -> Recording:
    """Reads a motion file as features of a model. Clips are converted to its frame rate.

    Joints are matched with the joints of the model by name, and a warning tells that their order or
    their names differ. Where they are other joints, ``reading`` says whether the skeleton of the
    model moves as the file moves, with a warning.

    Args:
        reading: what the file does not tell.
        skeleton: the skeleton of the model; None if it is not known.

    Raises:
        MotionError: the file cannot be read, has another format, its skeleton has another number of
            joints than the model, or it cannot be retargeted.
        SkeletonError: it has other joints than the model, or another rest pose.
    """
    path = Path(path)
    spec, channels = config.features, config.channels
    suffixes = suffixes_read(config)
    if path.suffix.lower() not in suffixes:
        # A model that reads no .npy has a skeleton, onto which joints and features can be brought.
        advice = "; convert writes .npy of joints or features as such a file"
        raise MotionError(
            f"{path} must end in {' or '.join(suffixes)} for this model"
            + advice * (path.suffix.lower() == FEATURES_SUFFIX)
        )
    if spec is None:
        features = read_features(path)
        check_channels(path, features.shape[1], channels)
        return Recording(
            config=config, features=features, skeleton=find_features_skeleton(config), clip=None
        )
    clip = read_in_file_order(path, reading)
    read_as = AsRead.of(clip.skeleton)
    try:
        matching = match_file(path, clip.skeleton, config, skeleton)
    except MotionError:
        if skeleton is None or not reading.retarget:
            raise
        clip, matching = retarget_onto_model(path, clip, skeleton), None
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
        read_as=read_as,
    )


def find_features_skeleton(config: RVQVAEConfig) -> Skeleton | None:
    """Returns the packaged skeleton of features of .npy files; None if they are not known."""
    published = find_published(config)
    return None if published is None else published.skeleton


def check_channels(path: Path, found: int, channels: int) -> None:
    """Raises MotionError if a file has another number of channels than the model."""
    if found != channels:
        raise MotionError(
            f"{path} has {found} channels, but the model has {channels}: its features are others"
        )


def joints_of_clip(clip: MotionClip) -> Joints:
    return Joints(clip.pose.positions, clip.rotations)
