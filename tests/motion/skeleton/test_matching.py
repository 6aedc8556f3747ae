"""Skeletons are matched by the names of their joints, or refused with the reason."""

from dataclasses import replace

import pytest
import torch

from motion.errors import MotionError
from motion.skeleton.matching import match_skeletons
from motion.skeleton.packaged import HUMANML3D, SMPLX
from motion.skeleton.tree import Skeleton
from tests.motion.helpers import depth_first, random_clip, random_skeleton

# The packaged body of 22 joints, with Mixamo's names, the right side first.
MIXAMO_NAMES = {
    "pelvis": "Hips",
    **{f"spine{n}": f"Spine{n - 1 or ''}" for n in (1, 2, 3)},
    "neck": "Neck",
    "head": "Head",
    **{
        f"{side}_{smpl}": f"{side.title()}{mixamo}"
        for side in ("left", "right")
        for smpl, mixamo in (
            *(("hip", "UpLeg"), ("knee", "Leg"), ("ankle", "Foot"), ("foot", "ToeBase")),
            *(("collar", "Shoulder"), ("shoulder", "Arm"), ("elbow", "ForeArm"), ("wrist", "Hand")),
        )
    },
}


def rename(skeleton: Skeleton, names: dict[str, str], prefix: str = "") -> Skeleton:
    return replace(skeleton, names=tuple(prefix + names.get(name, name) for name in skeleton.names))


MIXAMO = rename(depth_first(HUMANML3D), MIXAMO_NAMES, "mixamorig:")


@pytest.mark.parametrize("prefix", ["", "mixamorig:", "Armature_"])
def test_another_order_is_found_by_name(prefix: str) -> None:
    wanted = random_skeleton(9, seed=3)
    own = rename(depth_first(wanted), {}, prefix)
    assert own.names != wanted.names
    matching = match_skeletons(own, wanted)
    assert matching.arranged == wanted
    clip = random_clip(own)
    arranged = matching.arrange(clip)
    expected = clip.pose.positions[:, list(matching.order)]
    assert torch.equal(arranged.pose.positions, expected)
    back = matching.restore(arranged)
    assert back.skeleton == own and torch.equal(back.rotations, clip.rotations)


def test_names_of_another_program() -> None:
    matching = match_skeletons(MIXAMO, HUMANML3D)
    assert matching.arranged == replace(HUMANML3D, end_sites=matching.arranged.end_sites)
    pairs = {MIXAMO.names[own]: HUMANML3D.names[j] for j, own in enumerate(matching.order)}
    assert pairs == {f"mixamorig:{own}": name for name, own in MIXAMO_NAMES.items()}


def test_missing_and_other_joints_are_named() -> None:
    with pytest.raises(MotionError, match=r"has no jaw, left_eye_smplhf, .* more$"):
        match_skeletons(MIXAMO, SMPLX)
    with pytest.raises(MotionError, match=r"has jaw, .* more, which the model has not"):
        match_skeletons(SMPLX, HUMANML3D)
    other = rename(HUMANML3D, {"left_foot": "tail"})
    with pytest.raises(MotionError, match=r"has no left_foot and has tail, which the model has"):
        match_skeletons(other, HUMANML3D)


def test_another_tree_is_told() -> None:
    names = HUMANML3D.names
    parents = list(HUMANML3D.parents)
    parents[names.index("left_collar")] = names.index("spine2")
    with pytest.raises(MotionError, match=r"has left_collar on spine2, but .* it is on spine3"):
        match_skeletons(replace(HUMANML3D, parents=tuple(parents)), HUMANML3D)


def test_another_rest_pose_is_told() -> None:
    offsets = list(HUMANML3D.offsets)
    for side, sign in (("left", 1), ("right", -1)):
        for joint in ("elbow", "wrist"):  # arms that hang down
            offsets[HUMANML3D.names.index(f"{side}_{joint}")] = (sign * 0.02, -0.26, 0.0)
    hanging = replace(HUMANML3D, offsets=tuple(offsets))
    with pytest.raises(MotionError, match=r"another rest pose: \w+_(elbow|wrist) .* 8\d deg"):
        match_skeletons(hanging, HUMANML3D)


def test_other_proportions_are_described() -> None:
    assert match_skeletons(MIXAMO, HUMANML3D).describe_proportions() == ""

    def scale(by: float, only: str = "") -> Skeleton:
        offsets = [
            tuple(by * x for x in offset) if only in name else offset
            for name, offset in zip(MIXAMO.names, MIXAMO.offsets, strict=True)
        ]
        return replace(MIXAMO, offsets=tuple(offsets))

    assert match_skeletons(scale(1.05), HUMANML3D).describe_proportions() == ""
    child = match_skeletons(scale(0.6), HUMANML3D).describe_proportions()
    assert child.startswith("0.6 times as long (from 0.6, ")
    legs = match_skeletons(scale(1.25, "Leg"), HUMANML3D).describe_proportions()
    assert legs.startswith("1 times as long") and legs.endswith("to 1.2, mixamorig:RightLeg)")
