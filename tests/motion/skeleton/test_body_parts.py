"""Joints are known as parts of a body by what programs call them."""

import re

import pytest

from motion.skeleton.body_parts import find_parts
from motion.skeleton.packaged import HUMANML3D, KIT, SMPLX
from motion.skeleton.tree import Skeleton

ARM = ("collar", "upper_arm", "lower_arm", "hand")
LEG = ("upper_leg", "lower_leg", "foot", "toes")


def body(trunk: str, neck: str, arm: str, leg: str, *more: tuple[str, str]) -> Skeleton:
    """A body whose spine ends where arms and neck begin.

    Args:
        trunk: the names from hips to chest.
        neck: the names from neck to head.
        arm, leg: names of the left side, with the side as {l} or {left}.
        more: other joints, each with its parent.
    """
    joints: list[tuple[str, str]] = []

    def hang(names: str, parent: str) -> None:
        for name in names.split():
            joints.append((name, parent))
            parent = name

    hang(trunk, "")
    chest = joints[-1][0]
    hang(neck, chest)
    for l, left in (("l", "left"), ("r", "right")):  # noqa: E741
        words = {"l": l, "L": l.upper(), "left": left, "Left": left.title()}
        hang(arm.format(**words), chest)
        hang(leg.format(**words), joints[0][0])
    joints += more
    names = [name for name, _ in joints]
    return Skeleton(
        names=tuple(names),
        parents=tuple(names.index(parent) if parent else -1 for _, parent in joints),
        offsets=((0.0, 0.1, 0.0),) * len(joints),
    )


MIXAMO = body(
    *("mixamorig:Hips mixamorig:Spine mixamorig:Spine1 mixamorig:Spine2",),
    *("mixamorig:Neck mixamorig:Head",),
    "mixamorig:{Left}Shoulder mixamorig:{Left}Arm mixamorig:{Left}ForeArm mixamorig:{Left}Hand",
    "mixamorig:{Left}UpLeg mixamorig:{Left}Leg mixamorig:{Left}Foot mixamorig:{Left}ToeBase",
)
BODIES = {
    "Mixamo": MIXAMO,
    "LAFAN1": body(
        "Hips Spine Spine1 Spine2",
        "Neck Head",
        "{Left}Shoulder {Left}Arm {Left}ForeArm {Left}Hand",
        "{Left}UpLeg {Left}Leg {Left}Foot {Left}Toe",
    ),
    "Xsens": body(
        "Hips Chest Chest2 Chest3",
        "Neck Head",
        "{Left}Collar {Left}Shoulder {Left}Elbow {Left}Wrist",
        "{Left}Hip {Left}Knee {Left}Ankle {Left}Toe",
    ),
    "SMPL": body(
        "pelvis spine1 spine2 spine3",
        "neck head",
        "{left}_collar {left}_shoulder {left}_elbow {left}_wrist",
        "{left}_hip {left}_knee {left}_ankle {left}_foot",
    ),
    "Unreal": body(
        "pelvis spine_01 spine_02 spine_03",
        "neck_01 head",
        "clavicle_{l} upperarm_{l} lowerarm_{l} hand_{l}",
        "thigh_{l} calf_{l} foot_{l} ball_{l}",
    ),
    "Unity": body(
        "Hips Spine Chest UpperChest",
        "Neck Head",
        "{Left}Shoulder {Left}UpperArm {Left}LowerArm {Left}Hand",
        "{Left}UpperLeg {Left}LowerLeg {Left}Foot {Left}Toes",
    ),
    "Blender": body(
        "hips spine chest upper_chest",
        "neck head",
        "shoulder.{L} upper_arm.{L} forearm.{L} hand.{L}",
        "thigh.{L} shin.{L} foot.{L} toe.{L}",
    ),
    "Blender's Rigify": body(
        "spine spine.001 spine.002 spine.003",
        "spine.004 spine.006",
        "shoulder.{L} upper_arm.{L} forearm.{L} hand.{L}",
        "thigh.{L} shin.{L} foot.{L} toe.{L}",
    ),
    "bones of Rigify that deform": body(
        "DEF-spine DEF-spine.001 DEF-spine.002 DEF-spine.003",
        "DEF-spine.004 DEF-spine.006",
        "DEF-shoulder.{L} DEF-upper_arm.{L} DEF-forearm.{L} DEF-hand.{L}",
        "DEF-thigh.{L} DEF-shin.{L} DEF-foot.{L} DEF-toe.{L}",
    ),
    "Rokoko": body(
        "Hips Spine1 Spine2 Spine3",
        "Neck Head",
        "{Left}Shoulder {Left}Arm {Left}ForeArm {Left}Hand",
        "{Left}Thigh {Left}Shin {Left}Foot {Left}Toe",
    ),
    "OptiTrack": body(
        "Hip Ab Chest UChest",
        "Neck Head",
        "{L}Shoulder {L}UArm {L}FArm {L}Hand",
        "{L}Thigh {L}Shin {L}Foot {L}Toe",
    ),
    "DAZ": body(
        "hip abdomenLower abdomenUpper chestLower",
        "neckLower head",
        "{l}Collar {l}ShldrBend {l}ForearmBend {l}Hand",
        "{l}ThighBend {l}Shin {l}Foot {l}Toe",
    ),
    "a prefix without a mark": body(
        "mixamorigHips mixamorigSpine mixamorigSpine1 mixamorigSpine2",
        "mixamorigNeck mixamorigHead",
        "mixamorig{Left}Shoulder mixamorig{Left}Arm mixamorig{Left}ForeArm mixamorig{Left}Hand",
        "mixamorig{Left}UpLeg mixamorig{Left}Leg mixamorig{Left}Foot mixamorig{Left}ToeBase",
    ),
    "CMU's own": body(
        "root lowerback upperback thorax",
        "lowerneck head",
        "{l}clavicle {l}humerus {l}radius {l}wrist",
        "{l}femur {l}tibia {l}foot {l}toes",
    ),
    "3ds Max's Biped": body(
        "Bip01_Pelvis Bip01_Spine Bip01_Spine1 Bip01_Spine2",
        "Bip01_Neck Bip01_Head",
        "Bip01_{L}_Clavicle Bip01_{L}_UpperArm Bip01_{L}_Forearm Bip01_{L}_Hand",
        "Bip01_{L}_Thigh Bip01_{L}_Calf Bip01_{L}_Foot Bip01_{L}_Toe0",
    ),
    "VRM": body(
        "hips spine chest upperChest",
        "neck head",
        "{left}Shoulder {left}UpperArm {left}LowerArm {left}Hand",
        "{left}UpperLeg {left}LowerLeg {left}Foot {left}Toes",
    ),
    "VRoid": body(
        "J_Bip_C_Hips J_Bip_C_Spine J_Bip_C_Chest J_Bip_C_UpperChest",
        "J_Bip_C_Neck J_Bip_C_Head",
        "J_Bip_{L}_Shoulder J_Bip_{L}_UpperArm J_Bip_{L}_LowerArm J_Bip_{L}_Hand",
        "J_Bip_{L}_UpperLeg J_Bip_{L}_LowerLeg J_Bip_{L}_Foot J_Bip_{L}_ToeBase",
    ),
    "a prefix that all share": body(
        "Character1_Hips Character1_Spine Character1_Spine1 Character1_Spine2",
        "Character1_Neck Character1_Head",
        "Character1_{Left}Shoulder Character1_{Left}Arm Character1_{Left}ForeArm "
        "Character1_{Left}Hand",
        "Character1_{Left}UpLeg Character1_{Left}Leg Character1_{Left}Foot "
        "Character1_{Left}ToeBase",
    ),
}
EXPECTED = (
    *("hips", "spine1", "spine2", "spine3", "neck1", "head"),
    *(f"left_{part}" for part in (*ARM, *LEG)),
    *(f"right_{part}" for part in (*ARM, *LEG)),
)


