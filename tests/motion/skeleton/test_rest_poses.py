"""Skeletons that differ by their rest poses: parts of the body that lean or look elsewhere."""

from collections.abc import Callable

import pytest
import roma
import torch
from torch import Tensor

from motion.skeleton.body_frames import align_bodies, turn_between
from motion.skeleton.body_parts import find_parts
from motion.skeleton.packaged import KIT, SMPLX
from motion.skeleton.rest_pose import align_rest_poses, angle_between, rest_positions
from motion.skeleton.retarget import plan_retargeting, retarget
from motion.skeleton.sample import walk
from motion.skeleton.tree import EndSite, Skeleton
from tests.motion.helpers import largest_difference
from tests.motion.skeleton.test_retarget import change_axes, resize

WALK = walk(12)
LEG_PARTS = ("upper_leg", "lower_leg", "foot", "toes")


def turn(axis: str, degrees: float) -> Tensor:
    return roma.euler_to_rotmat(axis, torch.tensor([degrees]).double(), degrees=True).view(3, 3)


def is_hips(part: str) -> bool:
    return part == "hips"


def is_leg(part: str) -> bool:
    return part.endswith(LEG_PARTS)


def is_foot(part: str) -> bool:
    return part.endswith(("foot", "toes"))


def is_shin(part: str) -> bool:
    return is_leg(part) and not is_foot(part)


def is_trunk(part: str) -> bool:
    return not is_leg(part) and not is_hips(part)


def is_above_legs(part: str) -> bool:
    return not is_leg(part)


def is_below_trunk(part: str) -> bool:
    return not is_trunk(part)


def is_left_foot(part: str) -> bool:
    return is_foot(part) and part.startswith("left")


# What is turned about which axis; "out" turns right and left in opposite directions.
CHANGES: dict[str, tuple[Callable[[str], bool], str]] = {
    "trunk leans": (is_trunk, "X"),
    "trunk leans aside": (is_trunk, "Z"),
    "trunk and hips lean": (is_above_legs, "X"),
    "hips lean": (is_hips, "X"),
    "legs lean": (is_leg, "X"),
    "legs lean on flat feet": (is_shin, "X"),
    "feet point down": (is_foot, "X"),
    "hips look aside": (is_hips, "Y"),
    "hips and legs look aside": (is_below_trunk, "Y"),
    "trunk looks aside": (is_trunk, "Y"),
    "trunk and hips look aside": (is_above_legs, "Y"),
    "hips lean aside": (is_hips, "Z"),
    "left foot looks aside": (is_left_foot, "Y"),
    "feet look out": (is_foot, "Y out"),
    "legs look out": (is_leg, "Y out"),
    "legs are spread": (is_leg, "Z out"),
    "legs are spread on flat feet": (is_shin, "Z out"),
}
# Nothing but the mesh tells whether legs or feet alone look aside.
TWISTED_LEGS = ("trunk and hips look aside", "legs look out")


def change(skeleton: Skeleton, name: str, degrees: float) -> Tensor:
    """The rotations (J, 3, 3) of the axes of the joints that a change of the rest pose turns."""
    moves, axis = CHANGES[name]
    bases = torch.eye(3, dtype=torch.float64).repeat(skeleton.joints, 1, 1)
    for joint, part in enumerate(find_parts(skeleton)):
        if moves(part):
            out = axis.endswith("out") and part.startswith("right")
            bases[joint] = turn(axis[0], -degrees if out else degrees)
    return bases


def alignments(source: Skeleton, target: Skeleton) -> Tensor:
    return align_rest_poses(source, target, plan_retargeting(source, target).pairs)


@pytest.mark.parametrize("degrees", [8.0, -15.0, 25.0])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_rest_pose_alone_changes_no_motion(name: str, degrees: float) -> None:
    """All joints are in their places, to 0.01 mm, and turned as before, to 5 degrees."""
    changed = change_axes(WALK, change(SMPLX, name, degrees))
    assert largest_difference(changed.pose.positions, WALK.pose.positions) < 1e-12
    for clip, expected in ((WALK, changed), (changed, WALK)):
        moved = retarget(clip, expected.skeleton)
        assert largest_difference(moved.pose.positions, WALK.pose.positions) < 1e-5
        back = retarget(moved, clip.skeleton)
        assert largest_difference(back.pose.positions, WALK.pose.positions) < 1e-5
        assert largest_difference(back.rotations, clip.rotations) < 1e-9
        pairs = zip(
            find_parts(SMPLX), moved.pose.rotations[0], expected.pose.rotations[0], strict=True
        )
        for part, found, wanted in pairs:
            if not (name in TWISTED_LEGS and is_shin(part)):
                assert angle_between(found, wanted) < 5, part


