"""Motion files, whatever their kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from motion.bvh import read_bvh, write_bvh
from motion.clip import Clip, ClipError
from motion.smplx import read_npz, write_npz

READERS: dict[str, Callable[[Path], Clip]] = {".bvh": read_bvh, ".npz": read_npz}
WRITERS: dict[str, Callable[[Path, Clip], None]] = {".bvh": write_bvh, ".npz": write_npz}


def read_clip(path: str | os.PathLike[str]) -> Clip:
    """Read a .bvh file, or an .npz file of SMPL-X; units and axes as the readers guess them.

    Raises:
        ClipError: there is no such file, it has another suffix, or its content is wrong.
    """
    path = Path(path)
    return READERS[known_suffix(path)](path)


def write_clip(path: str | os.PathLike[str], clip: Clip) -> None:
    """Write a .bvh file, or an .npz file of SMPL-X.

    Raises:
        ClipError: the suffix is another, or the kind of file cannot hold the clip.
        CheckpointError: it cannot be written.
    """
    path = Path(path)
    WRITERS[known_suffix(path)](path, clip)


def known_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ClipError(f"{path} ends in {suffix!r}; motion files end in {' or '.join(READERS)}")
    return suffix
