"""The skeleton that an option names."""

from __future__ import annotations

import os
from pathlib import Path

from motion.checkpoints import formats
from motion.errors import MotionError
from motion.files.formats import READERS, read_in_file_order
from motion.files.reading import GUESSED, Reading
from motion.skeleton.tree import Skeleton


def read_skeleton(path: str | os.PathLike[str], reading: Reading = GUESSED) -> Skeleton:
    """Reads the skeleton of a motion file, or of a checkpoint, with its joints in their order.

    Args:
        reading: what a motion file does not tell.

    Raises:
        MotionError: the motion file cannot be read, or the checkpoint does not tell its skeleton.
        CheckpointError: the checkpoint cannot be read.
    """
    if Path(path).suffix.lower() in READERS:
        return read_in_file_order(path, reading).skeleton
    skeleton = formats.load(path).skeleton
    if skeleton is None:
        raise MotionError(f"{path} does not tell its skeleton; name a motion file that has it")
    return skeleton