OTHERS = {"KIT": KIT, "other lengths": resize(SMPLX, spine=1.2, foot=0.8, shoulder=1.1)}


@pytest.mark.parametrize("degrees", [8.0, 25.0])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("trunk leans", is_leg),
        ("trunk and hips lean", is_leg),
        ("hips lean", is_leg),
        ("hips look aside", lambda part: not is_hips(part)),
        ("hips and legs look aside", is_trunk),
        ("trunk looks aside", is_leg),
        ("hips lean aside", is_leg),
    ],
)
def test_what_a_rest_pose_does_not_change_is_not_turned(
    name: str, kept: Callable[[str], bool], other: str, degrees: float
) -> None:
    """Between bodies of different shapes, too, up to what shapes tell otherwise: 2 degrees."""
    changed = change_axes(walk(1), change(SMPLX, name, degrees)).skeleton
    for part, found, straight in zip(
        find_parts(SMPLX),
        alignments(OTHERS[other], changed),
        alignments(OTHERS[other], SMPLX),
        strict=True,
    ):
        assert not kept(part) or angle_between(found, straight) < 2, part


def test_hips_of_another_shape_look_where_their_legs_hang() -> None:
    """Their bones tell it, because left and right are alike in all shapes."""
    changed = change_axes(walk(1), change(SMPLX, "hips look aside", 25.0)).skeleton
    hips = alignments(KIT, changed)[0], alignments(KIT, SMPLX)[0] @ turn("Y", -25.0)
    assert angle_between(*hips) < 1


@pytest.mark.parametrize(("axis", "degrees", "bound"), [("X", 44.0, 13), ("Z", 25.0, 1)])
def test_a_head_of_another_shape_leans_as_the_spine(
    axis: str, degrees: float, bound: float
) -> None:
    """The spine tells it, because hips do not lean; a neck of another shape differs by 12."""
    bases = torch.eye(3, dtype=torch.float64).repeat(55, 1, 1)
    bases[[is_trunk(part) for part in find_parts(SMPLX)]] = turn(axis, degrees)
    leaning, head = change_axes(walk(1), bases).skeleton, find_parts(KIT).index("head")
    found = alignments(leaning, KIT)[head]
    assert angle_between(found, turn(axis, degrees) @ alignments(SMPLX, KIT)[head]) < bound


@pytest.mark.parametrize("degrees", [30.0, 120.0, 170.0])
@pytest.mark.parametrize("axis", ["X", "Y"])
def test_a_body_is_known_where_a_person_stands(axis: str, degrees: float) -> None:
    """Not where a trunk is bent or turned on straight legs, as bones of other axes are."""
    bases = torch.eye(3, dtype=torch.float64).repeat(55, 1, 1)
    bases[[is_trunk(part) for part in find_parts(SMPLX)]] = turn(axis, degrees)
    bent = change_axes(WALK, bases).skeleton
    places = [
        dict(zip(find_parts(SMPLX), rest_positions(each), strict=True)) for each in (SMPLX, bent)
    ]
    known = align_bodies(places[0], places[1], same=False)
    assert (known is not None) == (degrees < 45)


def drop(skeleton: Skeleton, word: str) -> Skeleton:
    """The skeleton without the joints that have a word in their names; what hangs on them stays."""
    kept = [joint for joint, name in enumerate(skeleton.names) if word not in name]
    places = {joint: place for place, joint in enumerate(kept)} | {-1: -1}
    rests = rest_positions(skeleton)
    parents: list[int] = []
    for joint in kept:
        parent = skeleton.parents[joint]
        while parent not in places:
            parent = skeleton.parents[parent]
        parents.append(parent)
    offsets = [
        rests[joint] - (rests[above] if above >= 0 else 0)
        for joint, above in zip(kept, parents, strict=True)
    ]
    return Skeleton(
        names=tuple(skeleton.names[joint] for joint in kept),
        parents=tuple(places[parent] for parent in parents),
        offsets=tuple(tuple(offset.tolist()) for offset in offsets),
    )


