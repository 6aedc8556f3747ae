"""Sides and feet are known by what programs commonly call joints."""

import pytest

from motion.skeleton.joint_names import find_feet, side_of
from motion.skeleton.packaged import HUMANML3D, KIT, SMPLX

MIXAMO = "Hips Spine LeftUpLeg LeftLeg LeftFoot LeftToeBase LeftToe_End RightUpLeg RightLeg"
MIXAMO += " RightFoot RightToeBase RightToe_End"
NAMES = {
    "mixamo": (MIXAMO, ("LeftToeBase", "RightToeBase")),
    "mixamo with its prefix": (
        " ".join(f"mixamorig:{name}" for name in MIXAMO.split()),
        ("mixamorig:LeftToeBase", "mixamorig:RightToeBase"),
    ),
    "CMU": (
        "Hips LHipJoint LeftUpLeg LeftLeg LeftFoot LeftToeBase RHipJoint RightUpLeg RightFoot",
        ("LeftToeBase", "RightFoot"),
    ),
    "another CMU": ("Hips RightAnkle RightToe LeftAnkle LeftToe", ("LeftToe", "RightToe")),
    "CMU's own": ("root lfemur ltibia lfoot ltoes rfemur rfoot rtoes", ("ltoes", "rtoes")),
    "daz": ("hip lThigh lShin lFoot lToe rThigh rShin rFoot rToe", ("lToe", "rToe")),
    "blender": ("root foot.L toe.L foot.R toe.R", ("toe.L", "toe.R")),
    "unreal": ("pelvis foot_l ball_l foot_r ball_r", ("foot_l", "foot_r")),
    "ankles alone": ("root left_ankle right_ankle", ("left_ankle", "right_ankle")),
}


@pytest.mark.parametrize("kind", NAMES)
def test_feet_of_common_skeletons(kind: str) -> None:
    joints, feet = NAMES[kind]
    names = joints.split()
    assert find_feet(names) == tuple(map(names.index, feet))


def test_feet_of_the_packaged_skeletons() -> None:
    # The same as in the code of HumanML3D and KIT.
    assert find_feet(SMPLX.names) == find_feet(HUMANML3D.names) == (10, 11)
    assert find_feet(KIT.names) == (20, 15)


def test_a_name_with_spaces() -> None:
    names = ["Bip01", "Bip01 L Foot", "Bip01 L Toe0", "Bip01 R Foot", "Bip01 R Toe0"]
    assert find_feet(names) == (2, 4)


@pytest.mark.parametrize("names", [(), ("a", "b"), ("LeftFoot", "LeftToe"), ("foot1", "foot2")])
def test_feet_that_are_not_known(names: tuple[str, ...]) -> None:
    assert find_feet(names) == ()


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("leftarm", "left"),
        ("hand_r", "right"),
        ("RThumb", "right"),
        ("L5", None),  # a vertebra
        ("Bright", None),
        ("Bone.001", None),
    ],
)
def test_sides(name: str, side: str | None) -> None:
    assert side_of(name) == side
