"""Arrays of numbers in .npy and .npz files; nothing is unpickled."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from motion.errors import ClipError
from wanvae.engine.files import atomic_path
from wanvae.engine.text import first_sentence


def load_array(path: Path) -> np.ndarray:
    """The array of a .npy file, of any kind.

    Raises:
        ClipError: there is no such file, or it holds anything else.
    """
    array = load(path, ".npy file of numbers")
    if not isinstance(array, np.ndarray):
        raise ClipError(f"{path} holds several arrays; give a .npy of one")
    return array


def load_arrays(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The ``wanted`` arrays of an .npz file; of others, the names alone.

    Raises:
        ClipError: there is no such file, or it holds anything else.
    """
    arrays = load(path, ".npz file of plain arrays", wanted)
    if not isinstance(arrays, dict):
        raise ClipError(f"{path} holds one array without a name; give an .npz file")
    return arrays


def load(path: Path, kind: str, wanted: Collection[str] = ()) -> np.ndarray | dict[str, np.ndarray]:
    """What a file holds: an array, or some of its arrays by name."""
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {k: content[k] if k in wanted else np.empty(0) for k in content.files}
    except FileNotFoundError:
        raise ClipError(f"{path} does not exist; check the path") from None
    except Exception as error:  # a damaged file can raise anything
        reason = first_sentence(error)
        raise ClipError(f"{path} is no complete {kind} ({reason}); get it again") from error


def read_array(path: Path, ndim: int) -> Tensor:
    """The numbers of a .npy file of ``ndim`` axes, in float32.

    Raises:
        ClipError: there is no such file, or it holds anything but finite numbers.
    """
    array = load_array(path)
    if array.ndim != ndim or array.dtype.kind not in "fiu":
        raise ClipError(f"{path} holds no array of numbers with {ndim} axes; give a .npy of them")
    if not np.isfinite(array).all():
        raise ClipError(f"{path} has numbers that are not finite; leave it out")
    return torch.from_numpy(array.astype(np.float32))


def write_array(path: str | os.PathLike[str], values: Tensor) -> None:
    """Write numbers to a file, complete or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.detach().cpu().numpy(), allow_pickle=False)
