"""The path of a person whose feet stand where the feet of another person stand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motion.skeleton.body_parts import find_parts
from motion.skeleton.joint_names import SIDES
from motion.skeleton.tree import Pose, Skeleton, end_positions

# A foot stands if it is less than so many metres above its lowest place, softly.
STANDS, SOFTNESS = 0.03, 0.01
# The share of frames in which the lower foot is below the ground, because recordings are noisy.
BELOW_GROUND = 0.05


@dataclass(frozen=True)
class FeetReport:
    """What feet do while they stand, after a motion was moved to another skeleton.

    Feet stand where they stand in the source. There, too, they may slide and be above the ground,
    because recordings are noisy. Pairs are with a path that is only scaled, and with the corrected
    path.

    Attributes:
        height_mm: how far the lowest points of standing feet are from where they are in the source,
            on average, in millimetres.
        slide_m_s: mean horizontal speed of standing feet, in m/s.
        source_slide_m_s: the same in the source, for legs as long as in the target.
    """

    height_mm: tuple[float, float]
    slide_m_s: tuple[float, float]
    source_slide_m_s: float


@dataclass(frozen=True, eq=False)
class Walker:
    """A person who stands on two feet.

    Attributes:
        hips: ``(T, 3)``, metres.
        soles: ``(T, 2)``, the heights of the lowest points of the left and the right foot, metres.
        feet: ``(T, 2, 3)``, places of the feet that do not slide while they stand, metres.
    """

    hips: Tensor
    soles: Tensor
    feet: Tensor

    def move(self, by: Tensor) -> Walker:
        """Returns the person on a path that differs by ``(T, 3)``, metres."""
        return Walker(self.hips + by, self.soles + by[:, 1:2], self.feet + by[:, None])


def find_walker(skeleton: Skeleton, pose: Pose, hips: int, anchor: str) -> Walker:
    """Returns the person of a pose.

    Args:
        hips: the joint.
        anchor: the part of a foot that does not slide, "toes" or "foot".
    """
    parts, ends = find_parts(skeleton), end_positions(skeleton, pose)
    soles = []
    for side in SIDES:
        foot = {parts.index(f"{side}_foot")}
        for joint, parent in enumerate(skeleton.parents):
            if parent in foot:
                foot.add(joint)
        sites = [n for n, site in enumerate(skeleton.end_sites) if site.joint in foot]
        points = torch.cat([pose.positions[:, sorted(foot)], ends[:, sites]], dim=1)
        soles.append(points[..., 1].amin(dim=1))
    anchors = [parts.index(f"{side}_{anchor}") for side in SIDES]
    return Walker(pose.positions[:, hips], torch.stack(soles, dim=1), pose.positions[:, anchors])


def choose_anchor(source: Skeleton, target: Skeleton) -> str | None:
    """Returns the part of a foot that both skeletons have on both sides; None without one."""
    parts = set(find_parts(source)) & set(find_parts(target))
    if not {f"{side}_foot" for side in SIDES} <= parts:
        return None
    return "toes" if {f"{side}_toes" for side in SIDES} <= parts else "foot"


def scale_path(hips: Tensor, scale: float, ground: Tensor | float) -> Tensor:
    """Returns the path ``(T, 3)`` of hips from its first place, ``scale`` times as long.

    Args:
        ground: the height that stays, metres.
    """
    start = hips[:1] * hips.new_tensor([1.0, 0.0, 1.0])
    start[:, 1] = ground
    return start + scale * (hips - start)


def follow_ground(
    source: Walker, target: Walker, scale: float, fps: float
) -> tuple[Tensor, FeetReport]:
    """Returns the path of the hips of the target, and what its feet do.

    The path is scaled, and then corrected: the lowest point of the feet is as high above the ground
    as in the source, and a foot that stands does not slide more than in the source. If both feet
    stand, the path follows both alike.

    Args:
        source: the person whose motion it is.
        target: the other person, on any path.
        scale: of the path.
        fps: frames per second.

    Returns:
        ``(T, 3)``, metres, and the report.
    """
    ground = source.soles.amin(dim=1).quantile(BELOW_GROUND)
    path = scale_path(source.hips, scale, ground)
    scaled = target.move(path - target.hips)
    above = source.soles - ground
    correction = torch.zeros_like(path)
    correction[:, 1] = ground + scale * above.amin(dim=1) - scaled.soles.amin(dim=1)
    # A foot stands from one frame to the next if it stands in both.
    standing = torch.sigmoid((STANDS - find_heights(source)) / SOFTNESS)
    weights = (standing[1:] * standing[:-1])[..., None]
    steps, wanted = step(scaled), scale * step(source)
    mean = (weights * (wanted - steps)).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    correction[1:, [0, 2]] = mean.cumsum(dim=0)
    moved = scaled.move(correction)
    stands = standing > 0.5
    rests = stands[1:] & stands[:-1]

    def measure_height(walker: Walker) -> float:
        return mean_of((walker.soles - ground - scale * above).abs(), stands) * 1000

    def measure_slide(steps: Tensor) -> float:
        return mean_of(steps.norm(dim=-1), rests) * fps

    report = FeetReport(
        height_mm=(measure_height(scaled), measure_height(moved)),
        slide_m_s=(measure_slide(steps), measure_slide(step(moved))),
        source_slide_m_s=measure_slide(wanted),
    )
    return path + correction, report


def step(walker: Walker) -> Tensor:
    """Returns the horizontal steps ``(T - 1, 2, 2)`` of the feet to the next frame, metres."""
    return walker.feet[..., [0, 2]].diff(dim=0)


def find_heights(walker: Walker) -> Tensor:
    """Returns the heights ``(T, 2)`` of the feet above where each stands, metres."""
    heights = walker.feet[..., 1]
    return heights - heights.quantile(BELOW_GROUND, dim=0)


def mean_of(values: Tensor, chosen: Tensor) -> float:
    """Returns the mean of the chosen values; 0 if none are."""
    return values[chosen].mean().item() if chosen.any() else 0.0
