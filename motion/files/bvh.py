"""BVH files: a skeleton, and Euler angles in degrees for each of its joints and frames."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import roma
import torch
from torch import Tensor

from motion.files.bvh_hierarchy import AXES, Hierarchy, Joint, as_number, hierarchy_lines
from motion.skeleton.clip import Clip, ClipError, from_file_axes, to_file_axes
from motion.skeleton.tree import EndSite, Skeleton, forward_kinematics
from wanvae.engine.files import atomic_path

# Lengths of a unit in metres: metre, centimetre, millimetre, inch, and that of the CMU recordings.
UNITS = (1.0, 0.01, 0.001, 0.0254, 0.056444)
TYPICAL_SIZE = 2.3  # metres along the bones between the ends furthest apart, as toes and fingertips
PLAUSIBLE = 1.4  # people are larger or smaller than that by at most this factor
# How many times as tall as deep a person is, at least, who stands along z rather than y.
UPRIGHT = 1.3
SHORTEST_FRAME = 1e-6  # seconds
# By more of the skeleton's size than this, bones that change their length are worth a warning.
NOTABLE_STRETCH = 1e-3


def read_bvh(
    path: str | os.PathLike[str],
    *,
    unit: float | None = None,
    up: Literal["y", "z"] | None = None,
) -> Clip:
    """Read a BVH file: any order of channels, of Euler angles, with or without positions.

    A position replaces the offset of its joint, as Blender has it. Joints other than the root keep
    the mean of theirs as their offset, with a warning if they move.

    Args:
        unit: metres per unit of length in the file. BVH files do not say; by default it is that of
            metre, centimetre, millimetre, inch and CMU's 56.444 mm which makes the way along the
            bones from toes to fingertips most like 2.3 m; if none comes near, it is the one that
            makes it 2.3 m.
        up: the axis that points up in the file; by default z if both the rest pose and the first
            frame are clearly longer along z than along y, else y.

    Raises:
        ClipError: there is no such file, or it is no complete BVH file of one skeleton; it names
            the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise ClipError(f"{path} cannot be read: {error.strerror or error}") from error
    start = next(
        (n for n, line in enumerate(lines) if line.strip().upper() == "MOTION"), len(lines)
    )
    hierarchy = Hierarchy(path, lines[: start + 1])
    hierarchy.read()
    joints = hierarchy.joints
    frames, fps, first = read_timing(path, lines, start + 1)
    width = sum(len(joint.channels) for joint in joints)
    values = read_frames(path, lines, first, frames, width)
    return make_clip(path, joints, values, fps, unit, up)


def read_timing(path: Path, lines: list[str], at: int) -> tuple[int, float, int]:
    """Number of frames, frames per second, and index of the first line of numbers."""
    found = [n for n in range(at, len(lines)) if lines[n].strip()][:2]
    labels = ("frames:", "frame time:")
    texts = []
    for label, n in zip(labels, [*found, len(lines), len(lines)][:2], strict=True):
        words = " ".join(lines[n].split()) if n < len(lines) else ""
        if not words.lower().startswith(label):
            raise ClipError(f"{path}, line {n + 1}: {label!r} is expected after MOTION")
        texts.append(words[len(label) :].strip())
    if not texts[0].isdecimal() or int(texts[0]) < 1:
        raise ClipError(
            f"{path}, line {found[0] + 1}: {texts[0][:40]!r} frames; it needs a whole number of "
            "them, at least one"
        )
    if not SHORTEST_FRAME <= as_number(texts[1]) < math.inf:
        raise ClipError(
            f"{path}, line {found[1] + 1}: the frame time is {texts[1][:40]!r}; it must be "
            "positive seconds, such as 0.0333333 for 30 frames per second"
        )
    return int(texts[0]), frame_rate(texts[1]), found[1] + 1


def frame_rate(text: str) -> float:
    """Frames per second for a frame time as written: 30 for 0.0333333, which is 1/30 cut off."""
    seconds = float(text)
    whole = round(1 / seconds)
    digits = len(text.partition(".")[2]) if "e" not in text.lower() else 16
    if whole and abs(1 / whole - seconds) < min(10.0**-digits, 1e-3 * seconds):
        return float(whole)
    return 1 / seconds


def read_frames(path: Path, lines: list[str], first: int, frames: int, width: int) -> np.ndarray:
    """The numbers of all frames: (frames, width) in float64."""
    rows = [n for n in range(first, len(lines)) if lines[n].strip()]
    if len(rows) != frames:
        last = rows[-1] + 1 if rows else first
        raise ClipError(
            f"{path}, line {last}: the file has {len(rows)} of {frames} frames; get it again, or "
            "correct the line Frames"
        )
    counts = [len(lines[n].split()) for n in rows]
    if set(counts) != {width}:
        row = next(i for i, count in enumerate(counts) if count != width)
        raise ClipError(
            f"{path}, line {rows[row] + 1}: frame {row} has {counts[row]} numbers; the hierarchy "
            f"has {width} channels"
        )
    try:
        with warnings.catch_warnings():  # what NumPy does with text that is no number
            warnings.simplefilter("error", DeprecationWarning)
            values = np.fromstring("\n".join(lines[rows[0] :]), np.float64, sep=" ")
            values = values.reshape(frames, width)
    except (ValueError, DeprecationWarning):
        # Slower, but it tells which word is no number.
        values = np.array([[as_number(w) for w in lines[n].split()] for n in rows])
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        word = lines[rows[row]].split()[column]
        raise ClipError(
            f"{path}, line {rows[row] + 1}: number {column + 1} of frame {row} is {word[:40]!r}; "
            "a frame needs finite numbers"
        )
    return values


