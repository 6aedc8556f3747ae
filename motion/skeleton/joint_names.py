"""What the names of joints say, in any spelling: LeftToeBase, l_foot, mixamorig:LeftFoot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

Side: TypeAlias = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")
# LHipJoint has the words L, Hip, Joint; lFoot has l, Foot; left_toe0 has left, toe. L5 is a
# vertebra and has no word.
WORD = re.compile(r"[A-Z]+(?![a-z\d])|[A-Z]?[a-z]+")
# The ball of the foot comes first because the ankle of a standing person is above the ground.
FOOT_PARTS = ("toe", "foot", "ankle")


def side_of(name: str) -> Side | None:
    """Returns the side of a joint; None if its name does not say it."""
    words = [word.lower() for word in WORD.findall(name)]
    for side in SIDES:
        # Some names have only small letters: leftarm, lfoot.
        whole = {side[0], *(side[0] + part for part in (*FOOT_PARTS, "toes"))}
        if any(word.startswith(side) or word in whole for word in words):
            return side
    return None


def find_feet(names: Sequence[str]) -> tuple[int, ...]:
    """Finds the joints of the left and the right foot: the toes, else the foot or the ankle.

    Args:
        names: the names of the joints of a skeleton, parents before their children.

    Returns:
        The two indices; empty if the names do not say which joints they are.
    """
    found = [find_foot(names, "left"), find_foot(names, "right")]
    return tuple(joint for joint in found if joint is not None) if None not in found else ()


def find_foot(names: Sequence[str], side: Side) -> int | None:
    """Returns the first joint of one foot, not the ends that come after it; None without one."""
    for part in FOOT_PARTS:
        for joint, name in enumerate(names):
            if part in name.lower() and side_of(name) == side:
                return joint
    return None
