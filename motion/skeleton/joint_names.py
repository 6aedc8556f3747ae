"""What names of joints say, however they are spelt: LeftToeBase, l_foot, mixamorig:LeftFoot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

Side: TypeAlias = Literal["left", "right"]
# LHipJoint is L, Hip, Joint; lFoot is l, Foot; left_toe0 is left, toe. L5 is a vertebra.
WORD = re.compile(r"[A-Z]+(?![a-z\d])|[A-Z]?[a-z]+")
# The ball of the foot comes first, for the ankle is off the ground also when someone stands.
FOOT_PARTS = ("toe", "foot", "ankle")


def side_of(name: str) -> Side | None:
    """The side of the body that a joint is on; None if its name does not say."""
    words = [word.lower() for word in WORD.findall(name)]
    sides: tuple[Side, ...] = ("left", "right")
    for side in sides:
        # Some names are all in small letters: leftarm, lfoot.
        whole = {side[0], *(side[0] + part for part in (*FOOT_PARTS, "toes"))}
        if any(word.startswith(side) or word in whole for word in words):
            return side
    return None


def find_feet(names: Sequence[str]) -> tuple[int, ...]:
    """Indices of the joints of the left and the right foot: the toes, or what is next to them.

    Args:
        names: of the joints of a skeleton, parents before their children.

    Returns:
        Two, or none if the names do not say which they are.
    """
    found = [find_foot(names, "left"), find_foot(names, "right")]
    return tuple(joint for joint in found if joint is not None) if None not in found else ()


def find_foot(names: Sequence[str], side: Side) -> int | None:
    """The joint of one foot; its end or the tips of its toes come after it, and are passed over."""
    for part in FOOT_PARTS:
        for joint, name in enumerate(names):
            if part in name.lower() and side_of(name) == side:
                return joint
    return None
