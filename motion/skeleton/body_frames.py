"""How two bodies are turned to each other in their rest poses: as a whole, at hips, feet and head.

One rotation for all of these is not enough: a trunk that leans in a rest pose turns the whole body,
but not the feet, and hips that look elsewhere do, but not the head. A turn that is told in three
ways is the one in the middle, because shapes make each of the three differ by a few degrees, and
rest poses make one of them differ by many.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import roma
import torch
from torch import Tensor

from motion.skeleton.body_parts import is_of
from motion.skeleton.joint_names import SIDES

# Shorter bones have no direction, metres.
SHORTEST = 1e-6
# A foot tells where it points only if so large a share of its length is along the ground.
ALONG_GROUND = 0.35
# Opposite directions are opposite up to so many radians, as files round them.
OPPOSITE = 5e-5
# Directions that differ by fewer degrees between rest poses in which a person stands.
TRUNK, STANDING = ("legs", "trunk", "hips", "shoulders"), 45.0


class BodyTurns(NamedTuple):
    """Rotations (3, 3) from directions of the target to directions of the source, at rest.

    Attributes:
        body: of the whole body.
        hips: of the hips. They lean to the front as the whole body does, because the bones that
            tell it point elsewhere in other shapes.
        legs: of the legs, which tells how they are turned about themselves.
        feet: of the left and the right foot.
        head: of the head. The spine is turned about itself as the head is.
    """

    body: Tensor
    hips: Tensor
    legs: Tensor
    feet: tuple[Tensor, Tensor]
    head: Tensor

    def begin(self, parts: Collection[str]) -> dict[str, Tensor]:
        """Returns the rotations (3, 3) with which parts begin that do not begin as the part above.

        Args:
            parts: what both bodies have. Legs and spine begin with the first part of theirs.
        """
        begins = {"hips": self.hips, "head": self.head}
        spine = find_first(parts, "spine")
        if spine is not None:
            begins[spine] = self.head
        for side, foot in zip(SIDES, self.feet, strict=True):
            first = "upper" if f"{side}_upper_leg" in parts else "lower"
            begins |= {f"{side}_{first}_leg": self.legs, f"{side}_foot": foot}
        return {part: turn for part, turn in begins.items() if part in parts}


def align_bodies(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], *, same: bool
) -> BodyTurns | None:
    """Returns how the directions of the target are turned to the source, both at rest.

    Exchanging source and target gives the inverse rotations. None where the parts are not known
    that tell them, or where a trunk is bent or turned in a way in which no person stands.

    Args:
        source, target: the place (3,) of each part that both have, metres.
        same: whether the bodies differ by their rest poses alone. Else each foot points forward, in
            whatever direction its bones point.
    """
    own, wanted = find_body(source), find_body(target)
    if own is None or wanted is None:
        return None
    none, directions = own.new_zeros(3), find_directions(source, own)
    # About the axes of the body: x leans to the front, y looks elsewhere, z leans to a side.
    turns = {
        name: turn_between(direction, directions[name])
        for name, direction in find_directions(target, wanted).items()
        if name in directions
    }
    if any(turns[name].norm() > math.radians(STANDING) for name in TRUNK if name in turns):
        return None

    def find(name: str) -> Tensor:
        return turns.get(name, none)

    def middle(*ways: Tensor) -> Tensor:
        return torch.stack(ways).median(dim=0).values

    def turn(lean: Tensor, look: Tensor) -> Tensor:
        vector = torch.stack([lean[0], look[1], lean[2]])
        return own @ roma.rotvec_to_rotmat(vector) @ wanted.T

    # None is as the whole body is turned.
    stand = middle(none, find("upright"), find("legs"))
    nod = middle(none, find("neck"), find("spine" if "spine" in turns else "trunk"))
    look = middle(find("hips"), find("feet"), find("shoulders"))
    looks = (find("left_foot"), find("right_foot")) if same else (look, look)
    return BodyTurns(
        body=own @ wanted.T,
        hips=turn(find("hips") * none.new_tensor([0, 1, 1]), find("hips")),
        legs=turn(stand, look),
        feet=(turn(stand, looks[0]), turn(stand, looks[1])),
        head=turn(nod, find("shoulders")),
    )


def find_body(places: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the directions to the left, up and to the front of a body, as columns (3, 3).

    They are told by the directions from the feet to the shoulders and from right to left; None
    where these parts are not known, or are in one place.

    Args:
        places: (3,) of each part, metres.
    """
    left, right = (mean_place(places, f"{side}_upper_leg", f"{side}_upper_arm") for side in SIDES)
    low, high = find_low(places), find_high(places)
    if left is None or right is None or low is None or high is None:
        return None
    up, across = high - low, left - right
    forward = torch.linalg.cross(across, up)
    if forward.norm() <= SHORTEST * max(across.norm(), up.norm()):
        return None
    across = torch.linalg.cross(up, forward)
    return torch.stack([axis / axis.norm() for axis in (across, up, forward)], dim=1)


