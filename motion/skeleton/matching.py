"""Whether two skeletons have the same joints, which is known by their names and their tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from motion.errors import SkeletonError
from motion.skeleton.body_parts import find_parts, strip_prefixes
from motion.skeleton.clip import MotionClip
from motion.skeleton.tree import Skeleton
from wanvae.engine.text import first_few

# Bones whose lengths differ by less than this share are of the same person.
SAME_LENGTH = 0.1
# A bone is long if it is more than this share of the longest way along the bones.
LONG_BONE = 0.06
# Degrees between the directions of a long bone in two rest poses of the same kind.
SAME_POSE = 30.0


@dataclass(frozen=True, eq=False)
class Matching:
    """Two skeletons with the same joints in the same tree.

    Attributes:
        own: one skeleton, such as the skeleton of a file.
        wanted: the other one, such as the skeleton of a model.
        order: the joint of ``own`` for each joint of ``wanted``.
    """

    own: Skeleton
    wanted: Skeleton
    order: tuple[int, ...]

    @property
    def arranged(self) -> Skeleton:
        """The skeleton ``own`` with the order and the names of ``wanted``."""
        return replace(self.own.reorder(self.order), names=self.wanted.names)

    def arrange(self, clip: MotionClip) -> MotionClip:
        """Returns a clip of ``own`` with the order and the names of ``wanted``."""
        rotations = clip.rotations[:, list(self.order)]
        return replace(clip, skeleton=self.arranged, rotations=rotations)

    def restore(self, clip: MotionClip) -> MotionClip:
        """Returns a clip with the order of ``wanted`` as a clip of ``own``."""
        places = [self.order.index(joint) for joint in range(self.own.joints)]
        return replace(clip, skeleton=self.own, rotations=clip.rotations[:, places])

    def describe_proportions(self) -> str:
        """Returns in words how much longer or shorter the bones of ``own`` are; empty if equal."""
        lengths = [
            (math.hypot(*self.own.offsets[joint]), math.hypot(*wanted), joint)
            for joint, wanted in list(zip(self.order, self.wanted.offsets, strict=True))[1:]
        ]
        shortest = LONG_BONE * self.wanted.span
        ratios = sorted(
            (own / wanted, self.own.names[joint])
            for own, wanted, joint in lengths
            if wanted > shortest
        )
        if not ratios or all(abs(ratio - 1) <= SAME_LENGTH for ratio, _ in ratios):
            return ""
        (least, short), (most, long) = ratios[0], ratios[-1]
        return (
            f"{median(ratio for ratio, _ in ratios):.2g} times as long (from {least:.2g}, {short}, "
            f"to {most:.2g}, {long})"
        )


def match_skeletons(own: Skeleton, wanted: Skeleton) -> Matching:
    """Finds the joint of ``own`` for each joint of ``wanted``, by their names.

    Names may differ by a prefix and by how they are written, or be the names of another program.

    Raises:
        SkeletonError: a skeleton has joints that the other one does not have, they hang together in
            another way, or bones point elsewhere in the rest pose. The message tells which, and
            begins with a verb.
    """
    matching = match_joints(own, wanted)
    check_tree(matching)
    check_rest_pose(matching)
    return matching


def match_joints(own: Skeleton, wanted: Skeleton) -> Matching:
    """Finds the joints by name; SkeletonError if joints are missing, or there are others."""
    if own.names == wanted.names:
        return Matching(own, wanted, tuple(range(own.joints)))
    simple = [[simplify(name) for name in strip_prefixes(each.names)] for each in (own, wanted)]
    for keys, others in (simple, (find_parts(own), find_parts(wanted))):
        if len(set(keys)) == own.joints and sorted(keys) == sorted(others):
            return Matching(own, wanted, tuple(map(keys.index, others)))
    parts = find_parts(own), find_parts(wanted)
    missing = list_missing(wanted, parts[1], parts[0])
    surplus = list_missing(own, parts[0], parts[1])
    problems = [f"has no {first_few(missing)}"] if missing else []
    if surplus:
        problems.append(f"has {first_few(surplus)}, which the model has not")
    raise SkeletonError(" and ".join(problems))


def simplify(name: str) -> str:
    """Returns a name in small letters, without blanks and marks."""
    return "".join(filter(str.isalnum, name.lower()))


def list_missing(skeleton: Skeleton, parts: Sequence[str], others: Sequence[str]) -> list[str]:
    """Returns the names of the joints whose parts are not among the others."""
    return [name for name, part in zip(skeleton.names, parts, strict=True) if part not in others]


def check_tree(matching: Matching) -> None:
    """Raises SkeletonError if joints hang on other joints."""
    own, wanted, order = matching.own, matching.wanted, matching.order
    names = (*own.names, "nothing")  # parents of roots are -1
    for joint, parent in enumerate(wanted.parents):
        expected = order[parent] if parent >= 0 else -1
        found = own.parents[order[joint]]
        if found != expected:
            raise SkeletonError(
                f"has {names[order[joint]]} on {names[found]}, but in the model it is on "
                f"{names[expected]}"
            )


def check_rest_pose(matching: Matching) -> None:
    """Raises SkeletonError if a long bone points elsewhere in the rest pose."""
    own, wanted = matching.own, matching.wanted
    angles = [
        (measure_angle(own.offsets[joint], offset), own.names[joint])
        for joint, offset, parent in zip(
            matching.order, wanted.offsets, wanted.parents, strict=True
        )
        if parent >= 0
        and math.hypot(*offset) > LONG_BONE * wanted.span
        and math.hypot(*own.offsets[joint]) > LONG_BONE * own.span
    ]
    angle, name = max(angles, default=(0.0, ""))
    if angle > SAME_POSE:
        raise SkeletonError(
            f"has another rest pose: {name} points elsewhere by {angle:.0f} degrees, so its "
            "rotations mean other poses"
        )


def measure_angle(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the angle between two vectors in degrees."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    cosine = product / math.hypot(*one) / math.hypot(*other)
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
