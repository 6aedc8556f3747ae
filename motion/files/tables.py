"""CSV files: one row for each frame, with positions and rotations of all joints."""

from __future__ import annotations

import csv
import os

import torch

from motion.files.gltf import to_quaternions
from motion.skeleton.clip import MotionClip
from wanvae.engine.files import atomic_path

POSITION, ROTATION = ("x", "y", "z"), ("qx", "qy", "qz", "qw")


def write_csv(path: str | os.PathLike[str], clip: MotionClip) -> None:
    """Writes a CSV file with a header. If writing fails, no incomplete file is left.

    The columns are "frame"; "time" in seconds; then for each joint "NAME.x", "NAME.y", "NAME.z",
    its position in the world in metres with y up; and "NAME.qx" to "NAME.qw", the quaternion that
    turns from its axes to the axes of its parent, or to the world for the root.

    Raises:
        FileError: the file cannot be written.
    """
    names = [f"{name}.{part}" for name in clip.skeleton.names for part in (*POSITION, *ROTATION)]
    positions = clip.pose.positions.detach().cpu().double()
    values = torch.cat([positions, to_quaternions(clip.rotations)], dim=-1).flatten(1)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "time", *names])
        for frame, row in enumerate(values.tolist()):
            writer.writerow([frame, f"{frame / clip.fps:.6f}", *(f"{x:.6f}" for x in row)])
