"""The skeletons of this package: SMPL-X, HumanML3D and KIT.

The trees and the order of joints are the same as in these data sets. The lengths are our own: a
generic adult of about 1.72 m in a T pose, facing +z, with the left side at +x. The body model of
SMPL-X is licensed and is not included, and no length was measured from data of its users.
"""

from __future__ import annotations

from motion.skeleton.tree import EndSite, Skeleton

# Joint, parent, offset from the parent in metres. Each joint of the left side has a twin at the
# right side.
SPINE = (
    ("pelvis", "", (0.0, -0.35, 0.01)),  # the origin is in the chest, as in SMPL-X
    ("spine1", "pelvis", (0.0, 0.11, -0.015)),
    ("spine2", "spine1", (0.0, 0.13, 0.005)),
    ("spine3", "spine2", (0.0, 0.055, 0.01)),
    ("neck", "spine3", (0.0, 0.21, -0.03)),
    ("head", "neck", (0.0, 0.085, 0.03)),
    ("jaw", "head", (0.0, 0.0, 0.02)),
)
LEFT_SIDE = (
    ("left_hip", "pelvis", (0.085, -0.085, -0.005)),
    ("left_knee", "left_hip", (0.01, -0.39, 0.005)),
    ("left_ankle", "left_knee", (-0.005, -0.395, -0.025)),
    ("left_foot", "left_ankle", (0.015, -0.055, 0.125)),
    ("left_collar", "spine3", (0.045, 0.12, -0.02)),
    ("left_shoulder", "left_collar", (0.125, 0.03, -0.01)),
    ("left_elbow", "left_shoulder", (0.265, -0.005, -0.01)),
    ("left_wrist", "left_elbow", (0.25, 0.005, 0.005)),
    ("left_eye_smplhf", "head", (0.032, 0.065, 0.07)),
    ("left_index1", "left_wrist", (0.1, 0.0, 0.024)),
    ("left_index2", "left_index1", (0.035, 0.0, 0.002)),
    ("left_index3", "left_index2", (0.024, 0.0, 0.0)),
    ("left_middle1", "left_wrist", (0.104, 0.003, 0.003)),
    ("left_middle2", "left_middle1", (0.038, 0.0, 0.0)),
    ("left_middle3", "left_middle2", (0.026, 0.0, 0.0)),
    ("left_pinky1", "left_wrist", (0.085, -0.006, -0.036)),
    ("left_pinky2", "left_pinky1", (0.025, 0.0, -0.004)),
    ("left_pinky3", "left_pinky2", (0.018, 0.0, -0.002)),
    ("left_ring1", "left_wrist", (0.097, 0.0, -0.017)),
    ("left_ring2", "left_ring1", (0.034, 0.0, -0.002)),
    ("left_ring3", "left_ring2", (0.025, 0.0, -0.001)),
    ("left_thumb1", "left_wrist", (0.03, -0.016, 0.03)),
    ("left_thumb2", "left_thumb1", (0.031, -0.007, 0.022)),
    ("left_thumb3", "left_thumb2", (0.026, -0.002, 0.014)),
)
ENDS = (
    ("head", (0.0, 0.175, 0.01)),
    ("jaw", (0.0, -0.06, 0.075)),
    ("left_eye_smplhf", (0.0, 0.0, 0.02)),
    ("left_foot", (0.0, -0.012, 0.065)),
    ("left_index3", (0.022, 0.0, 0.0)),
    ("left_middle3", (0.024, 0.0, 0.0)),
    ("left_pinky3", (0.018, 0.0, 0.0)),
    ("left_ring3", (0.022, 0.0, 0.0)),
    ("left_thumb3", (0.024, 0.0, 0.01)),
)
FINGERS = tuple(f"{finger}{n}" for finger in ("index", "middle", "pinky", "ring", "thumb")
                for n in (1, 2, 3))  # fmt: skip
