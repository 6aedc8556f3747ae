"""The part of a BVH file that says which joints there are: its tree, read and written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from motion.errors import MotionError
from motion.skeleton.tree import Skeleton

AXES = "XYZ"


def as_number(word: str) -> float:
    """``word`` as a float, NaN if it is none."""
    try:
        return float(word)
    except ValueError:
        return math.nan


@dataclass
class Joint:
    """What a BVH file says about a joint."""

    name: str
    parent: int
    line: int
    offset: tuple[float, ...] | None = None
    channels: tuple[str, ...] = ()
    ends: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def order(self) -> str:
        return "".join(c[0] for c in self.channels if c.endswith("rotation"))


class Hierarchy:
    """Reads the words of a BVH file up to the frames; ``joints`` are in the order of the file."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path = path
        self.words = [(word, n) for n, line in enumerate(lines, 1) for word in line.split()]
        self.next = 0
        self.joints: list[Joint] = []

    def fail(self, line: int, problem: str) -> NoReturn:
        raise MotionError(f"{self.path}, line {line}: {problem}")

    def take(self, wanted: str = "") -> str:
        if self.next == len(self.words):
            line = self.words[-1][1] if self.words else 1
            self.fail(line, f"the file ends where {wanted or 'more'} is expected; get it again")
        word, line = self.words[self.next]
        if wanted and word.upper() != wanted:
            self.fail(line, f"it says {word[:40]!r} where {wanted} is expected; is it a BVH file?")
        self.next += 1
        return word

    @property
    def line(self) -> int:
        """That of the word taken last."""
        return self.words[max(self.next, 1) - 1][1]

    def number(self) -> float:
        word = self.take()
        value = as_number(word)
        if not math.isfinite(value):
            self.fail(self.line, f"{word[:40]!r} is no number; correct it")
        return value

    def offset(self) -> tuple[float, ...]:
        return self.number(), self.number(), self.number()

    def name(self) -> str:
        """All words up to the next brace, for names may have blanks in them."""
        words = []
        while (word := self.take()) != "{":
            words.append(word)
        return " ".join(words)

    def channels(self) -> tuple[str, ...]:
        """The channels of a joint: three rotations, and three positions or none."""
        count, line = self.number(), self.line
        start = self.next
        while self.next < len(self.words) and self.words[self.next][0][-8:].lower() in (
            "rotation",
            "position",
        ):
            self.next += 1
        names = tuple(
            word[0].upper() + word[1:].lower() for word, _ in self.words[start : self.next]
        )
        kinds = [{n for n in names if n.endswith(kind)} for kind in ("rotation", "position")]
        every = [{axis + kind for axis in AXES} for kind in ("rotation", "position")]
        joint = self.joints[-1].name
        if len(names) != count or len(set(names)) != count:
            self.fail(line, f"{joint} has {count:g} channels but names {' '.join(names)}")
        if kinds[0] != every[0] or kinds[1] not in (set(), every[1]):
            problem = f"{joint} has the channels {' '.join(names) or 'none'}"
            self.fail(line, f"{problem}; a joint needs 3 rotations, and 3 positions or none")
        return names

    def read(self) -> None:
        """Read the tree, up to the word MOTION."""
        self.take("HIERARCHY")
        blocks: list[int | None] = []  # the joints whose braces are open; None is an end site
        while blocks or not self.joints:
            word = self.take("" if self.joints else "ROOT").upper()
            at = blocks[-1] if blocks else None
            joint = None if at is None else self.joints[at]
            if word == "}":
                blocks.pop()
                self.check_complete(joint)
            elif (word == "ROOT" and not self.joints) or (word == "JOINT" and joint):
                line = self.line
                blocks.append(len(self.joints))
                self.joints.append(Joint(self.name(), -1 if at is None else at, line))
            elif word == "END" and joint:
                self.name()
                self.take("OFFSET")
                joint.ends.append(self.offset())
                blocks.append(None)
            elif word == "OFFSET" and joint and joint.offset is None:
                joint.offset = self.offset()
            elif word == "CHANNELS" and joint is self.joints[-1] and not joint.channels:
                joint.channels = self.channels()
            else:
                self.fail(self.line, f"{word[:40]!r} is out of place; is it a BVH file?")
        if self.next < len(self.words) and self.words[self.next][0].upper() == "ROOT":
            self.fail(self.words[self.next][1], "a second ROOT; write one file for each skeleton")
        self.take("MOTION")

    def check_complete(self, joint: Joint | None) -> None:
        if joint and joint.offset is None:
            self.fail(joint.line, f"{joint.name} has no OFFSET; add it")
        if joint and not joint.channels:
            self.fail(joint.line, f"{joint.name} has no CHANNELS; a joint needs 3 rotations")


def hierarchy_lines(skeleton: Skeleton) -> tuple[list[str], list[int]]:
    """The tree as a BVH file has it, and the joints in the order in which they come there."""
    lines, order = ["HIERARCHY"], []
    depths = [0] * skeleton.joints
    ends = {joint: [] for joint in range(skeleton.joints)}
    for site in skeleton.end_sites:
        ends[site.joint].append(site.offset)
    children = skeleton.children
    waiting: list[int | str] = [0]  # joints to write, and the braces that close those written
    while waiting:
        joint = waiting.pop()
        if isinstance(joint, str):
            lines.append(joint)
            continue
        order.append(joint)
        if joint:
            depths[joint] = depths[skeleton.parents[joint]] + 1
        indent = "\t" * depths[joint]
        positions = "3" if joint else "6 Xposition Yposition Zposition"
        rotations = " ".join(f"{axis}rotation" for axis in skeleton.orders[joint])
        lines += [
            f"{indent}{'JOINT' if joint else 'ROOT'} {skeleton.names[joint]}",
            f"{indent}{{",
            f"{indent}\tOFFSET {show(skeleton.offsets[joint], skeleton.unit)}",
            f"{indent}\tCHANNELS {positions} {rotations}",
        ]
        # Programs expect an end site wherever there are no children.
        placeholder = [] if children[joint] else [(0.0, 0.0, 0.0)]
        for end in ends[joint] or placeholder:
            offset = f"\t\tOFFSET {show(end, skeleton.unit)}"
            lines += [indent + line for line in ("\tEnd Site", "\t{", offset, "\t}")]
        waiting.append(f"{indent}}}")
        waiting += reversed(children[joint])
    return lines, order


def show(offset: tuple[float, ...], unit: float) -> str:
    return " ".join(f"{x / unit:.6f}" for x in offset)
