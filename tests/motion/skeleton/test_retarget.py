"""Motion of one skeleton as motion of another one."""

import math
from dataclasses import replace

import pytest
import roma
import torch
from torch import Tensor

from motion.errors import MotionError
from motion.files.formats import read_motion
from motion.skeleton.body_parts import find_parts
from motion.skeleton.clip import MotionClip
from motion.skeleton.packaged import HUMANML3D, KIT, SMPLX
from motion.skeleton.retarget import plan_retargeting, retarget, retarget_with_report
from motion.skeleton.sample import walk
from motion.skeleton.tree import Skeleton
from tests.motion.helpers import RECORDINGS, largest_difference, random_clip, random_skeleton
from tests.motion.skeleton.test_matching import MIXAMO

WALK = walk(50)
BVH = sorted(RECORDINGS.glob("*.bvh"))


def resize(skeleton: Skeleton, **factors: float) -> Skeleton:
    """The skeleton with the offsets of some joints times a factor, by words in their names."""
    offsets = []
    for name, offset in zip(skeleton.names, skeleton.offsets, strict=True):
        factor = math.prod(f for word, f in factors.items() if word in name)
        offsets.append(tuple(factor * x for x in offset))
    whole = factors.get("", 1.0)
    sites = [
        replace(site, offset=tuple(whole * x for x in site.offset)) for site in skeleton.end_sites
    ]
    return replace(skeleton, offsets=tuple(offsets), end_sites=tuple(sites))


def turn_arms(clip: MotionClip, degrees: float) -> MotionClip:
    """The same positions of joints with arms that hang down by an angle in the rest pose."""
    down = {
        side: roma.euler_to_rotmat("Z", torch.tensor([sign * degrees]).double(), degrees=True)
        for side, sign in (("left", -1), ("right", 1))
    }
    bases = []
    for name in clip.skeleton.names:
        side = name.partition("_")[0]
        arm = any(part in name for part in ("shoulder", "elbow", "wrist", *FINGERS))
        bases.append(down[side] if arm else torch.eye(3, dtype=torch.float64))
    return change_axes(clip, torch.stack(bases))


FINGERS = ("index", "middle", "pinky", "ring", "thumb")


def change_axes(clip: MotionClip, bases: Tensor) -> MotionClip:
    """The same positions of joints, with the axes of each joint turned by ``bases`` (J, 3, 3)."""
    skeleton = clip.skeleton
    above = torch.stack([bases[0], *(bases[parent] for parent in skeleton.parents[1:])])
    above[0] = torch.eye(3)
    offsets = torch.tensor(skeleton.offsets, dtype=torch.float64)
    offsets = (above @ offsets[:, :, None]).squeeze(-1)
    sites = []
    for site in skeleton.end_sites:
        offset = bases[site.joint] @ offsets.new_tensor(site.offset)
        sites.append(replace(site, offset=tuple(offset.tolist())))
    return replace(
        clip,
        skeleton=replace(
            skeleton, offsets=tuple(map(tuple, offsets.tolist())), end_sites=tuple(sites)
        ),
        rotations=above @ clip.rotations @ bases.mT,
    )


def bone_directions(clip: MotionClip) -> Tensor:
    """Unit vectors (T, J - 1, 3) from the parent of each joint to the joint."""
    positions = clip.pose.positions
    bones = positions[:, 1:] - positions[:, list(clip.skeleton.parents[1:])]
    return bones / bones.norm(dim=-1, keepdim=True)


