"""TextGrid files of Praat: what is said in a recording, and when.

A text file of Praat is a row of texts in quotes, of numbers and of flags like ``<exists>``. All
else, such as the names of fields of the long format, is for people, and so is what follows "!" in a
line. So long and short files are read alike. Source: "TextGrid file formats" in Praat's manual.
"""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from motion.errors import MotionError
from wanvae.errors import UserError

ELEMENT = re.compile(r'"((?:[^"]|"")*)"|!.*|([^\s"!]+)')
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")
FLAGS = ("<exists>", "<absent>")


@dataclass(frozen=True)
class Interval:
    """A labelled part of a recording.

    Attributes:
        text: the label; empty where nothing is said.
        start, stop: seconds.
    """

    text: str
    start: float
    stop: float


@dataclass(frozen=True)
class Tier:
    """Intervals that follow each other, such as the words of a speaker.

    Attributes:
        name: what the intervals are, like "words".
        intervals: the intervals, by time.
    """

    name: str
    intervals: tuple[Interval, ...]


class Elements:
    """The texts, numbers and flags of a file, one after the other."""

    def __init__(self, text: str) -> None:
        self._rest = find_elements(text)

    def read_text(self) -> str:
        """Returns the next element, which must be a text."""
        element = next(self._rest, "the end of the file")
        if not isinstance(element, str) or not element.startswith('"'):
            raise UserError(f"there is {element}, where a text in quotes is expected")
        return element[1:-1]

    def read_number(self) -> float:
        """Returns the next element, which must be a number."""
        element = next(self._rest, "the end of the file")
        if not isinstance(element, float) or not isfinite(element):
            raise UserError(f"there is {str(element)[:40]}, where a number is expected")
        return element

    def read_span(self) -> tuple[float, float]:
        """Returns the next two elements, which must be numbers: a start and a stop."""
        return self.read_number(), self.read_number()

    def read_count(self) -> int:
        """Returns the next element, which must be a whole number of at least 0."""
        number = self.read_number()
        if number < 0 or number != int(number):
            raise UserError(f"there is {number:g}, where a number of elements is expected")
        return int(number)

    def read_flag(self) -> bool:
        """Returns whether the next element, which must be a flag, is ``<exists>``."""
        element = next(self._rest, "the end of the file")
        if element not in FLAGS:
            raise UserError(f"there is {element}, where {' or '.join(FLAGS)} is expected")
        return element == "<exists>"


def find_elements(text: str) -> Iterator[str | float]:
    """Yields texts in their quotes, numbers as such, and flags."""
    for found in ELEMENT.finditer(text):
        quoted, word = found.groups()
        if quoted is not None:
            yield '"' + quoted.replace('""', '"') + '"'
        elif word in FLAGS:
            yield word
        elif word and (number := NUMBER.match(word)):
            yield float(number[0])


def read_textgrid(path: str | os.PathLike[str]) -> list[Tier]:
    """Reads the tiers of intervals of a text file of Praat, long or short, in UTF-8 or UTF-16.

    Tiers of points in time are left out.

    Raises:
        MotionError: the file cannot be read, or is something else.
    """
    try:
        return parse_textgrid(decode(Path(path).read_bytes()))
    except (OSError, UserError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise MotionError(f"{path} cannot be read as a TextGrid: {why}") from error


def decode(content: bytes) -> str:
    """Returns the text of a file; UserError if it is in another encoding."""
    if content.startswith(b"ooBinaryFile"):
        raise UserError('it is binary; save it in Praat by "Save as text file"')
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"it is neither UTF-8 nor UTF-16 ({error.reason})") from error


def parse_textgrid(text: str) -> list[Tier]:
    """Returns the tiers of intervals of a text; UserError if it is no TextGrid."""
    elements = Elements(text)
    kinds = elements.read_text(), elements.read_text()
    if not kinds[0].startswith("ooTextFile") or kinds[1] != "TextGrid":
        raise UserError(f"it begins with {' and '.join(kinds)}, not with ooTextFile and TextGrid")
    elements.read_span()
    tiers = []
    for _ in range(elements.read_count() if elements.read_flag() else 0):
        kind, name = elements.read_text(), elements.read_text()
        elements.read_span()
        count = elements.read_count()
        if kind == "IntervalTier":
            tiers.append(Tier(name, tuple(read_interval(elements) for _ in range(count))))
        elif kind == "TextTier":
            for _ in range(count):
                elements.read_number()
                elements.read_text()
        else:
            raise UserError(f"{kind!r} is no kind of tier")
    return tiers


def read_interval(elements: Elements) -> Interval:
    """Reads the next interval."""
    start, stop = elements.read_span()
    return Interval(elements.read_text().strip(), start, stop)
