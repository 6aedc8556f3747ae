"""Descriptions of motion in the files of HumanML3D and KIT: ``texts/NAME.txt``.

A line is ``caption#words with parts of speech#start#end``. Start and end are seconds; both are 0 if
the caption is of the whole motion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from motion.errors import MotionError


@dataclass(frozen=True)
class Caption:
    """A description of a motion.

    Attributes:
        text: the description.
        tokens: its words with their parts of speech, like ``"walk/VERB"``.
        start, end: the seconds it describes; both are 0 if it is the whole motion.
    """

    text: str
    tokens: tuple[str, ...]
    start: float = 0.0
    end: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether the caption is of the whole motion."""
        return self.start == self.end == 0


def read_captions(path: Path) -> list[Caption]:
    """Reads the captions of a motion.

    Raises:
        MotionError: the file cannot be read, or a line is not as in HumanML3D. The message names
            it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MotionError(f"{path} cannot be read as captions: {error}") from error
    return [read_caption(path, n, line) for n, line in enumerate(lines, start=1) if line.strip()]


def read_caption(path: Path, number: int, line: str) -> Caption:
    try:
        text, tokens, start, end = line.strip().split("#")
        seconds = [0.0 if math.isnan(float(value)) else float(value) for value in (start, end)]
        if not all(0 <= value < math.inf for value in seconds):
            raise ValueError(seconds)
    except ValueError:
        raise MotionError(
            f"{path}, line {number} is not caption#word/PART ...#start#end, as in HumanML3D: "
            f"{line[:60]!r}"
        ) from None
    return Caption(text, tuple(tokens.split()), *seconds)