def random_axes(joints: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return roma.rotvec_to_rotmat(
        2 * torch.randn(joints, 3, generator=generator, dtype=torch.float64)
    )


def test_the_same_skeleton_moves_in_the_same_way() -> None:
    moved = retarget(WALK, SMPLX)
    assert largest_difference(moved.rotations, WALK.rotations) < 1e-12
    assert largest_difference(moved.root_positions, WALK.root_positions) < 1e-9


def test_names_and_order_of_another_program() -> None:
    moved = retarget(WALK, MIXAMO)
    assert moved.skeleton == MIXAMO
    parts, own = find_parts(MIXAMO), find_parts(SMPLX)
    joints = [own.index(part) for part in parts]
    # Without the ends of the toes, which touch the ground in the walk.
    assert largest_difference(moved.pose.positions, WALK.pose.positions[:, joints]) < 0.04
    assert largest_difference(moved.rotations, WALK.rotations[:, joints]) < 1e-12


@pytest.mark.parametrize("degrees", [20.0, 45.0, 80.0])
def test_another_rest_pose_gives_the_same_bones(degrees: float) -> None:
    """A T pose and an A pose, both ways."""
    hanging = turn_arms(WALK, degrees)
    assert largest_difference(hanging.pose.positions, WALK.pose.positions) < 1e-12
    for clip, target in ((WALK, hanging.skeleton), (hanging, SMPLX)):
        moved = retarget(clip, target)
        assert largest_difference(bone_directions(moved), bone_directions(WALK)) < 1e-6


@pytest.mark.parametrize("degrees", [8.0, -15.0, 25.0])
@pytest.mark.parametrize("parts", ["hips", "trunk", "legs"])
def test_hips_that_lean_in_a_rest_pose_give_the_same_bones(parts: str, degrees: float) -> None:
    """Their bones have the same shape, so only the rest pose differs."""
    lean = roma.euler_to_rotmat("X", torch.tensor([degrees]).double(), degrees=True).view(3, 3)
    of_legs = [any(word in name for word in LEG_NAMES) for name in SMPLX.names]
    leans = {"hips": [name == "pelvis" for name in SMPLX.names], "legs": of_legs}
    below = [leg or hips for leg, hips in zip(of_legs, leans["hips"], strict=True)]
    leans["trunk"] = [not each for each in below]
    bases = torch.eye(3, dtype=torch.float64).repeat(55, 1, 1)
    bases[torch.tensor(leans[parts])] = lean
    leaning = change_axes(WALK, bases)
    for clip, target, expected in (
        (WALK, leaning.skeleton, leaning),
        (leaning, SMPLX, WALK),
    ):
        moved = retarget(clip, target)
        assert largest_difference(bone_directions(moved), bone_directions(WALK)) < 0.2
        hips = [each.pose.rotations[:, 0] for each in (moved, expected)]
        assert largest_difference(*hips) < 1e-6


LEG_NAMES = ("hip", "knee", "ankle", "foot")


def test_other_axes_of_bones_give_the_same_bones() -> None:
    """Rest poses in which nobody could stand, with all bones elsewhere."""
    turned = change_axes(WALK, random_axes(55))
    assert largest_difference(turned.pose.positions, WALK.pose.positions) < 1e-12
    for clip, target in ((WALK, turned.skeleton), (turned, SMPLX)):
        moved = retarget(clip, target)
        assert largest_difference(bone_directions(moved), bone_directions(WALK)) < 1e-6


def test_a_rest_pose_that_lies_down() -> None:
    tipped = roma.euler_to_rotmat("X", torch.tensor([90.0]).double(), degrees=True)
    lying = change_axes(WALK, tipped.expand(55, 3, 3))
    moved = retarget(lying, SMPLX)
    assert largest_difference(moved.rotations, WALK.rotations) < 1e-9


TARGETS = {
    "another rest pose": turn_arms(WALK, 45.0).skeleton,
    "other axes": change_axes(WALK, random_axes(55)).skeleton,
    "other lengths": resize(SMPLX, knee=1.2, ankle=0.9, elbow=1.3, spine=0.8),
    "names of Mixamo": MIXAMO,
    "KIT": KIT,
}


@pytest.mark.parametrize("name", TARGETS)
def test_there_and_back_gives_the_rotations(name: str) -> None:
    """Of the joints that both have, in the world."""
    target = TARGETS[name]
    clip = replace(WALK, rotations=random_clip(SMPLX, len(WALK)).rotations)
    back = retarget(retarget(clip, target), SMPLX)
    pairs = plan_retargeting(target, SMPLX).pairs
    both = [joint for joint, pair in enumerate(pairs) if pair is not None]
    assert len(both) >= 19
    world = [each.pose.rotations[:, both] for each in (back, clip)]
    assert largest_difference(*world) < 1e-9
    if len(both) == 55:
        assert largest_difference(back.rotations, clip.rotations) < 1e-9


def test_joints_between_are_composed_and_others_stay_at_rest() -> None:
    body = replace(WALK, skeleton=HUMANML3D, rotations=WALK.rotations[:, :22])
    moved = retarget(body, SMPLX)
    plan = plan_retargeting(HUMANML3D, SMPLX)
    assert plan.at_rest == SMPLX.names[22:]
    still = torch.eye(3).double().expand(50, 33, 3, 3)
    assert largest_difference(moved.rotations[:, 22:], still) < 1e-12
    # KIT has no collars: its arms carry what collars and arms do.
    arms = [
        bone_directions(clip)[:, clip.skeleton.names.index("left_elbow") - 1]
        for clip in (retarget(WALK, KIT), WALK)
    ]
    assert largest_difference(*arms) < 1e-9


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3])
def test_the_path_is_as_long_as_the_legs(scale: float) -> None:
    target = resize(SMPLX, **{"": scale})
    moved = retarget_with_report(WALK, target)
    assert moved.plan.scale == pytest.approx(scale)
    start = WALK.root_positions[0] * torch.tensor([1.0, 0.0, 1.0])
    assert largest_difference(moved.clip.root_positions[0], WALK.root_positions[0]) < 1
    paths = [clip.root_positions - clip.root_positions[:1] for clip in (moved.clip, WALK)]
    assert largest_difference(paths[0], scale * paths[1]) < 1e-3
    assert largest_difference(moved.clip.pose.positions[0, 0, [0, 2]], start[[0, 2]]) < 1e-6


