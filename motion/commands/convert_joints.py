"""Joints and published features for ``wanvae-motion convert``: in and out of motion files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from motion.errors import MotionError
from motion.features.feature_files import SUFFIX, write_features
from motion.features.joint_motion import extract_published, read_joint_motion, read_target
from motion.features.published import NAMES, FeatureName
from motion.files.formats import WRITERS, check_suffix, read_motion, write_motion
from motion.files.joints import SUFFIX as JOINTS_SUFFIX
from motion.files.joints import describe_lost_rate, write_positions
from motion.files.reading import GUESSED, Reading
from motion.skeleton.body_parts import find_parts
from motion.skeleton.clip import MotionClip
from motion.skeleton.selection import JointMotion
from wanvae.engine.files import refuse_overwriting

# Metres along the bones between the ends furthest apart, from small children to tall adults.
SIZES = 0.7, 3.5
KEEPS_LENGTHS = (
    "bones keep their lengths; models of this data set know the lengths of its joints, which "
    "--target FILE takes from any file of joints or features of it"
)


@dataclass(frozen=True)
class JointReport:
    """The result of a conversion.

    Attributes:
        frames: the number of frames that were written.
        fps: frames per second of what was written.
        notes: what was converted and what is lost, for people; one sentence each.
    """

    frames: int
    fps: float
    notes: tuple[str, ...]


def convert_to_features(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    name: FeatureName,
    *,
    target: str | os.PathLike[str] | None = None,
    reading: Reading = GUESSED,
    fps: float | None = None,
) -> JointReport:
    """Writes the features of a motion file as .npy, in float32 and not normalized.

    Args:
        source: a motion file, or a .npy file of joints or features; see ``read_joint_motion``.
        target: a file whose first frame has the bone lengths to use, for HumanML3D and KIT.
        reading: what ``source`` does not tell.
        fps: frames per second of a .npy file; by default as published.

    Raises:
        MotionError: ``source`` or ``target`` cannot be read or does not have the joints, or
            ``destination`` does not end in .npy. Then nothing is written.
        FileError: ``destination`` cannot be written, or is ``source`` or ``target``.
    """
    refuse_overwriting(destination, [source, target])
    if Path(destination).suffix.lower() != SUFFIX:
        raise MotionError(f"{destination} must end in {SUFFIX}, for features")
    motion = read_joint_motion(source, reading, fps=fps)
    lengths = None if target is None else read_target(target, name)
    features = extract_published(motion, name, target=lengths)
    write_features(destination, features.float())
    notes = describe_assumptions(source, motion, reading, fps)
    if motion.clip.fps != NAMES[name].fps:
        notes.append(f"converted from {motion.clip.fps:g} frames per second")
    if name == "272" and motion.by_kinematics:
        notes.append(describe_kinematics(motion))
    if name != "272" and target is None:
        notes.append(KEEPS_LENGTHS)
    return JointReport(len(features), NAMES[name].fps, tuple(notes))


def convert_from_joints(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    reading: Reading = GUESSED,
    fps: float | None = None,
) -> JointReport:
    """Writes a .npy file of joints or features as a motion file.

    Args:
        source, reading, fps: as for ``convert_to_features``.
        destination: a file of a kind that ``FORMATS`` can write.

    Raises:
        MotionError: ``source`` cannot be read, or the format of ``destination`` cannot hold it.
        FileError: ``destination`` cannot be written, or is ``source``.
    """
    refuse_overwriting(destination, [source])
    suffix = check_suffix(Path(destination), WRITERS)
    motion = read_joint_motion(source, reading, fps=fps)
    if suffix == JOINTS_SUFFIX:
        write_positions(destination, motion.positions)
        return JointReport(
            len(motion.clip), motion.clip.fps, (describe_lost_rate(motion.clip.fps),)
        )
    write_motion(destination, motion.clip)
    notes = describe_assumptions(source, motion, reading, fps)
    notes.append(describe_kinematics(motion) if motion.by_kinematics else describe_bones(motion))
    if suffix == ".npz":
        notes.append("not kept: lengths of bones, which readers take from a body model")
    return JointReport(len(motion.clip), motion.clip.fps, tuple(notes))


def read_clip(
    source: str | os.PathLike[str], reading: Reading = GUESSED, fps: float | None = None
) -> tuple[MotionClip, tuple[str, ...]]:
    """Reads a motion file, or a .npy file of joints or features.

    Returns:
        The motion, and sentences on what a .npy file does not tell.

    Raises:
        MotionError: the file cannot be read.
    """
    if Path(source).suffix.lower() != SUFFIX:
        return read_motion(source, reading), ()
    motion = read_joint_motion(source, reading, fps=fps)
    notes = describe_assumptions(source, motion, reading, fps)
    if motion.by_kinematics:
        notes.append(describe_kinematics(motion))
    return motion.clip, tuple(notes)


def describe_assumptions(
    source: str | os.PathLike[str], motion: JointMotion, reading: Reading, fps: float | None
) -> list[str]:
    """Returns sentences on what a .npy file does not tell: its frame rate, and what seems wrong.

    Args:
        reading, fps: what is told beside the file.
    """
    if Path(source).suffix.lower() != SUFFIX:
        return []
    size, notes = motion.clip.skeleton.span, []
    if fps is None:
        notes.append(
            f"the file does not tell its frame rate: {motion.clip.fps:g} per second, as published; "
            "--fps says otherwise"
        )
    if reading.unit is None and not SIZES[0] < size < SIZES[1]:
        notes.append(
            f"a person of {size:.3g} m along the bones from toes to wrists is no usual one; --unit "
            "says the unit of the file"
        )
    if reading.up is None and lies_along_z(motion):
        notes.append("the person lies along z; if z points up in the file, say --up z")
    return notes


def lies_along_z(motion: JointMotion) -> bool:
    """Whether the head is further from the feet along z than along y, on average."""
    parts = find_parts(motion.clip.skeleton)
    head, *feet = (parts.index(part) for part in ("head", "left_foot", "right_foot"))
    body = (motion.positions[:, head] - motion.positions[:, feet].mean(dim=1)).mean(dim=0).abs()
    return bool(body[2] > body[1])


def describe_kinematics(motion: JointMotion) -> str:
    return f"rotations by inverse kinematics, which do not tell how bones twist: {describe(motion)}"


def describe_bones(motion: JointMotion) -> str:
    return f"rotations as they are in the features, on bones of one length: {describe(motion)}"


def describe(motion: JointMotion) -> str:
    """Returns how far the joints of a clip are from the positions that were read."""
    distances = motion.distances
    return (
        f"joints are {distances.mean():.3g} mm from their places, at most {distances.max():.3g} mm"
    )
