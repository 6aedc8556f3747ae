"""Motion files, whatever their kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from motion.errors import MotionError
from motion.files.bvh import read_bvh, write_bvh
from motion.files.smplx import read_npz, write_npz
from motion.skeleton.clip import MotionClip
from motion.skeleton.packaged import PACKAGED_SKELETONS
from motion.skeleton.tree import Skeleton

READERS: dict[str, Callable[[Path], MotionClip]] = {".bvh": read_bvh, ".npz": read_npz}
WRITERS: dict[str, Callable[[Path, MotionClip], None]] = {".bvh": write_bvh, ".npz": write_npz}


def read_motion(path: str | os.PathLike[str]) -> MotionClip:
    """Read a .bvh file, or an .npz file of SMPL-X; units and axes as the readers guess them.

    Joints of a packaged skeleton come in its order, for BVH files have them depth first.

    Raises:
        MotionError: there is no such file, it has another suffix, or its content is wrong.
    """
    path = Path(path)
    return in_known_order(READERS[known_suffix(path)](path))


def write_motion(path: str | os.PathLike[str], clip: MotionClip) -> None:
    """Write a .bvh file, or an .npz file of SMPL-X.

    Raises:
        MotionError: the suffix is another, or the kind of file cannot hold the clip.
        CheckpointError: it cannot be written.
    """
    path = Path(path)
    WRITERS[known_suffix(path)](path, clip)


def known_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise MotionError(f"{path} ends in {suffix!r}; motion files end in {' or '.join(READERS)}")
    return suffix


def in_known_order(clip: MotionClip) -> MotionClip:
    """The clip with its joints in the order of the packaged skeleton with this tree, if any."""
    skeleton = clip.skeleton
    for body in PACKAGED_SKELETONS:
        if skeleton.names != body.names and bones(skeleton) == bones(body):
            order = [skeleton.names.index(name) for name in body.names]
            arranged, rotations = skeleton.arranged(body.names), clip.rotations[:, order]
            return replace(clip, skeleton=arranged, rotations=rotations)
    return clip


def bones(skeleton: Skeleton) -> list[tuple[str, str]]:
    """The name of each joint and of its parent, sorted; the root's is empty."""
    names = (*skeleton.names, "")
    return sorted((names[j], names[parent]) for j, parent in enumerate(skeleton.parents))