def make_clip(
    path: Path,
    joints: list[Joint],
    values: np.ndarray,
    fps: float,
    unit: float | None,
    up: Literal["y", "z"] | None,
) -> Clip:
    """The clip of what a file says, in metres and with y up."""
    channels = [(j, name) for j, joint in enumerate(joints) for name in joint.channels]
    columns = {channel: column for column, channel in enumerate(channels)}
    numbers = torch.from_numpy(values)
    angles = [
        numbers[:, [columns[j, f"{axis}rotation"] for axis in joint.order]]
        for j, joint in enumerate(joints)
    ]
    orders = tuple(joint.order for joint in joints)
    rotations = euler_to_rotations(torch.stack(angles, dim=1), orders)
    offsets = torch.tensor([joint.offset for joint in joints], dtype=torch.float64)
    root_positions = offsets[:1].expand(len(values), -1)
    for j, joint in enumerate(joints):
        if "Xposition" not in joint.channels:
            continue
        positions = numbers[:, [columns[j, f"{axis}position"] for axis in AXES]]
        if j:
            offsets[j] = positions.mean(dim=0)
            warn_of_stretch(path, joint, (positions - offsets[j]).norm(dim=1).max(), offsets)
        else:
            root_positions = positions

    in_file = make_skeleton(joints, offsets, orders)
    still = torch.eye(3, dtype=torch.float64).expand(1, len(joints), 3, 3)
    two_poses = torch.cat([still, rotations[:1]])
    places = forward_kinematics(in_file, two_poses, offsets.new_zeros(2, 3)).positions
    sizes = places.amax(dim=1) - places.amin(dim=1)
    unit = guess_unit(in_file.span) if unit is None else unit
    if up is None:
        up = "z" if (sizes[:, 2] > UPRIGHT * sizes[:, 1]).all() else "y"
    clip = Clip(
        skeleton=make_skeleton(joints, offsets, orders, unit, up),
        rotations=rotations,
        root_positions=root_positions * unit,
        fps=fps,
    )
    return from_file_axes(clip)


def warn_of_stretch(path: Path, joint: Joint, stretch: Tensor, offsets: Tensor) -> None:
    """Say that a bone does not keep its length, if that shows."""
    if stretch > NOTABLE_STRETCH * offsets.norm(dim=1).sum():
        warnings.warn(
            f"{path}: {joint.name} moves away from its parent, by up to {stretch:.4g} units; its "
            "mean place is taken",
            stacklevel=4,
        )


def make_skeleton(
    joints: list[Joint],
    offsets: Tensor,
    orders: tuple[str, ...],
    unit: float = 1.0,
    up: Literal["y", "z"] = "y",
) -> Skeleton:
    return Skeleton(
        names=tuple(joint.name for joint in joints),
        parents=tuple(joint.parent for joint in joints),
        offsets=tuple(map(tuple, (offsets * unit).tolist())),
        end_sites=tuple(
            EndSite(joint=j, offset=tuple(unit * x for x in end))
            for j, joint in enumerate(joints)
            for end in joint.ends
            if any(end)  # one of no length stands for none
        ),
        orders=orders,
        unit=unit,
        up=up,
    )


def guess_unit(size: float) -> float:
    """Metres per unit for a person whose ends are at most ``size`` units apart along the bones."""
    if not size:
        return 1.0
    unit = min(UNITS, key=lambda unit: abs(math.log(unit * size / TYPICAL_SIZE)))
    if 1 / PLAUSIBLE < unit * size / TYPICAL_SIZE < PLAUSIBLE:
        return unit
    # Rounded, so that it stays the same when the file is written again.
    return float(f"{TYPICAL_SIZE / size:.2g}")


def euler_to_rotations(angles: Tensor, orders: tuple[str, ...]) -> Tensor:
    """Rotations (T, J, 3, 3) of Euler angles (T, J, 3) in degrees, joint j in the order j."""
    rotations = angles.new_empty(*angles.shape, 3)
    for order in set(orders):
        joints = [j for j, other in enumerate(orders) if other == order]
        rotations[:, joints] = roma.euler_to_rotmat(order, angles[:, joints], degrees=True)
    return rotations


def rotations_to_euler(rotations: Tensor, orders: tuple[str, ...]) -> Tensor:
    """The inverse of ``euler_to_rotations``, without jumps of whole turns from frame to frame."""
    angles = rotations.new_empty(rotations.shape[:-1])
    for order in set(orders):
        joints = [j for j, other in enumerate(orders) if other == order]
        angles[:, joints] = roma.rotmat_to_euler(order, rotations[:, joints], degrees=True)
    return torch.from_numpy(np.unwrap(angles.numpy(), period=360.0, axis=0))


def write_bvh(path: str | os.PathLike[str], clip: Clip) -> None:
    """Write a BVH file that Blender and others read, complete or not at all.

    Joints are in the order of the tree, depth first. Lengths are in the unit of the skeleton, with
    its axis up; they and angles have 6 digits after the point. The root has positions.

    Raises:
        CheckpointError: it cannot be written.
    """
    skeleton, clip = clip.skeleton, to_file_axes(clip)
    hierarchy, order = hierarchy_lines(skeleton)
    angles = rotations_to_euler(clip.rotations.detach().cpu().double(), skeleton.orders)
    positions = clip.root_positions.detach().cpu().double() / skeleton.unit
    values = torch.cat([positions, angles[:, order].flatten(1)], dim=1).tolist()
    row = " ".join(["%.6f"] * len(values[0]))
    lines = [
        *hierarchy,
        "MOTION",
        f"Frames: {len(clip)}",
        f"Frame Time: {1 / clip.fps!r}",
        *(row % tuple(frame) for frame in values),
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