HUMANML3D_ORDER = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2",
    "left_ankle", "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar",
    "right_collar", "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
    "left_wrist", "right_wrist",
)  # fmt: skip
SMPLX_ORDER = (
    *HUMANML3D_ORDER,
    *("jaw", "left_eye_smplhf", "right_eye_smplhf"),
    *(f"left_{finger}" for finger in FINGERS),
    *(f"right_{finger}" for finger in FINGERS),
)

# Joint, parent and offset in the skeleton of KIT, with the joints of the Master Motor Map. The
# right side comes first: in the features these joints are at -x of a person who faces +z.
KIT_JOINTS = (
    ("root", -1, (0.0, 0.0, 0.0)),
    ("lower_back", 0, (0.0, 0.07, 0.0)),
    ("torso", 1, (0.0, 0.16, 0.0)),
    ("lower_neck", 2, (0.0, 0.27, 0.0)),
    ("upper_neck", 3, (0.0, 0.12, 0.0)),
    ("right_shoulder", 3, (-0.18, -0.03, 0.0)),
    ("right_elbow", 5, (-0.28, 0.0, 0.0)),
    ("right_wrist", 6, (-0.25, 0.0, 0.0)),
    ("left_shoulder", 3, (0.18, -0.03, 0.0)),
    ("left_elbow", 8, (0.28, 0.0, 0.0)),
    ("left_wrist", 9, (0.25, 0.0, 0.0)),
    ("right_hip", 0, (-0.09, -0.07, 0.0)),
    ("right_knee", 11, (0.0, -0.4, 0.0)),
    ("right_ankle", 12, (0.0, -0.4, 0.0)),
    ("right_middle_foot", 13, (0.0, -0.06, 0.12)),
    ("right_toe", 14, (0.0, 0.0, 0.06)),
    ("left_hip", 0, (0.09, -0.07, 0.0)),
    ("left_knee", 16, (0.0, -0.4, 0.0)),
    ("left_ankle", 17, (0.0, -0.4, 0.0)),
    ("left_middle_foot", 18, (0.0, -0.06, 0.12)),
    ("left_toe", 19, (0.0, 0.0, 0.06)),
)


def mirror(name: str, offset: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """Returns the right twin of a left joint: its name and offset."""
    x, y, z = offset
    return name.replace("left_", "right_"), (-x, y, z)


def select(order: tuple[str, ...], ends: tuple[tuple[str, tuple[float, ...]], ...]) -> Skeleton:
    """Returns the skeleton of the joints in ``order``, with the end sites ``ends``."""
    parents = {name: parent for name, parent, _ in (*SPINE, *LEFT_SIDE)}
    offsets: dict[str, tuple[float, ...]] = {
        name: offset for name, _, offset in (*SPINE, *LEFT_SIDE)
    }
    for name, parent, offset in LEFT_SIDE:
        twin, mirrored_offset = mirror(name, offset)
        parents[twin], offsets[twin] = parent.replace("left_", "right_"), mirrored_offset
    index = {name: joint for joint, name in enumerate(order)}
    sites = dict(ends) | dict(mirror(*end) for end in ends if end[0].startswith("left_"))
    return Skeleton(
        names=order,
        parents=tuple(index.get(parents[name], -1) for name in order),
        offsets=tuple(offsets[name] for name in order),
        end_sites=tuple(EndSite(joint=index[name], offset=sites[name]) for name in sites),
    )


SMPLX = select(SMPLX_ORDER, ENDS)
HUMANML3D = select(HUMANML3D_ORDER, ())
KIT = Skeleton(
    names=tuple(name for name, _, _ in KIT_JOINTS),
    parents=tuple(parent for _, parent, _ in KIT_JOINTS),
    offsets=tuple(offset for _, _, offset in KIT_JOINTS),
    unit=0.001,
)
PACKAGED_SKELETONS = (SMPLX, HUMANML3D, KIT)
