"""Files of features: .npy of (T, D), a row of D numbers for each of T frames."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from motion.errors import MotionError
from motion.files.arrays import read_array, write_array

SUFFIX = ".npy"


def read_features(path: str | os.PathLike[str]) -> Tensor:
    """Reads the features (T, D) of a .npy file, as float32.

    Raises:
        MotionError: the file does not exist, or does not hold features.
    """
    features = read_array(Path(path), ndim=2)
    if not features.numel():
        raise MotionError(f"{path} is {tuple(features.shape)}: it has no frames; get it again")
    return features


def write_features(path: str | os.PathLike[str], features: Tensor) -> None:
    """Writes features (T, D) to a .npy file. If writing fails, no incomplete file is left.

    Raises:
        MotionError: the file has another suffix.
        FileError: the file cannot be written.
    """
    if Path(path).suffix.lower() != SUFFIX:
        raise MotionError(f"{path} must end in {SUFFIX}, for features")
    write_array(path, features)
