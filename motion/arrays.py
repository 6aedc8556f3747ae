"""Arrays of numbers in .npy files; nothing is unpickled."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from motion.clip import ClipError
from wanvae.engine.checkpoint import atomic_path, first_sentence


def read_array(path: Path, ndim: int) -> Tensor:
    """The numbers of a file of ``ndim`` axes, in float32.

    Raises:
        ClipError: there is no such file, or it holds anything but finite numbers.
    """
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise ClipError(f"{path} does not exist; check the path") from None
    except Exception as error:  # a damaged file can raise anything
        reason = first_sentence(error)
        raise ClipError(f"{path} is no complete .npy file of numbers ({reason})") from error
    if not isinstance(array, np.ndarray) or array.ndim != ndim or array.dtype.kind not in "fiu":
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