@pytest.mark.parametrize("program", BODIES)
def test_parts_have_the_same_names_in_all_programs(program: str) -> None:
    assert find_parts(BODIES[program]) == EXPECTED


def test_parts_of_the_packaged_skeletons_are_known() -> None:
    assert set(find_parts(HUMANML3D)) == set(EXPECTED)
    parts = find_parts(SMPLX)
    assert parts[:22] == find_parts(HUMANML3D)
    assert parts[25:28] == ("left_index1", "left_index2", "left_index3")
    assert parts[22:25] == ("jaw", "left_eye", "right_eye")
    assert {"hips", "spine3", "left_upper_arm", "right_toes"} <= set(find_parts(KIT))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("LeftHandThumb2", "left_thumb2"),
        ("index_03_l", "left_index3"),
        ("LeftInHandRing", "left_ring0"),
        ("LeftMiddleProximal", "left_middle1"),
        ("LeftLittleDistal", "left_pinky3"),
        ("f_index.02.L", "left_index2"),
        ("LThumb", "left_thumb1"),
        ("LeftFinger2Medial", "left_index2"),
        ("LeftFinger5Distal", "left_pinky3"),
        ("LeftFinger6Distal", "left_fingerdistal6"),
        ("LeftPropeller", "left_propeller"),
    ],
)
def test_fingers_and_other_joints(name: str, part: str) -> None:
    skeleton = body(
        "Hips Spine",
        "Neck Head",
        "{Left}Arm {Left}Hand",
        "{Left}UpLeg {Left}Foot",
        (name, "LeftHand"),
    )
    assert find_parts(skeleton)[-1] == part


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("{L} Finger0 {L} Finger01 {L} Finger02", "thumb1 thumb2 thumb3"),
        ("{L}_Finger0 {L}_Finger1 {L}_Finger11 {L}_Finger12", "thumb1 index1 index2 index3"),
        ("{L} Finger0 {L} Finger4 {L} Finger41", "thumb1 pinky1 pinky2"),
        # Without a finger 0 nothing tells how they are counted.
        ("{L} Finger1 {L} Finger2", "finger1 finger2"),
        (
            "{left}ThumbMetacarpal {left}ThumbProximal {left}ThumbDistal",
            "thumb1 thumb2 thumb3",
        ),
        (
            "{left}ThumbProximal {left}ThumbIntermediate {left}ThumbDistal",
            "thumb1 thumb2 thumb3",
        ),
        (
            "{Left}Finger1Metacarpal {Left}Finger1Proximal {Left}Finger1Distal "
            "{Left}Finger2Metacarpal {Left}Finger2Proximal",
            "thumb1 thumb2 thumb3 index0 index1",
        ),
        ("{left}IndexMetacarpal {left}IndexProximal {left}ThumbDistal", "index0 index1 thumb3"),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_bones_of_fingers_are_counted_as_their_program_counts(
    names: str, parts: str, side: str
) -> None:
    words = {"left": side, "Left": side.title(), "L": side[0].upper()}
    named = [name.format(**words) for name in re.split(r" (?={)", names)]
    more = [(name, f"{side.title()}Hand") for name in named]
    skeleton = body("Hips Spine", "Neck Head", "{Left}Arm {Left}Hand", "{Left}UpLeg", *more)
    expected = [f"{side}_{part}" for part in parts.split()]
    assert list(find_parts(skeleton)[-len(more) :]) == expected