def test_feet_stay_on_the_ground() -> None:
    """With long thighs and short feet a path that is only scaled lets them float and slide."""
    target = resize(SMPLX, knee=1.25, ankle=0.85, foot=0.7, left_collar=1.0)
    moved = retarget_with_report(WALK, target)
    feet = moved.feet
    assert feet is not None
    before, after = feet.height_mm
    assert after < 4 < before
    slide_before, slide_after = feet.slide_m_s
    assert abs(slide_after - feet.source_slide_m_s) < abs(slide_before - feet.source_slide_m_s)
    clips = moved.clip, WALK
    names = ("left_ankle", "right_ankle", "left_foot", "right_foot")
    joints = [SMPLX.names.index(name) for name in names]
    lowest = [clip.pose.positions[:, joints, 1].amin(dim=1) for clip in clips]
    assert (lowest[0] - lowest[0].median()).abs().median() < 0.02


def test_a_skeleton_without_feet_keeps_its_path() -> None:
    upper = SMPLX.names
    kept = [
        j for j, name in enumerate(upper) if not any(w in name for w in ("knee", "ank", "foot"))
    ]
    places = {joint: place for place, joint in enumerate(kept)} | {-1: -1}
    target = Skeleton(
        names=tuple(upper[j] for j in kept),
        parents=tuple(places[SMPLX.parents[j]] for j in kept),
        offsets=tuple(SMPLX.offsets[j] for j in kept),
    )
    moved = retarget_with_report(WALK, target)
    assert moved.feet is None and moved.plan.scale == pytest.approx(1.0)
    assert largest_difference(moved.clip.root_positions, WALK.root_positions) < 1e-9


def test_skeletons_without_a_body_are_refused() -> None:
    for source, target in ((random_skeleton(9), SMPLX), (SMPLX, random_skeleton(9))):
        with pytest.raises(MotionError, match="hips and legs, or hips and arms, are not known"):
            retarget(random_clip(source), target)


def test_bones_without_length_are_refused() -> None:
    """They tell no rest pose, and gave numbers that are not finite."""
    point = resize(SMPLX, **{"": 0.0})
    for source, target in ((point, SMPLX), (SMPLX, point)):
        with pytest.raises(MotionError, match=r"have no length: pelvis, .* are in one place"):
            retarget(replace(WALK, skeleton=source), target)


@pytest.mark.parametrize(
    "parts", ["hip knee ankle foot", "shoulder collar elbow", "spine neck hip"]
)
def test_places_that_fall_together_give_finite_numbers(parts: str) -> None:
    flat = resize(SMPLX, **dict.fromkeys(parts.split(), 0.0))
    for source, target in ((flat, SMPLX), (SMPLX, flat), (flat, KIT), (flat, flat)):
        moved = retarget(replace(WALK, skeleton=source), target)
        assert moved.rotations.isfinite().all() and moved.root_positions.isfinite().all()


def test_bodies_of_any_size_are_told_by_spine_of_any_length() -> None:
    """The last joint of the spine is the chest in all skeletons."""
    names = [f"spine{n}" for n in (1, 2, 3)]
    pairs = plan_retargeting(SMPLX, KIT).pairs
    spine = [pairs[KIT.names.index(name)] for name in ("lower_back", "torso", "lower_neck")]
    assert [SMPLX.names[pair] for pair in spine if pair is not None] == names


@pytest.mark.skipif(not BVH, reason="needs the shared recordings")
@pytest.mark.parametrize("path", BVH, ids=lambda path: path.stem)
def test_recordings_stand_on_their_feet(path) -> None:
    clip = read_motion(path)[:120]
    for target in (SMPLX, HUMANML3D, KIT, MIXAMO):
        moved = retarget_with_report(clip, target)
        assert moved.feet is not None and moved.feet.height_mm[1] < 20
        positions = moved.clip.pose.positions
        parts = find_parts(target)
        head, foot = (positions[:, parts.index(part), 1] for part in ("head", "left_foot"))
        assert (head - foot).median() > 0.8
        # Limbs point where they point in the recording.
        own = find_parts(clip.skeleton)
        for part, end in (("left_upper_arm", "left_lower_arm"), ("right_lower_leg", "right_foot")):
            bones = [
                each.pose.positions[:, p.index(end)] - each.pose.positions[:, p.index(part)]
                for each, p in ((moved.clip, parts), (clip, own))
            ]
            directions = [bone / bone.norm(dim=-1, keepdim=True) for bone in bones]
            assert largest_difference(*directions) < 1e-4
