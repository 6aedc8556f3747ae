"""Numbered image files that are one video, like frames/%05d.png."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import count, takewhile

from wanvae.video.common import FilePart, Source, address

# What FFmpeg takes for the number in a name: %d, or %05d for at least five digits.
_NUMBER = re.compile(r"%(0\d+)?d")


@dataclass(frozen=True)
class NumberedImages:
    """The images of a pattern.

    Attributes:
        first: number of the first image.
        length: images from there on without a gap in the numbers.
        total: all images of the pattern.
    """

    first: int
    length: int
    total: int

    @property
    def gap(self) -> str | None:
        """Says which images are not read, because a number is missing; None if all are."""
        if self.length == self.total:
            return None
        return (
            f"number {self.first + self.length} of its images is missing, so {self.length} of its "
            f"{self.total} images are read"
        )


def find_images(pattern: Source) -> NumberedImages | None:
    """Returns the images that a pattern names; None if it is no pattern, or names no file."""
    if isinstance(pattern, FilePart):
        return None
    folder, name = os.path.split(address(pattern))
    parts = _NUMBER.split(name)
    if len(parts) != 3 or not os.path.isdir(folder):
        return None
    before, digits, after = parts
    image = re.compile(f"{re.escape(before)}([0-9]+){re.escape(after)}", re.DOTALL)
    matches = filter(None, map(image.fullmatch, os.listdir(folder)))
    texts = {match[1] for match in matches}
    numbers = {int(text) for text in texts if f"{int(text):{digits or ''}d}" == text}
    if not numbers:
        return None
    first = min(numbers)
    length = sum(1 for _ in takewhile(numbers.__contains__, count(first)))
    return NumberedImages(first, length, len(numbers))
