"""BVH files: a skeleton, and Euler angles in degrees of each joint in each frame."""

from __future__ import annotations

import math
import os
import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import roma
import torch
from torch import Tensor

from motion.errors import MotionError
from motion.files.bvh_hierarchy import (
    AXES,
    COMMENT,
    Hierarchy,
    Joint,
    as_number,
    write_hierarchy,
)
from motion.skeleton.clip import MotionClip, from_file_axes, to_file_axes
from motion.skeleton.tree import EndSite, Skeleton, find_extent, forward_kinematics
from wanvae.engine.files import atomic_path

# Common units in metres: metre, centimetre, millimetre, inch, and the unit of CMU recordings.
UNITS = (1.0, 0.01, 0.001, 0.0254, 0.056444)
USUAL_UNITS = UNITS[:3]
TYPICAL_SIZE = 2.3  # metres of a person along the bones, from the toes to the fingertips
PLAUSIBLE = 1.4  # adults are larger or smaller by at most this factor
SMALLEST_SIZE = 0.7  # of a small child, or of an upper body
SMALLEST_WALKER = 1.05  # of a child who begins to walk
FEWEST_JOINTS = 12  # of a person: hips, chest, head, and two of each limb; others are no children
# A person who stands along z is at least this many times as long along z as along y.
UPRIGHT = 1.3
SHORTEST_FRAME = 1e-6  # seconds
# A bone whose length changes by more than this share of the size of the skeleton gets a warning.
NOTABLE_STRETCH = 1e-3


def read_bvh(
    path: str | os.PathLike[str],
    *,
    unit: float | None = None,
    up: Literal["y", "z"] | None = None,
    root: str | None = None,
    frames_from_data: bool = False,
) -> MotionClip:
    """Reads a BVH file, with any channels in any order. What has no channel stays as it is.

    Positions replace the offset of their joint, as in Blender. If a joint carries the whole person
    by its positions, like hips below a root that stands still, the root takes its path. Any other
    joint gets the mean of its positions as its offset. Both come with a warning if the joint moves.

    A file with more frames than its line Frames says is read to its end, with a warning. The
    numbers of a frame may be on several lines. Lines or ends of lines after # or // are comments.

    Args:
        unit: metres per unit of length in the file. BVH files do not say it. By default it is
            guessed from the size of a person, see ``guess_unit``.
        up: the axis that points up in the file. By default it is z if both the rest pose and the
            first frame are clearly longer along z than along y, else y.
        root: the name of the root of the skeleton to read, where the file has several.
        frames_from_data: read all complete frames of a file that has fewer than its line Frames
            says.

    Raises:
        MotionError: the file does not exist, or is not a complete BVH file. The message names the
            line.
    """
    path = Path(path)
    lines = read_lines(path)
    start = next(
        (n for n, line in enumerate(lines) if line.strip().upper() == "MOTION"), len(lines)
    )
    hierarchy = Hierarchy(path, lines[: start + 1])
    hierarchy.read()
    frames, fps, first = read_timing(path, lines, start + 1)
    width = count_channels(hierarchy.joints)
    values = read_frames(path, lines, first, frames, width, frames_from_data)
    tree = hierarchy.select_tree(root)
    before = count_channels(hierarchy.joints[: tree.start])
    joints = [
        replace(joint, parent=max(-1, joint.parent - tree.start))
        for joint in hierarchy.joints[tree]
    ]
    values = values[:, before : before + count_channels(joints)]
    return make_clip(path, joints, values, fps, unit, up)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file in UTF-8 or UTF-16, without comments."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MotionError(f"{path} cannot be read: {error.strerror or error}") from error
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    text = content.decode(encoding, errors="replace")
    lines = text.splitlines()
    # Files are long, and few have comments.
    return [COMMENT.sub("", line) for line in lines] if "#" in text or "//" in text else lines


def count_channels(joints: Sequence[Joint]) -> int:
    """Returns the channels of all joints."""
    return sum(len(joint.channels) for joint in joints)


def read_timing(path: Path, lines: list[str], at: int) -> tuple[int, float, int]:
    """Returns the number of frames, frames per second, and the first line of numbers."""
    found = [n for n in range(at, len(lines)) if lines[n].strip()][:2]
    labels = ("frames:", "frame time:")
    texts = []
    for label, n in zip(labels, [*found, len(lines), len(lines)][:2], strict=True):
        words = " ".join(lines[n].split()) if n < len(lines) else ""
        if not words.lower().startswith(label):
            raise MotionError(f"{path}, line {n + 1}: {label!r} is expected after MOTION")
        texts.append(words[len(label) :].strip())
    if not texts[0].isdecimal() or int(texts[0]) < 1:
        raise MotionError(
            f"{path}, line {found[0] + 1}: {texts[0][:40]!r} frames; the number of frames must "
            "be a whole number, at least one"
        )
    if not SHORTEST_FRAME <= as_number(texts[1]) < math.inf:
        raise MotionError(
            f"{path}, line {found[1] + 1}: the frame time is {texts[1][:40]!r}; it must be "
            f"positive seconds, from {SHORTEST_FRAME:g}, such as 0.0333333 for 30 frames per second"
        )
    return int(texts[0]), parse_frame_time(texts[1]), found[1] + 1


