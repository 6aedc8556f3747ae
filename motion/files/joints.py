"""Files of positions of joints: .npy of (T, 22, 3) as in HumanML3D, or of (T, 21, 3) as in KIT.

HumanML3D has them in metres and KIT in millimetres, with y up. They do not tell their frame rate.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from motion.errors import MotionError
from motion.files.arrays import read_array, write_array
from motion.skeleton.clip import MotionClip
from motion.skeleton.packaged import HUMANML3D, KIT
from motion.skeleton.selection import select_joints
from motion.skeleton.tree import Skeleton

# How the names of written files end. Names that end in .npy alone are for features.
SUFFIX = ".joints.npy"
RATES = {HUMANML3D.joints: 20.0, KIT.joints: 12.5}
# The skeleton of files with so many joints. The first 22 joints of SMPL, SMPL+H and SMPL-X are the
# joints of HumanML3D.
SKELETONS = {22: HUMANML3D, 24: HUMANML3D, 52: HUMANML3D, 55: HUMANML3D, 21: KIT}


def read_joints(
    path: str | os.PathLike[str],
    *,
    unit: float | None = None,
    up: Literal["y", "z"] | None = None,
) -> tuple[Tensor, Skeleton]:
    """Reads positions of joints.

    Args:
        unit: metres per unit of the file; by default 1 for HumanML3D and 0.001 for KIT.
        up: the axis that points up in the file; by default y.

    Returns:
        Positions (T, 22, 3) or (T, 21, 3) in metres with y up, in float64; and the packaged
        skeleton of such joints.

    Raises:
        MotionError: the file does not exist, or does not hold such positions.
    """
    values = read_array(Path(path), ndim=3).double()
    frames, joints, axes = values.shape
    if not frames:
        raise MotionError(f"{path} has no frames; get it again")
    if joints not in SKELETONS or axes != 3:
        raise MotionError(
            f"{path} is {tuple(values.shape)}; joints are (T, 22, 3) as in HumanML3D, (T, 21, 3) "
            "as in KIT, or (T, 24, 3), (T, 52, 3) or (T, 55, 3) of SMPL bodies"
        )
    skeleton = SKELETONS[joints]
    positions = values[:, : skeleton.joints] * (skeleton.unit if unit is None else unit)
    if up == "z":
        x, y, z = positions.unbind(dim=-1)
        positions = torch.stack([x, z, -y], dim=-1)
    return positions, skeleton


def write_joints(path: str | os.PathLike[str], clip: MotionClip) -> None:
    """Writes the positions of the joints of HumanML3D, or of KIT, as float32.

    Raises:
        MotionError: the clip does not have these joints.
        FileError: the file cannot be written.
    """
    write_positions(path, select_joints(clip).positions)


def describe_lost_rate(fps: float) -> str:
    """Returns a sentence on what files of joints do not hold."""
    return f"the file does not tell its {fps:g} frames per second"


def write_positions(path: str | os.PathLike[str], positions: Tensor) -> None:
    """Writes positions (T, 22, 3) or (T, 21, 3) in metres, in the unit of HumanML3D or KIT.

    Raises:
        FileError: the file cannot be written.
    """
    write_array(path, (positions / SKELETONS[positions.shape[1]].unit).float())