def find_directions(places: Mapping[str, Tensor], body: Tensor) -> dict[str, Tensor]:
    """Returns the directions (3,) of a body that are known, in the axes of the body.

    "upright" is the axis of the file that points up; "legs", "trunk" and "neck" point from the feet
    to the hips, on to the shoulders and on to the head, "spine" from its first joint to the
    shoulders, "hips" and "shoulders" from right to left, "left_foot", "right_foot" and their mean
    "feet" along the ground.

    Args:
        places: as for ``find_body``.
        body: (3, 3), as ``find_body`` returns it.
    """
    hips, high = mean_place(places, "left_upper_leg", "right_upper_leg"), find_high(places)
    steps = {
        "legs": (find_low(places), hips),
        "trunk": (hips, high),
        "spine": (places.get(find_first(places, "spine") or ""), high),
        "neck": (high, places.get("head")),
        "hips": (places.get("right_upper_leg"), places.get("left_upper_leg")),
        "shoulders": (places.get("right_upper_arm"), places.get("left_upper_arm")),
    }
    directions = {"upright": find_axis(body[:, 1]) @ body}
    for name, (start, end) in steps.items():
        if start is not None and end is not None and (end - start).norm() > SHORTEST:
            directions[name] = (end - start) @ body
    return directions | find_feet(places, body)


def find_feet(places: Mapping[str, Tensor], body: Tensor) -> dict[str, Tensor]:
    """Returns the directions of the feet, as ``find_directions``; none if one is not known."""
    feet: dict[str, Tensor] = {}
    for side in SIDES:
        ankle, toes = places.get(f"{side}_foot"), places.get(f"{side}_toes")
        if ankle is None or toes is None or (toes - ankle).norm() <= SHORTEST:
            return {}
        foot = (toes - ankle) @ body / (toes - ankle).norm()
        foot[1] = 0
        if foot.norm() < ALONG_GROUND:
            return {}
        feet[f"{side}_foot"] = foot
    return feet | {"feet": sum(feet.values(), torch.zeros_like(body[0]))}


def find_first(parts: Collection[str], chain: str) -> str | None:
    """Returns the lowest joint of the spine or the neck among parts; None without one."""
    joints = (part for part in parts if is_of(part, chain))
    return min(joints, key=lambda part: int(part.removeprefix(chain)), default=None)


def find_axis(up: Tensor) -> Tensor:
    """Returns the axis (3,) of the file, up or down, that is nearest to a direction (3,)."""
    axis, largest = torch.zeros_like(up), up.abs().argmax()
    axis[largest] = up[largest].sign()
    return axis


def find_low(places: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the place (3,) between the feet, or of the hips of a body without feet."""
    return mean_place(
        places, *(("left_foot", "right_foot") if "left_foot" in places else ("hips",))
    )


def find_high(places: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the place (3,) between the shoulders, or of the head of a body without arms."""
    high = mean_place(places, "left_upper_arm", "right_upper_arm")
    neck = find_first(places, "neck") or "head"
    return mean_place(places, neck, "head") if high is None else high


def mean_place(places: Mapping[str, Tensor], *names: str) -> Tensor | None:
    """Returns the mean (3,) of the places of some parts; None if none of them is known."""
    found = [places[name] for name in names if name in places]
    return torch.stack(found).mean(dim=0) if found else None


def turn_between(one: Tensor, other: Tensor) -> Tensor:
    """Returns the smallest turn that brings one direction (3,) onto another, as a vector (3,).

    The vector is along the axis, and as long as the angle in radians.
    """
    one, other = one / one.norm(), other / other.norm()
    axis, cosine = torch.linalg.cross(one, other), one @ other
    sine = axis.norm()
    if sine < (OPPOSITE if cosine < 0 else 1e-12):  # any axis across will do for half a turn
        axis = torch.linalg.cross(one, torch.eye(3, dtype=one.dtype)[one.abs().argmax() - 1])
    return axis / axis.norm() * torch.atan2(sine, cosine)