def parse_frame_time(text: str) -> float:
    """Returns frames per second for a frame time: 30 for "0.0333333", which is 1/30 cut off."""
    seconds = float(text)
    whole = round(1 / seconds)
    digits = len(text.partition(".")[2]) if "e" not in text.lower() else 16
    if whole and abs(1 / whole - seconds) < min(10.0**-digits, 1e-3 * seconds):
        return float(whole)
    return 1 / seconds


def read_frames(
    path: Path, lines: list[str], first: int, frames: int, width: int, frames_from_data: bool
) -> np.ndarray:
    """Returns the numbers of all frames: (T, width) in float64.

    Args:
        first: the index of the first line of numbers.
        frames: the number of frames by the header; there may be more.
        width: the number of channels.
        frames_from_data: whether there may be fewer frames, and a part of a frame at the end.
    """
    if not width:
        return np.empty((frames, 0))
    rows = [n for n in range(first, len(lines)) if lines[n].strip()]
    counts = [len(lines[n].split()) for n in rows]
    if sum(counts) == frames * width and set(counts) != {width}:
        lines = [*lines[:first], *wrap_anew(lines[first:], width)]  # frames on several lines
        rows = list(range(first, len(lines)))
    else:
        rows = check_rows(path, first, rows, counts, frames, width, frames_from_data)
    values = parse_rows(path, lines, rows, width)
    if len(rows) != frames:
        warnings.warn(
            f"{path}: the file has {len(rows)} frames, but its line Frames says {frames}; all are "
            "read",
            stacklevel=3,
        )
    return values


def check_rows(
    path: Path,
    first: int,
    rows: list[int],
    counts: list[int],
    frames: int,
    width: int,
    frames_from_data: bool,
) -> list[int]:
    """Returns the lines that are whole frames.

    Args:
        rows: the indices of lines with numbers.
        counts: how many numbers each of these lines has.
        first, frames, width, frames_from_data: as in ``read_frames``.

    Raises:
        MotionError: there are too few frames, or a line has another number of numbers.
    """
    if frames_from_data and len(rows) <= frames and counts and counts[-1] < width:
        rows, counts = rows[:-1], counts[:-1]
    if len(rows) < frames and not (frames_from_data and rows):
        last = rows[-1] + 1 if rows else first
        raise MotionError(
            f"{path}, line {last}: the file has {len(rows)} of {frames} frames; get it again, or "
            "read what is there with --frames-from-data"
        )
    if set(counts) != {width}:
        row = next(i for i, count in enumerate(counts) if count != width)
        raise MotionError(
            f"{path}, line {rows[row] + 1}: frame {row} has {counts[row]} numbers; the hierarchy "
            f"has {width} channels"
        )
    return rows


def parse_rows(path: Path, lines: list[str], rows: list[int], width: int) -> np.ndarray:
    """Returns the numbers of lines of ``width`` words; MotionError if a word is no number."""
    try:
        values = np.loadtxt([lines[n] for n in rows], comments=None, ndmin=2)
        values = values.reshape(len(rows), width)
    except ValueError:
        # This is slower, but tells which word is no number.
        values = np.array([[as_number(w) for w in lines[n].split()] for n in rows])
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        word = lines[rows[row]].split()[column]
        raise MotionError(
            f"{path}, line {rows[row] + 1}: number {column + 1} of frame {row} is {word[:40]!r}; "
            "a frame needs finite numbers"
        )
    return values


def wrap_anew(lines: Sequence[str], width: int) -> list[str]:
    """Returns the words of lines as lines of ``width`` words each."""
    words = " ".join(lines).split()
    return [" ".join(words[at : at + width]) for at in range(0, len(words), width)]


