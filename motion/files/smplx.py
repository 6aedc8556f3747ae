"""SMPL-X files, as BEAT2 and AMASS have them: npz of axis-angle poses and translations."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import roma
import torch

from motion.files.arrays import load_arrays
from motion.skeleton.clip import Clip, ClipError, from_file_axes, to_file_axes
from motion.skeleton.named import SMPLX
from motion.skeleton.tree import Skeleton
from wanvae.engine.files import atomic_path

# AMASS spells it in two ways.
RATE_KEYS = ("mocap_frame_rate", "mocap_framerate")
WANTED = {"poses", "trans", "betas", "gender", *RATE_KEYS}
# Keys that BEAT2's files do not have and AMASS's do, whose z points up.
AMASS_KEYS = ("mocap_framerate", "surface_model_type")
# Joints of SMPL+H, in its order, among those of SMPL-X: it has no jaw and no eyes.
SMPLH_JOINTS = tuple(j for j in range(55) if j not in (22, 23, 24))
EXPRESSIONS = 100  # of BEAT2's files; ours have them at rest


def read_npz(path: str | os.PathLike[str], *, up: Literal["y", "z"] | None = None) -> Clip:
    """Read the motion of an SMPL-X or SMPL+H file on our own skeleton of a generic adult.

    The shape of the body (betas) is kept but does not change the skeleton, for the body model that
    says how is licensed. Nothing is unpickled.

    Args:
        up: the axis that points up in the file; by default z for AMASS, y for BEAT2.

    Raises:
        ClipError: there is no such file, or a key is missing or has a wrong shape or values.
    """
    path = Path(path)
    arrays = load_arrays(path, WANTED)
    poses = numbers(path, arrays, "poses", ndim=2)
    frames, width = tuple(poses.shape)
    if width not in (165, 156) or not frames:
        raise ClipError(
            f"{path}: poses are {frames, width}; 1 or more frames of 165 numbers (SMPL-X) or "
            "156 (SMPL+H) are expected"
        )
    positions = numbers(path, arrays, "trans", ndim=2)
    if positions.shape != (frames, 3):
        shape = tuple(positions.shape)
        raise ClipError(f"{path}: trans is {shape}; {(frames, 3)} is expected, as poses")
    if up is None:
        up = "z" if any(key in arrays for key in AMASS_KEYS) else "y"
    vectors = torch.zeros(frames, 55, 3, dtype=torch.float64)
    vectors[:, SMPLH_JOINTS if width == 156 else slice(None)] = poses.view(frames, -1, 3)
    clip = Clip(
        skeleton=replace(SMPLX, up=up),
        rotations=roma.rotvec_to_rotmat(vectors),
        root_positions=positions + pelvis(SMPLX),
        fps=frame_rate(path, arrays),
        betas=tuple(numbers(path, arrays, "betas", ndim=1).tolist()) if "betas" in arrays else (),
        gender=str(arrays.get("gender", "neutral")),
    )
    return from_file_axes(clip)


def pelvis(skeleton: Skeleton) -> torch.Tensor:
    """Where the first joint is when the translation of the body is zero: (3,)."""
    return torch.tensor(skeleton.offsets[0], dtype=torch.float64)


def numbers(path: Path, arrays: dict[str, np.ndarray], key: str, ndim: int) -> torch.Tensor:
    """An array of finite numbers of ``ndim`` axes, in float64."""
    if key not in arrays:
        known = ", ".join(sorted(arrays)) or "none"
        raise ClipError(f"{path} has no {key!r}; its keys are {known}. Is it an SMPL-X motion?")
    array = arrays[key]
    if array.ndim != ndim or array.dtype.kind not in "fiu":
        raise ClipError(f"{path}: {key} is {array.dtype} {array.shape}; {ndim} axes of numbers fit")
    if not np.isfinite(array).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ClipError(f"{path}: {key} is {array[first]} at {first}; it needs finite numbers")
    return torch.from_numpy(array.astype(np.float64))


def frame_rate(path: Path, arrays: dict[str, np.ndarray]) -> float:
    key = next((key for key in RATE_KEYS if key in arrays), RATE_KEYS[0])
    rate = numbers(path, arrays, key, ndim=0).item()
    if rate <= 0:
        raise ClipError(f"{path}: {key} is {rate}; it must be positive")
    return rate


def write_npz(path: str | os.PathLike[str], clip: Clip) -> None:
    """Write a file as BEAT2 has them, complete or not at all; z up if the clip's file had it so.

    Raises:
        ClipError: the clip is not of SMPL-X's 55 joints.
        CheckpointError: it cannot be written.
    """
    if clip.skeleton.names != SMPLX.names:
        raise ClipError(
            f"{path} cannot be written: the skeleton has {clip.skeleton.joints} joints that are "
            "not those of SMPL-X; write a .bvh file"
        )
    clip = to_file_axes(clip)
    vectors = roma.rotmat_to_rotvec(clip.rotations.detach().cpu().double())
    positions = clip.root_positions.detach().cpu().double() - pelvis(clip.skeleton)
    arrays = {
        "poses": vectors.flatten(1).numpy(),
        "trans": positions.numpy(),
        "betas": np.array(clip.betas),
        "expressions": np.zeros((len(clip), EXPRESSIONS)),
        "gender": np.array(clip.gender),
        "model": np.array("smplx2020"),
        "mocap_frame_rate": np.array(clip.fps),
    }
    if clip.skeleton.up == "z":
        arrays["surface_model_type"] = np.array("smplx")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
