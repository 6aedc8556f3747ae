"""Numbered image files that are one video, like frames/%05d.png."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import count, takewhile

# What stands for the number in a name: %d, or %05d for at least five digits.
_NUMBER = re.compile(r"%(0\d+)?d")


@dataclass(frozen=True)
class NumberedImages:
    """The images of a pattern.

    Attributes:
        paths: the images from the lowest number on, without a gap in the numbers.
        first: number of the first image.
        total: how many images the pattern names.
    """

    paths: tuple[str, ...]
    first: int
    total: int

    @property
    def gap(self) -> str | None:
        """Says which images are not read, because a number is missing; None if all are."""
        length = len(self.paths)
        if length == self.total:
            return None
        return (
            f"number {self.first + length} of its images is missing, so {length} of its "
            f"{self.total} images are read"
        )


def find_numbered(pattern: str) -> NumberedImages | None:
    """Returns the images that a pattern names; None if it is no pattern, or names no file."""
    folder, name = os.path.split(os.path.abspath(pattern))
    parts = _NUMBER.split(name)
    if len(parts) != 3 or not os.path.isdir(folder):
        return None
    before, digits, after = parts
    image = re.compile(f"{re.escape(before)}([0-9]+){re.escape(after)}", re.DOTALL)
    matches = filter(None, map(image.fullmatch, os.listdir(folder)))
    names = {int(match[1]): match[0] for match in matches if _is_padded(match[1], digits)}
    if not names:
        return None
    first = min(names)
    numbers = takewhile(names.__contains__, count(first))
    paths = tuple(os.path.join(folder, names[number]) for number in numbers)
    return NumberedImages(paths, first, len(names))


def _is_padded(text: str, digits: str | None) -> bool:
    """Whether a number is written with as many digits as the pattern asks for."""
    return f"{int(text):{digits or ''}d}" == text