@pytest.mark.parametrize("name", ["hips look aside", "trunk leans", "legs lean", "feet look out"])
@pytest.mark.parametrize("word", ["_hip", "_foot", "_shoulder", "spine1", "head", "_knee"])
def test_joints_that_one_skeleton_lacks_are_turned_alike_both_ways(word: str, name: str) -> None:
    whole, less = SMPLX, drop(change_axes(walk(1), change(SMPLX, name, 25.0)).skeleton, word)
    there, back = alignments(whole, less), alignments(less, whole)
    pairs = plan_retargeting(whole, less).pairs
    for joint, pair in enumerate(pairs):
        if pair is not None:
            assert angle_between(there[joint], back[pair].T) < 1e-4, less.names[joint]


@pytest.mark.parametrize("scale", [0.001, 100.0])
def test_files_of_any_unit_are_aligned_alike(scale: float) -> None:
    """Bones of a tiny body are not all of one length because they differ by less than 1 mm."""
    small = resize(SMPLX, **{"": scale})
    for part, found, wanted in zip(
        find_parts(KIT), alignments(small, KIT), alignments(SMPLX, KIT), strict=True
    ):
        assert angle_between(found, wanted) < 1e-4, part
    for part, found, wanted in zip(
        find_parts(SMPLX), alignments(KIT, small), alignments(KIT, SMPLX), strict=True
    ):
        assert angle_between(found, wanted) < 1e-4, part


def test_a_neck_without_arms_is_turned_alike_both_ways() -> None:
    """Whichever of two necks has more joints tells where the trunk ends."""
    names = ("pelvis", "left_hip", "right_hip", "left_knee", "right_knee", "spine", "neck")
    parents = (-1, 0, 0, 1, 2, 0, 5)
    offsets = ((0, 0, 0), (0.1, -0.1, 0), (-0.1, -0.1, 0), (0, -0.4, 0), (0, -0.4, 0))
    trunk = ((0, 0.2, 0), (0, 0.3, 0.1))
    short = Skeleton(
        names=(*names, "head"), parents=(*parents, 6), offsets=(*offsets, *trunk, (0, 0.2, 0.1))
    )
    long = Skeleton(
        names=(*names, "neck2", "head"),
        parents=(*parents, 6, 7),
        offsets=(*offsets, *trunk, (0, 0.1, 0.2), (0, 0.1, 0)),
    )
    there, back = alignments(short, long), alignments(long, short)
    for joint, pair in enumerate(plan_retargeting(short, long).pairs):
        if pair is not None:
            assert angle_between(there[joint], back[pair].T) < 1e-4, long.names[joint]


def test_half_turns_do_not_depend_on_what_files_round() -> None:
    """Bones that point the other way turn about one axis, so two half turns are none."""
    one = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    expected = turn_between(one, -one)
    for off in (1e-9, -1e-9, 1e-6, 2e-5):
        for axis in (0, 2):
            other = one.clone()
            other[axis] = off
            assert largest_difference(turn_between(one, -other), expected) < 1e-4
            assert largest_difference(turn_between(other, -one), expected) < 1e-4


@pytest.mark.parametrize("degrees", [25.0, 60.0])
def test_feet_with_toes_in_one_skeleton_only_tell_where_legs_look(degrees: float) -> None:
    """The other one has the ends of its feet, as many BVH files do."""
    kept = [joint for joint, part in enumerate(find_parts(SMPLX)) if not part.endswith("toes")]
    places = {joint: place for place, joint in enumerate(kept)} | {-1: -1}
    ends = tuple(
        EndSite(
            joint=places[SMPLX.parents[SMPLX.names.index(name)]],
            offset=SMPLX.offsets[SMPLX.names.index(name)],
        )
        for name in ("left_foot", "right_foot")
    )
    less = Skeleton(
        names=tuple(SMPLX.names[joint] for joint in kept),
        parents=tuple(places[SMPLX.parents[joint]] for joint in kept),
        offsets=tuple(SMPLX.offsets[joint] for joint in kept),
        end_sites=ends,
    )
    less = resize(less, spine=1.2)
    turned = change_axes(walk(1), change(SMPLX, "trunk looks aside", degrees)).skeleton
    for part, found in zip(find_parts(less), alignments(turned, less), strict=True):
        straight = alignments(SMPLX, less)[find_parts(less).index(part)]
        assert not is_leg(part) or angle_between(found, straight) < 2, part
