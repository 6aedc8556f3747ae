"""Files of the SMPL bodies, of axis-angle poses and translations: BEAT2, AMASS, AIST++."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import roma
import torch

from motion.errors import MotionError
from motion.files.arrays import load_arrays, load_pickled_arrays
from motion.skeleton.clip import MotionClip, from_file_axes, to_file_axes
from motion.skeleton.packaged import HUMANML3D, SMPLX
from motion.skeleton.tree import Skeleton
from wanvae.engine.files import atomic_path

# AMASS has two spellings, other programs have more.
RATE_KEYS = ("mocap_frame_rate", "mocap_framerate", "mocap_fps", "fps", "frame_rate", "framerate")
WANTED = {"poses", "trans", "betas", "gender", "expressions", *RATE_KEYS}
# Keys of AMASS files, where z points up. BEAT2 files do not have them.
AMASS_KEYS = ("mocap_framerate", "surface_model_type")
# The joints of SMPL-X that SMPL+H has, in its order: all except the jaw and the eyes.
SMPLH_JOINTS = tuple(j for j in range(55) if j not in (22, 23, 24))
# The first joints of SMPL, without its hands, which SMPL-X has no joints for.
SMPL_JOINTS = tuple(range(22))
# The joints of SMPL-X that the numbers of a frame are of, by how many numbers there are.
JOINTS_OF_WIDTH = {165: tuple(range(55)), 156: SMPLH_JOINTS, 72: SMPL_JOINTS}
AIST_RATE = 60.0  # frames per second of all files of AIST++
EXPRESSIONS = 100  # facial expressions of a BEAT2 file; at rest where a clip has none


def read_npz(path: str | os.PathLike[str], *, up: Literal["y", "z"] | None = None) -> MotionClip:
    """Reads the motion of an SMPL-X, SMPL+H or SMPL file, on our own skeleton of a generic adult.

    The shape parameters (betas) are kept but do not change the skeleton, because the body model
    that says how is licensed. The hands of SMPL are left out, with a warning if they move. Nothing
    is unpickled.

    Args:
        up: the axis that points up in the file; by default z for AMASS and y for BEAT2.

    Raises:
        MotionError: the file does not exist, or a key is missing or has a wrong shape or value.
    """
    path = Path(path)
    return make_clip(path, load_arrays(path, WANTED), up)


def read_aist(path: str | os.PathLike[str], *, up: Literal["y", "z"] | None = None) -> MotionClip:
    """Reads a .pkl file of AIST++, on our own skeleton, as ``read_npz`` does.

    Only arrays of numbers are unpickled.

    Raises:
        MotionError: as ``read_npz``.
    """
    path = Path(path)
    arrays = load_pickled_arrays(path)
    scale = read_numbers(path, arrays, "smpl_scaling", ndim=1)
    if scale.numel() != 1 or scale <= 0:
        raise MotionError(f"{path}: smpl_scaling is {scale.tolist()}; one number above 0 fits")
    found = {
        "poses": read_numbers(path, arrays, "smpl_poses", ndim=2).numpy(),
        "trans": (read_numbers(path, arrays, "smpl_trans", ndim=2) / scale).numpy(),
        "mocap_frame_rate": np.array(AIST_RATE),
    }
    return make_clip(path, found, up)


def make_clip(
    path: Path, arrays: dict[str, np.ndarray], up: Literal["y", "z"] | None
) -> MotionClip:
    """Returns the clip of the arrays of an SMPL-X, SMPL+H or SMPL file."""
    poses = read_numbers(path, arrays, "poses", ndim=2)
    frames, width = tuple(poses.shape)
    if width not in JOINTS_OF_WIDTH or not frames:
        raise MotionError(
            f"{path}: poses are {frames, width}; 1 or more frames of 165 numbers (SMPL-X), "
            "156 (SMPL+H) or 72 (SMPL) are expected"
        )
    positions = read_numbers(path, arrays, "trans", ndim=2)
    if positions.shape != (frames, 3):
        shape = tuple(positions.shape)
        raise MotionError(f"{path}: trans is {shape}; {(frames, 3)} is expected, as poses")
    expressions = None
    if "expressions" in arrays:
        expressions = read_numbers(path, arrays, "expressions", ndim=2)
        if len(expressions) != frames:
            raise MotionError(f"{path}: expressions are of {len(expressions)} frames, not {frames}")
    if up is None:
        up = "z" if any(key in arrays for key in AMASS_KEYS) else "y"
    vectors = torch.zeros(frames, 55, 3, dtype=torch.float64)
    joints = JOINTS_OF_WIDTH[width]
    vectors[:, joints] = poses.view(frames, -1, 3)[:, : len(joints)]
    if poses[:, 3 * len(joints) :].any():
        warnings.warn(f"{path}: the two hands of SMPL are left out", stacklevel=3)
    clip = MotionClip(
        skeleton=replace(SMPLX, up=up),
        rotations=roma.rotvec_to_rotmat(vectors),
        root_positions=positions + locate_pelvis(SMPLX),
        fps=read_frame_rate(path, arrays),
        betas=tuple(read_numbers(path, arrays, "betas", ndim=1).tolist())
        if "betas" in arrays
        else (),
        gender=read_word(path, arrays, "gender", "neutral"),
        expressions=expressions,
    )
    return from_file_axes(clip)


def locate_pelvis(skeleton: Skeleton) -> torch.Tensor:
    """Returns the position (3,) of the first joint for a translation of zero."""
    return torch.tensor(skeleton.offsets[0], dtype=torch.float64)


def read_numbers(path: Path, arrays: dict[str, np.ndarray], key: str, ndim: int) -> torch.Tensor:
    """Returns an array of finite numbers with ``ndim`` axes, in float64."""
    if key not in arrays:
        known = ", ".join(sorted(arrays)) or "none"
        raise MotionError(f"{path} has no {key!r}; its keys are {known}. Is it an SMPL-X motion?")
    array = arrays[key]
    if array.ndim != ndim or array.dtype.kind not in "fiu":
        needed = f"{ndim} axes of numbers fit" if ndim else "one number is needed"
        raise MotionError(f"{path}: {key} is {array.dtype} {array.shape}; {needed}")
    if not np.isfinite(array).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise MotionError(f"{path}: {key} is {array[first]} at {first}; it needs finite numbers")
    return torch.from_numpy(array.astype(np.float64))


def read_word(path: Path, arrays: dict[str, np.ndarray], key: str, default: str) -> str:
    """Returns a text, which some programs store as bytes or in an array of one element."""
    if key not in arrays:
        return default
    array = arrays[key]
    if array.size != 1 or array.dtype.kind not in "US":
        raise MotionError(f"{path}: {key} is {array.dtype} {array.shape}; one word fits")
    word = array.item()
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else word


def read_frame_rate(path: Path, arrays: dict[str, np.ndarray]) -> float:
    """Returns the frames per second of a file."""
    key = next((key for key in RATE_KEYS if key in arrays), RATE_KEYS[0])
    rate = read_numbers(path, arrays, key, ndim=0).item()
    if rate <= 0:
        raise MotionError(f"{path}: {key} is {rate}; it must be positive")
    return rate


def write_npz(path: str | os.PathLike[str], clip: MotionClip) -> None:
    """Writes a file in the format of BEAT2. If writing fails, no incomplete file is left.

    The axis that points up is the axis of the file that the clip was read from. A clip of the 22
    joints of HumanML3D, which are the first joints of SMPL-X, gets face and hands at rest. The file
    does not hold the lengths of bones: readers take them from a body model.

    Raises:
        MotionError: the clip does not have the joints of SMPL-X.
        FileError: the file cannot be written.
    """
    if clip.skeleton.names not in (SMPLX.names, HUMANML3D.names):
        raise MotionError(
            f"an .npz file of SMPL-X cannot be written: the skeleton has {clip.skeleton.joints} "
            "joints, not the joints of SMPL-X; write a .bvh file"
        )
    clip = to_file_axes(clip)
    vectors = torch.zeros(len(clip), SMPLX.joints, 3, dtype=torch.float64)
    turned = roma.rotmat_to_rotvec(clip.rotations.detach().cpu().double())
    vectors[:, : clip.skeleton.joints] = turned
    positions = clip.root_positions.detach().cpu().double() - locate_pelvis(SMPLX)
    expressions = np.zeros((len(clip), EXPRESSIONS))
    if clip.expressions is not None:
        expressions = clip.expressions.detach().cpu().double().numpy()
    arrays = {
        "poses": vectors.flatten(1).numpy(),
        "trans": positions.numpy(),
        "betas": np.array(clip.betas),
        "expressions": expressions,
        "gender": np.array(clip.gender),
        "model": np.array("smplx2020"),
        "mocap_frame_rate": np.array(clip.fps),
    }
    if clip.skeleton.up == "z":
        arrays["surface_model_type"] = np.array("smplx")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