def make_clip(
    path: Path,
    joints: list[Joint],
    values: np.ndarray,
    fps: float,
    unit: float | None,
    up: Literal["y", "z"] | None,
) -> MotionClip:
    """Returns the clip of the numbers of a file, in metres and with y up."""
    channels = [(j, name) for j, joint in enumerate(joints) for name in joint.channels]
    columns = {channel: column for column, channel in enumerate(channels)}
    numbers = torch.from_numpy(values)

    def values_of(j: int, channel: str, missing: float) -> Tensor:
        column = columns.get((j, channel))
        return numbers.new_full((len(numbers),), missing) if column is None else numbers[:, column]

    angles = [
        torch.stack([values_of(j, f"{axis}rotation", 0.0) for axis in joint.order], dim=1)
        for j, joint in enumerate(joints)
    ]
    orders = tuple(joint.order for joint in joints)
    rotations = euler_to_rotations(torch.stack(angles, dim=1), orders)
    positions = {
        j: torch.stack(
            [
                values_of(j, f"{axis}position", rest)
                for axis, rest in zip(AXES, joint.offset or (), strict=True)
            ],
            dim=1,
        )
        for j, joint in enumerate(joints)
        if any(channel.endswith("position") for channel in joint.channels)
    }
    root_positions, offsets = place_joints(path, joints, positions, rotations)

    in_file = make_skeleton(joints, offsets, orders)
    if unit is None:
        unit = guess_unit(in_file.span)
        if len(joints) >= FEWEST_JOINTS:
            warn_of_doubtful_unit(path, in_file.span, unit)
    if up is None:
        first = forward_kinematics(in_file, rotations[0], offsets.new_zeros(3)).positions
        up = find_up(in_file.rest_extent, find_extent(first))
    clip = MotionClip(
        skeleton=make_skeleton(joints, offsets, orders, unit, up),
        rotations=rotations,
        root_positions=root_positions * unit,
        fps=fps,
    )
    return from_file_axes(clip)


