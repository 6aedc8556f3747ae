"""The formats of motion files: reading and writing a file by its suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from motion.errors import MotionError
from motion.files import joints
from motion.files.bvh import read_bvh, write_bvh
from motion.files.gltf import write_glb, write_gltf
from motion.files.reading import GUESSED, Reading
from motion.files.smplx import read_aist, read_npz, write_npz
from motion.files.tables import write_csv
from motion.skeleton.clip import MotionClip
from motion.skeleton.matching import Matching
from motion.skeleton.packaged import PACKAGED_SKELETONS
from motion.skeleton.tree import Skeleton
from wanvae.engine.finite import is_finite


def read_as_bvh(path: Path, reading: Reading) -> MotionClip:
    return read_bvh(
        path,
        unit=reading.unit,
        up=reading.up,
        root=reading.root,
        frames_from_data=reading.frames_from_data,
    )


def read_as_smpl(path: Path, reading: Reading) -> MotionClip:
    if reading.unit is not None or reading.root is not None:
        raise MotionError(f"{path} is in metres and has one root: leave out --unit and --root")
    return (read_aist if path.suffix.lower() == ".pkl" else read_npz)(path, up=reading.up)


def write_as_smplx(path: Path, clip: MotionClip) -> None:
    matching = match_packaged(clip.skeleton)
    write_npz(path, clip if matching is None else matching.arrange(clip))


@dataclass(frozen=True, kw_only=True)
class MotionFormat:
    """A kind of motion file.

    Attributes:
        holds: what it holds, for people.
        read: returns the clip of a file; None if files of this kind are only written.
        write: writes a clip; None if files of this kind are only read.
    """

    holds: str
    read: Callable[[Path, Reading], MotionClip] | None = None
    write: Callable[[Path, MotionClip], None] | None = None


# What files with a suffix hold. Names that end in .joints.npy also end in .npy, which is features.
FORMATS = {
    ".bvh": MotionFormat(
        holds="skeleton and Euler angles, any skeleton", read=read_as_bvh, write=write_bvh
    ),
    ".npz": MotionFormat(
        holds="pose parameters of SMPL-X, as BEAT2 and AMASS have them",
        read=read_as_smpl,
        write=write_as_smplx,
    ),
    ".pkl": MotionFormat(holds="pose parameters of SMPL, as AIST++ has them", read=read_as_smpl),
    ".glb": MotionFormat(holds="glTF 2.0, skeleton and animation, any skeleton", write=write_glb),
    ".gltf": MotionFormat(holds="the same as text", write=write_gltf),
    ".csv": MotionFormat(
        holds="positions and rotations of joints with a header, any skeleton", write=write_csv
    ),
    joints.SUFFIX: MotionFormat(
        holds="positions of the joints of HumanML3D, (T, 22, 3), or of KIT",
        write=joints.write_joints,
    ),
}
READERS = {suffix: kind.read for suffix, kind in FORMATS.items() if kind.read is not None}
WRITERS = {suffix: kind.write for suffix, kind in FORMATS.items() if kind.write is not None}


def read_motion(path: str | os.PathLike[str], reading: Reading = GUESSED) -> MotionClip:
    """Reads a .bvh file, an .npz file of SMPL-X, SMPL+H or SMPL, or a .pkl file of AIST++.

    BVH files have joints depth first. If the tree is the tree of a packaged skeleton, the joints
    come in the order of the packaged skeleton.

    Args:
        reading: what the file does not tell; by default the readers guess the unit and the axes.

    Raises:
        MotionError: the file does not exist, has another suffix, or its content is wrong.
    """
    clip = read_in_file_order(path, reading)
    matching = match_packaged(clip.skeleton)
    return clip if matching is None else matching.arrange(clip)


def read_in_file_order(path: str | os.PathLike[str], reading: Reading = GUESSED) -> MotionClip:
    """Reads a motion file as ``read_motion``, with its joints in the order of the file."""
    path = Path(path)
    return READERS[check_suffix(path, READERS)](path, reading)


def write_motion(path: str | os.PathLike[str], clip: MotionClip) -> None:
    """Writes a motion file of the kind that its suffix says, see ``FORMATS``.

    Raises:
        MotionError: the file has another suffix, its format cannot hold the clip, or the clip has
            numbers that are not finite.
        FileError: the file cannot be written.
    """
    path = Path(path)
    write = WRITERS[check_suffix(path, WRITERS)]
    for what, values in (("rotations", clip.rotations), ("root_positions", clip.root_positions)):
        if not is_finite(values):
            raise MotionError(f"{path} is not written, because {what} are not all finite")
    write(path, clip)


def find_suffix(path: str | os.PathLike[str]) -> str:
    """Returns the suffix of a file in small letters, which is .joints.npy for joints."""
    path = Path(path)
    return joints.SUFFIX if path.name.lower().endswith(joints.SUFFIX) else path.suffix.lower()


def check_suffix(path: Path, known: Iterable[str]) -> str:
    """Returns the suffix of a motion file; MotionError if it is not ``known``."""
    suffix = find_suffix(path)
    if suffix not in known:
        raise MotionError(f"{path} ends in {suffix!r}; motion files end in {' or '.join(known)}")
    return suffix


def match_packaged(skeleton: Skeleton) -> Matching | None:
    """Matches a skeleton with the packaged skeleton with the same tree and the same names."""
    for packaged in PACKAGED_SKELETONS:
        if list_bones(skeleton) == list_bones(packaged):
            return Matching(skeleton, packaged, tuple(map(skeleton.names.index, packaged.names)))
    return None


def list_bones(skeleton: Skeleton) -> list[tuple[str, str]]:
    """Returns the names of each joint and its parent, sorted; the parent of the root is empty."""
    names = (*skeleton.names, "")
    return sorted((names[j], names[parent]) for j, parent in enumerate(skeleton.parents))
