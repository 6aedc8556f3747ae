"""Skeletons and clips for tests of motion."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import roma
import torch

from motion.skeleton.clip import MotionClip
from motion.skeleton.tree import EULER_ORDERS, EndSite, Skeleton

T = TypeVar("T")
RECORDINGS = Path(__file__).parents[3] / "shared" / "data" / "motion"


def random_skeleton(joints: int, *, seed: int = 0, unit: float = 0.01) -> Skeleton:
    """A tree in depth-first order, as BVH files have it, with Euler orders of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    parents, path = [-1], [0]
    for joint in range(1, joints):
        depth = int(torch.randint(len(path), (), generator=generator))
        path = [*path[: depth + 1], joint]
        parents.append(path[-2])
    offsets = torch.randn(joints, 3, generator=generator, dtype=torch.float64).mul(0.2)
    digits = (offsets / unit).round(decimals=4) * unit  # what a file can hold
    leaves = [joint for joint in range(joints) if joint not in parents]
    return Skeleton(
        names=tuple(f"joint{joint}" for joint in range(joints)),
        parents=tuple(parents),
        offsets=tuple(map(tuple, digits.tolist())),
        end_sites=tuple(EndSite(joint=leaf, offset=(0.0, 5 * unit, 0.0)) for leaf in leaves),
        orders=tuple(EULER_ORDERS[(seed + joint) % 6] for joint in range(joints)),
        unit=unit,
    )


def depth_first(skeleton: Skeleton) -> Skeleton:
    """The same skeleton in another order: last children first."""
    order, waiting = [], [0]
    while waiting:
        joint = waiting.pop()
        order.append(joint)
        waiting += skeleton.children[joint]
    return skeleton.reorder(order)


def random_clip(skeleton: Skeleton, frames: int = 12, fps: float = 30.0) -> MotionClip:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(frames, skeleton.joints, 3, generator=generator, dtype=torch.float64)
    positions = torch.randn(frames, 3, generator=generator, dtype=torch.float64)
    return MotionClip(
        skeleton=skeleton,
        rotations=roma.rotvec_to_rotmat(vectors),
        root_positions=positions,
        fps=fps,
    )


def largest_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first - second).abs().max().item()


def contents(folder: Path) -> dict[str, bytes]:
    """The content of all files of a folder, by their paths in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def in_processes(
    monkeypatch: pytest.MonkeyPatch, count: int, work: Callable[[int], T], *modules: str
) -> list[T]:
    """What ``work`` returns in each of the processes of a run, which are threads here.

    Args:
        work: is given the number of its process.
        modules: where ``gather_objects`` is used.
    """
    barrier, here = threading.Barrier(count, timeout=60), threading.local()
    values: list[object] = [None] * count

    def exchange(value: object) -> list[object]:
        values[here.index] = value
        barrier.wait()
        exchanged = list(values)
        barrier.wait()
        return exchanged

    def run(index: int) -> T:
        here.index = index
        return work(index)

    with monkeypatch.context() as patch, ThreadPoolExecutor(count) as pool:
        for module in modules:
            patch.setattr(f"{module}.gather_objects", exchange)
        return list(pool.map(run, range(count)))