def place_joints(
    path: Path, joints: Sequence[Joint], positions: Mapping[int, Tensor], rotations: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the positions (T, 3) of the root, and the offsets (J, 3) of all joints.

    Warns of joints that move away from their parents.

    Args:
        positions: (T, 3) of each joint that has positions.
        rotations: (T, J, 3, 3).
    """
    rest = torch.tensor([joint.offset for joint in joints], dtype=torch.float64)
    root_positions = positions.get(0, rest[:1].expand(len(rotations), -1))
    offsets = rest.clone()
    for j, places in positions.items():
        offsets[j] = places.mean(dim=0) if j else rest[j]
    moving = find_moving(positions, offsets)
    carrier = find_carrier(joints, moving, find_still(positions, rotations))
    if carrier is not None:
        # An offset that is longer than the person is a place in the scene.
        offsets[carrier] = 0.0
        size = make_skeleton(joints, offsets, tuple(joint.order for joint in joints)).span
        if rest[carrier].norm() <= size:
            offsets[carrier] = rest[carrier]
        places = positions[carrier] - offsets[carrier]
        root_positions = root_positions + turn_to_world(places, joints, rotations, carrier)
    warn_of_moving(path, joints, moving, carrier)
    return root_positions, offsets


def find_moving(positions: Mapping[int, Tensor], offsets: Tensor) -> dict[int, float]:
    """Returns the joints that clearly move away from their parents, and how far at most.

    Args:
        positions: (T, 3) of each joint that has positions.
        offsets: (J, 3), the means of these positions; for the other joints their offsets.
    """
    notable = NOTABLE_STRETCH * offsets.norm(dim=1).sum()
    stretches = {j: (x - offsets[j]).norm(dim=1).max() for j, x in positions.items() if j}
    return {j: stretch.item() for j, stretch in stretches.items() if stretch > notable}


def find_still(positions: Mapping[int, Tensor], rotations: Tensor) -> set[int]:
    """Returns the joints whose positions and rotations are the same in all frames."""
    still = (rotations == rotations[:1]).all(dim=0).flatten(1).all(dim=1).nonzero().flatten()
    moved = {j for j, places in positions.items() if (places != places[:1]).any()}
    return set(still.tolist()) - moved


def find_carrier(
    joints: Sequence[Joint], moving: Collection[int], still: Collection[int]
) -> int | None:
    """Returns the joint whose positions move the whole person; None if there is none.

    Such joints are the hips on a root like "Reference" or "Armature". All joints above them have
    one child, or stand still.

    Args:
        moving: the joints that move away from their parents.
        still: the joints whose positions and rotations never change.
    """
    sizes = [1] * len(joints)
    for joint in range(len(joints) - 1, 0, -1):
        sizes[joints[joint].parent] += sizes[joint]
    at = 0
    while children := [j for j, joint in enumerate(joints) if j and joint.parent == at]:
        if len(children) > 1 and at not in still:
            return None
        largest = max(children, key=sizes.__getitem__)
        moved = [child for child in children if child in moving]
        if moved:
            return largest if moved == [largest] else None
        at = largest
    return None


def turn_to_world(
    vectors: Tensor, joints: Sequence[Joint], rotations: Tensor, joint: int
) -> Tensor:
    """Turns vectors (T, 3) from the axes of the parent of a joint to the axes of the world."""
    while (joint := joints[joint].parent) >= 0:
        vectors = (rotations[:, joint] @ vectors[:, :, None]).squeeze(-1)
    return vectors


def warn_of_moving(
    path: Path, joints: Sequence[Joint], moving: Mapping[int, float], carrier: int | None
) -> None:
    """Warns of joints that move away from their parents, and says what becomes of it."""
    for j, distance in moving.items():
        result = "its mean position is taken"
        if j == carrier:
            result = f"the root {joints[0].name} takes its path, and all joints move with the root"
        warnings.warn(
            f"{path}: {joints[j].name} moves away from its parent, by up to {distance:.4g} units; "
            f"{result}",
            stacklevel=4,
        )


def find_up(*extents: Tensor) -> Literal["y", "z"]:
    """Returns the axis that points up for poses in boxes of these sizes (3,)."""
    return "z" if all(map(stands_along_z, extents)) else "y"


def stands_along_z(extent: Tensor) -> bool:
    """Whether a person in a box of this size (3,) clearly stands along z, and not along y."""
    return bool(extent[2] > UPRIGHT * extent[1])


def make_skeleton(
    joints: Sequence[Joint],
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
            if any(end)  # an end site without length is a placeholder
        ),
        orders=orders,
        unit=unit,
        up=up,
    )


def guess_unit(size: float) -> float:
    """Returns metres per unit for a person of ``size`` units along the bones.

    It is the unit among metre, centimetre, millimetre, inch and the 56.444 mm of CMU that makes the
    length along the bones from toes to fingertips most like 2.3 m. If none makes the size of an
    adult, it is a metre, centimetre or millimetre that makes a child or an upper body. If none
    does, it is the unit that makes this length 2.3 m.
    """
    if not size:
        return 1.0
    unit = min(UNITS, key=lambda unit: abs(math.log(unit * size / TYPICAL_SIZE)))
    if 1 / PLAUSIBLE < unit * size / TYPICAL_SIZE < PLAUSIBLE:
        return unit
    for unit in USUAL_UNITS:
        if SMALLEST_SIZE <= unit * size <= TYPICAL_SIZE:
            return unit
    # The unit is rounded, so that it stays the same when the file is written again.
    return float(f"{TYPICAL_SIZE / size:.2g}")


def warn_of_doubtful_unit(path: Path, size: float, unit: float) -> None:
    """Warns if a person is a tall adult in a rare unit, and a small child in a usual one.

    Args:
        size: the length of the person along the bones, in units of the file.
        unit: the guess, in metres.
    """
    others = [each for each in USUAL_UNITS if SMALLEST_WALKER <= each * size <= TYPICAL_SIZE]
    if others and unit in UNITS and unit not in USUAL_UNITS:
        warnings.warn(
            f"{path}: its unit is guessed to be {unit:g} m, which makes a tall adult of "
            f"{unit * size:.2f} m along the bones; {others[0]:g} m would make a small child of "
            f"{others[0] * size:.2f} m. Name the unit with --unit (in Python unit=...)",
            stacklevel=3,
        )


def euler_to_rotations(angles: Tensor, orders: tuple[str, ...]) -> Tensor:
    """Returns rotations (T, J, 3, 3) of Euler angles (T, J, 3) in degrees."""
    rotations = angles.new_empty(*angles.shape, 3)
    for order in set(orders):
        joints = [j for j, other in enumerate(orders) if other == order]
        rotations[:, joints] = roma.euler_to_rotmat(order, angles[:, joints], degrees=True)
    return rotations


def rotations_to_euler(rotations: Tensor, orders: tuple[str, ...]) -> Tensor:
    """Returns Euler angles (T, J, 3) in degrees, without jumps of whole turns between frames."""
    angles = rotations.new_empty(rotations.shape[:-1])
    for order in set(orders):
        joints = [j for j, other in enumerate(orders) if other == order]
        converted = roma.rotmat_to_euler(order, rotations[:, joints], degrees=True)
        assert isinstance(converted, Tensor)  # not a tuple, which is another option of roma
        angles[:, joints] = converted
    return torch.from_numpy(np.unwrap(angles.numpy(), period=360.0, axis=0))


def write_bvh(path: str | os.PathLike[str], clip: MotionClip) -> None:
    """Writes a BVH file that Blender and others read. If writing fails, no file is left.

    Joints are in the order of the tree, depth first. Lengths are in the unit of the skeleton, with
    6 digits after the point, as angles. The root has positions. The axis of the skeleton points up.
    If this axis is z but the rest pose stands along y, as in files of AMASS, y points up instead,
    because readers find the axis by the rest pose.

    Raises:
        FileError: the file cannot be written.
    """
    skeleton = clip.skeleton
    if stands_along_z(skeleton.rest_extent):
        clip = to_file_axes(clip)
    hierarchy, order = write_hierarchy(skeleton)
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