def test_parts_are_all_different() -> None:
    skeleton = body(
        "Hips Spine",
        "Neck Head",
        "{Left}Arm {Left}Wrist",
        "{Left}UpLeg {Left}Foot",
        ("lhand", "LeftWrist"),
        ("LeftHand", "lhand"),
    )
    parts = find_parts(skeleton)
    assert parts[skeleton.names.index("LeftWrist")] == "left_hand"
    assert len(set(parts)) == skeleton.joints


def test_a_tree_that_is_no_body_keeps_its_names() -> None:
    skeleton = Skeleton(
        names=("Base", "Crank_2", "Crank_3"), parents=(-1, 0, 1), offsets=((0.0, 1.0, 0.0),) * 3
    )
    assert find_parts(skeleton) == ("base", "crank2", "crank3")


def test_a_root_above_the_body_may_lack_its_prefix() -> None:
    names = ("Armature", *(name.replace(":", "_") for name in MIXAMO.names))
    parents = (-1, *(parent + 1 for parent in MIXAMO.parents))
    skeleton = Skeleton(names=names, parents=parents, offsets=((0.0, 0.1, 0.0),) * len(names))
    assert find_parts(skeleton) == ("armature", *EXPECTED)


def test_a_prefix_does_not_tell_a_side() -> None:
    """More than half of the joints are fingers of one hand."""
    fingers = [(f"RightHandIndex{n}", "RightHand") for n in range(1, 30)]
    skeleton = body("Hips Spine", "Neck Head", "{Left}Arm {Left}Hand", "{Left}UpLeg", *fingers)
    assert find_parts(skeleton)[-29:-26] == ("right_index1", "right_index2", "right_index3")


def test_joints_elsewhere_are_no_part_of_the_spine() -> None:
    more = ("Spine9", "Head"), ("Neck7", "Hips")
    skeleton = body("Hips Spine Spine1", "Neck Head", "{Left}Arm", "{Left}UpLeg", *more)
    parts = find_parts(skeleton)
    assert parts[-2:] == ("other spine9", "other neck7")
    assert parts[1:4] == ("spine1", "spine2", "neck1")


def test_hips_are_above_the_spine() -> None:
    """DAZ hangs legs on a pelvis, and the spine beside it."""
    skeleton = body("hip", "abdomen chest head", "", "", ("pelvis", "hip"))
    legs = [("lThigh", "pelvis"), ("rThigh", "pelvis"), ("lShldr", "chest"), ("rShldr", "chest")]
    names = (*skeleton.names, *(name for name, _ in legs))
    parents = (*skeleton.parents, *(names.index(parent) for _, parent in legs))
    daz = Skeleton(names=names, parents=parents, offsets=((0.0, 0.1, 0.0),) * len(names))
    assert find_parts(daz)[:5] == ("hips", "spine1", "spine2", "head", "pelvis")


def test_a_trunk_without_arms_and_head_is_known() -> None:
    skeleton = body("Hips Spine Spine1 Spine2", "", "", "{Left}UpLeg {Left}Leg")
    assert find_parts(skeleton)[:4] == ("hips", "spine1", "spine2", "spine3")
