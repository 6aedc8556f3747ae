"""Features of HumanML3D and KIT out of positions of joints.

The features are the features of "Generating Diverse and Natural 3D Human Motions from Text" (Guo et
al., 2022): the channels that ``humanml3d`` describes, computed as the published processing of these
data sets does (motion_representation.ipynb in EricGuo5513/HumanML3D). This file follows the
arithmetic of that processing, also where it surprises:

- Each rotation is the shortest turn from a fixed direction to a bone, so bones have no twist, and
  arms count from the root and not from the chest.
- The heading is smoothed over time with a Gaussian of 20 frames. In it the hips count against the
  shoulders, while the heading of the first frame adds both.
- The result has a frame less than the motion, because each frame tells the step to the next.

The processing gives all motions the bone lengths of one recording of its data set. Lengths are not
packaged here: name joints of that data set as ``target``, or keep the lengths of the motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from motion.errors import MotionError
from motion.features.heading import make_turns
from motion.features.humanml3d import rotation_channels
from motion.features.rotations import from_rot6d, to_rot6d, turn
from motion.skeleton.inverse_kinematics import find_shortest_turns
from motion.skeleton.packaged import HUMANML3D, KIT
from motion.skeleton.tree import Skeleton

UP, FORWARD = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
SMOOTHING = 20.0  # frames, the standard deviation of the Gaussian
SMOOTHING_REACH = 4.0  # standard deviations after which the Gaussian ends
LEFT, RIGHT, DOWN = (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class JointLayout:
    """What the processing of a data set knows about its joints.

    Attributes:
        skeleton: the skeleton of the data set; its unit is the unit of the positions.
        chains: paths of joints along which rotations add up. The first joint of each path counts
            as turned like the root.
        directions: the direction (x, y, z) of each bone for a rotation of zero.
        hips, shoulders: the joints (right, left).
        feet: the joints whose contacts are told, left then right.
        shin: two joints, the lengths of whose bones are compared when a motion is scaled.
        contact: a joint rests if the square of its step to the next frame is less, in the unit of
            the skeleton.
    """

    skeleton: Skeleton
    chains: tuple[tuple[int, ...], ...]
    directions: tuple[tuple[float, float, float], ...]
    hips: tuple[int, int]
    shoulders: tuple[int, int]
    feet: tuple[int, int, int, int]
    shin: tuple[int, int]
    contact: float


HUMANML3D_LAYOUT = JointLayout(
    skeleton=HUMANML3D,
    chains=(
        (0, 2, 5, 8, 11),
        (0, 1, 4, 7, 10),
        (0, 3, 6, 9, 12, 15),
        (9, 14, 17, 19, 21),
        (9, 13, 16, 18, 20),
    ),
    directions=(
        (0.0, 0.0, 0.0), LEFT, RIGHT, UP, DOWN, DOWN, UP, DOWN, DOWN, UP, FORWARD, FORWARD,
        UP, LEFT, RIGHT, FORWARD, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN,
    ),
    hips=(2, 1),
    shoulders=(17, 16),
    feet=(7, 10, 8, 11),
    shin=(5, 8),
    contact=0.002,
)  # fmt: skip
KIT_LAYOUT = JointLayout(
    skeleton=KIT,
    chains=(
        (0, 11, 12, 13, 14, 15),
        (0, 16, 17, 18, 19, 20),
        (0, 1, 2, 3, 4),
        (3, 5, 6, 7),
        (3, 8, 9, 10),
    ),
    directions=(
        (0.0, 0.0, 0.0), UP, UP, UP, UP, LEFT, DOWN, DOWN, RIGHT, DOWN, DOWN,
        LEFT, DOWN, DOWN, FORWARD, FORWARD, RIGHT, DOWN, DOWN, FORWARD, FORWARD,
    ),
    hips=(11, 16),
    shoulders=(5, 8),
    feet=(19, 20, 14, 15),
    shin=(17, 18),
    contact=0.05,
)  # fmt: skip
# The joint of HumanML3D for each joint of KIT; the middle of a foot lies between two joints.
KIT_FROM_HUMANML3D = (
    *(0, 3, 9, 12, 15),
    *(17, 19, 21, 16, 18, 20),
    *(2, 5, 8, 8, 11),
    *(1, 4, 7, 7, 10),
)
KIT_MIDDLE_FEET = (14, 19)
# How far the middle of a foot is on the way from the ankle to the toe, in the mean of KIT.
MIDDLE_FOOT = 0.4
LAYOUTS = {layout.skeleton.joints: layout for layout in (HUMANML3D_LAYOUT, KIT_LAYOUT)}


def extract_joint_features(positions: Tensor, *, target: Tensor | None = None) -> Tensor:
    """Returns the features (T - 1, 12 J - 1) of joints (T, J, 3), in the dtype of the joints.

    The motion is put on the floor, begins at the origin, and faces +z in its first frame.

    Args:
        positions: 22 joints of HumanML3D or 21 of KIT, in metres, y up, at 20 frames per second for
            HumanML3D and at 12.5 for KIT.
        target: (J, 3), joints in any pose, in metres, whose bone lengths the result gets, as the
            published processing takes them from one recording; None keeps the lengths.

    Returns:
        Features in metres for HumanML3D, and in millimetres for KIT.

    Raises:
        MotionError: these are not such joints, there are fewer than two frames, or a bone has no
            length.
    """
    layout = find_layout(positions)
    positions = positions / layout.skeleton.unit
    if target is not None:
        find_layout(target[None].expand(2, -1, -1))
        positions = give_lengths(positions, target.to(positions) / layout.skeleton.unit, layout)
    positions = place_start(positions, layout)
    headings, rotations = find_rotations(positions, layout)
    turns, steps = headings[1:] @ headings[:-1].mT, positions.diff(dim=0)
    # Half of the angle: the processing takes the arc sine of a component of a quaternion.
    angles = torch.atan2(turns[:, 0, 2], turns[:, 0, 0]) / 2
    root_steps = turn(headings[1:], steps[:, 0])[:, [0, 2]]
    local = positions.clone()
    local[..., [0, 2]] -= positions[:, :1, [0, 2]]
    local = turn(headings[:, None], local)
    velocities = turn(headings[:-1, None], steps)
    contacts = steps[:, list(layout.feet)].square().sum(dim=-1) < layout.contact
    parts = [
        angles[:, None],
        root_steps,
        local[:-1, 0, 1:2],
        local[:-1, 1:].flatten(1),
        to_rot6d(rotations[:-1, 1:], "columns").flatten(1),
        velocities.flatten(1),
        contacts.to(positions),
    ]
    return torch.cat(parts, dim=1)


def recover_turned_positions(features: Tensor, positions: Tensor) -> Tensor:
    """Returns joints (T, J, 3) in metres where the rotations of features (T, D) say they are.

    Bones have the mean lengths of ``positions`` (T, J, 3), and the root is where it is there.
    """
    layout = LAYOUTS[positions.shape[1]]
    parents = list(layout.skeleton.parents[1:])
    lengths = (positions[:, 1:] - positions[:, parents]).norm(dim=-1).mean(dim=0)
    channels = rotation_channels(features.shape[1])
    rotations = from_rot6d(features[:, channels].unflatten(1, (-1, 6)), "columns")
    angles = features[:, 0].cumsum(dim=0) - features[:, 0]
    root = make_turns(2 * angles)
    directions, placed = positions.new_tensor(layout.directions), positions.clone()
    for chain in layout.chains:
        turned = root
        for parent, joint in pairwise(chain):
            turned = turned @ rotations[:, joint - 1]
            placed[:, joint] = placed[:, parent] + turned @ directions[joint] * lengths[joint - 1]
    return placed


def to_kit_joints(positions: Tensor) -> Tensor:
    """Returns joints of KIT (T, 21, 3) for joints of HumanML3D (T, 22, 3), in metres.

    There is no published way. Joints are taken that have nearly the same places: two of the three
    joints of the spine; neck and head for the lower and the upper neck; the balls of the feet for
    the toes; and points between ankles and balls for the middle of the feet.
    """
    joints = positions[:, list(KIT_FROM_HUMANML3D)]
    for middle in KIT_MIDDLE_FEET:
        joints[:, middle] = torch.lerp(joints[:, middle - 1], joints[:, middle + 1], MIDDLE_FOOT)
    return joints


def find_layout(positions: Tensor) -> JointLayout:
    """Returns the layout of joints (T, J, 3).

    Raises:
        MotionError: they are not joints of HumanML3D or KIT, there are fewer than two frames, or a
            bone has no length.
    """
    shape = tuple(positions.shape)
    if len(shape) != 3 or shape[1] not in LAYOUTS or shape[2] != 3:
        raise MotionError(
            f"joints are {shape}; (T, 22, 3) of HumanML3D or (T, 21, 3) of KIT are needed"
        )
    if shape[0] < 2:
        raise MotionError(f"the motion has {shape[0]} frames; features need at least 2")
    layout = LAYOUTS[shape[1]]
    parents = layout.skeleton.parents
    lengths = (positions[:, 1:] - positions[:, parents[1:]]).norm(dim=-1)
    if not (lengths > 0).all():
        frame, joint = (lengths <= 0).nonzero()[0].tolist()
        always = bool((lengths[:, joint] <= 0).all())
        when, advice = (
            ("all frames", "move the motion to another body first, with convert --skeleton")
            if always
            else (f"frame {frame}", "leave this frame out")
        )
        raise MotionError(
            f"joint {joint + 1} ({layout.skeleton.names[joint + 1]}) is at the place of its parent "
            f"in {when}, so its bone has no direction; {advice}"
        )
    return layout


def give_lengths(positions: Tensor, target: Tensor, layout: JointLayout) -> Tensor:
    """Returns joints (T, J, 3) with the bone lengths of ``target`` (J, 3).

    Bones keep their directions. The path of the root is scaled by the lengths of the legs.
    """
    wanted, own = (measure_bones(pose, layout) for pose in (target, positions[0]))
    shin = list(layout.shin)
    placed = positions.clone()
    placed[:, 0] = positions[:, 0] * (wanted[shin].sum() / own[shin].sum())
    for joint, parent in list(enumerate(layout.skeleton.parents))[1:]:
        bone = positions[:, joint] - positions[:, parent]
        placed[:, joint] = placed[:, parent] + F.normalize(bone, dim=-1) * wanted[joint]
    return placed


def measure_bones(pose: Tensor, layout: JointLayout) -> Tensor:
    """Returns the length of the bone that leads to each joint: (J,) for a pose (J, 3)."""
    parents = torch.tensor([0, *layout.skeleton.parents[1:]])
    return (pose - pose[parents]).norm(dim=-1)


def place_start(positions: Tensor, layout: JointLayout) -> Tensor:
    """Returns joints that touch the floor and start above the origin, facing +z."""
    start = positions[0, 0].clone()
    start[1] = positions[..., 1].min()
    first = positions[:1]
    across = point_across(first, layout.hips) + point_across(first, layout.shoulders)
    return turn(find_turn_to_front(across), positions - start)


def find_rotations(positions: Tensor, layout: JointLayout) -> tuple[Tensor, Tensor]:
    """Finds the heading, and the rotations of all joints.

    Args:
        positions: (T, J, 3).

    Returns:
        headings: (T, 3, 3), which turn the front of the person to +z; nothing in the first frame.
        rotations: (T, J, 3, 3); each turns from the axes of the joint before it in its chain.
    """
    # The processing mixes up the sides of the hips, but not of the shoulders.
    across = point_across(positions, layout.shoulders) - point_across(positions, layout.hips)
    front = torch.linalg.cross(
        positions.new_tensor(UP).expand_as(across), F.normalize(across, dim=1)
    )
    front = smooth_over_time(front)
    headings = find_shortest_turns(front, positions.new_tensor(FORWARD).expand_as(front))
    headings[0] = torch.eye(3).to(positions)
    rotations = headings[:, None].expand(-1, positions.shape[1], 3, 3).clone()
    directions = positions.new_tensor(layout.directions)
    for chain in layout.chains:
        before = headings
        for parent, joint in pairwise(chain):
            bone = positions[:, joint] - positions[:, parent]
            turned = find_shortest_turns(directions[joint].expand_as(bone), bone)
            rotations[:, joint] = before.mT @ turned
            before = turned
    return headings, rotations


def point_across(positions: Tensor, pair: tuple[int, int]) -> Tensor:
    """Returns the vector (T, 3) from the left to the right of a pair (right, left) of joints."""
    right, left = pair
    return positions[:, right] - positions[:, left]


def find_turn_to_front(across: Tensor) -> Tensor:
    """Returns the rotations (T, 3, 3) after which vectors (T, 3) to the right point to -x."""
    front = torch.linalg.cross(across.new_tensor(UP).expand_as(across), across)
    return find_shortest_turns(front, across.new_tensor(FORWARD).expand_as(front))


def smooth_over_time(values: Tensor) -> Tensor:
    """Smooths values (T, C) with a Gaussian; the first and the last row are repeated."""
    reach = int(SMOOTHING_REACH * SMOOTHING + 0.5)
    places = torch.arange(-reach, reach + 1, dtype=values.dtype)
    kernel = torch.softmax(-0.5 * (places / SMOOTHING) ** 2, dim=0).to(values.device)
    padded = torch.cat([values[:1].expand(reach, -1), values, values[-1:].expand(reach, -1)])
    return F.conv1d(padded.T[:, None], kernel[None, None]).squeeze(1).T
