"""Arrays of numbers in .npy, .npz and .pkl files. Only arrays are unpickled, and nothing is run."""

from __future__ import annotations

import codecs
import os
import pickle
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from motion.errors import MotionError
from wanvae.engine.files import atomic_path
from wanvae.engine.text import first_sentence


def load_array(path: Path) -> np.ndarray:
    """Reads the array of a .npy file, of any dtype and shape.

    Raises:
        MotionError: the file does not exist, or holds something else.
    """
    array = load(path, ".npy file of numbers")
    if not isinstance(array, np.ndarray):
        raise MotionError(f"{path} holds several arrays; give a .npy file of one array")
    return array


def load_arrays(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Reads the ``wanted`` arrays of an .npz file. Of the other arrays only the names are read.

    Raises:
        MotionError: the file does not exist, or holds something else.
    """
    arrays = load(path, ".npz file of plain arrays", wanted)
    if not isinstance(arrays, dict):
        raise MotionError(f"{path} holds one array without a name; give an .npz file")
    return arrays


def load(path: Path, kind: str, wanted: Collection[str] = ()) -> np.ndarray | dict[str, np.ndarray]:
    """Reads an array, or the ``wanted`` arrays by name; the other arrays are empty."""
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {k: content[k] if k in wanted else np.empty(0) for k in content.files}
    except FileNotFoundError:
        raise MotionError(f"{path} does not exist; check the path") from None
    except Exception as error:  # NumPy raises many kinds of errors on damaged files
        reason = first_sentence(error)
        raise MotionError(f"{path} is no complete {kind} ({reason}); get it again") from error


# All that a pickle of arrays of numbers may name. NumPy 1 and 2 name the first two differently.
ARRAY_GLOBALS: dict[tuple[str, str], object] = {
    **{
        (f"{package}.multiarray", name): rebuild
        for package in ("numpy.core", "numpy._core")
        for name, rebuild in (
            ("_reconstruct", np.empty(0).__reduce__()[0]),
            ("scalar", np.float64(0).__reduce__()[0]),
        )
    },
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain values, and refuses everything else."""

    def find_class(self, module_name: str, global_name: str, /) -> object:
        try:
            return ARRAY_GLOBALS[module_name, global_name]
        except KeyError:
            message = f"it holds {module_name}.{global_name}, and no arrays"
            raise pickle.UnpicklingError(message) from None


def load_plain_pickle(path: Path) -> object:
    """Reads a .pkl file of arrays and plain values, like lists of words.

    Raises:
        MotionError: the file does not exist, or holds something else.
    """
    try:
        with path.open("rb") as file:
            return ArrayUnpickler(file).load()
    except FileNotFoundError:
        raise MotionError(f"{path} does not exist; check the path") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = first_sentence(error)
        raise MotionError(f"{path} is no pickle of arrays of numbers ({reason})") from error


def load_pickled_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .pkl file with a dict of arrays, as of AIST++.

    Raises:
        MotionError: the file does not exist, or holds something else.
    """
    content = load_plain_pickle(path)
    if not isinstance(content, dict):
        raise MotionError(f"{path} holds no dict of arrays")
    return {str(key): x for key, x in content.items() if isinstance(x, np.ndarray)}


def read_array(path: Path, ndim: int) -> Tensor:
    """Reads the numbers of a .npy file with ``ndim`` axes, as float32.

    Raises:
        MotionError: the file does not exist, or holds something else than finite numbers.
    """
    array = load_array(path)
    if array.ndim != ndim or array.dtype.kind not in "fiu":
        raise MotionError(
            f"{path} holds no array of numbers with {ndim} axes; give a .npy file of one"
        )
    if not np.isfinite(array).all():
        raise MotionError(f"{path} has numbers that are not finite; leave it out")
    return torch.from_numpy(array.astype(np.float32))


def write_array(path: str | os.PathLike[str], values: Tensor) -> None:
    """Writes numbers to a .npy file. If writing fails, no incomplete file is left.

    Raises:
        FileError: the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.detach().cpu().numpy(), allow_pickle=False)
