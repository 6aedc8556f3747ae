"""The first part of a BVH file, the tree of its joints: reading and writing it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from motion.errors import MotionError
from motion.skeleton.tree import Skeleton

AXES = "XYZ"
# Of the rotations that a joint has no channels for.
DEFAULT_ORDER = "ZXY"
CHANNELS = frozenset(axis + kind for axis in AXES for kind in ("rotation", "position"))
# What begins a comment, at the beginning of a line or after a blank.
COMMENT = re.compile(r"(^|\s)(#|//).*")


def as_number(word: str) -> float:
    """Returns ``word`` as a float; NaN if it is not a number."""
    try:
        return float(word)
    except ValueError:
        return math.nan


@dataclass
class Joint:
    """A joint of a BVH file; ``line`` is where it begins."""

    name: str
    parent: int
    line: int
    offset: tuple[float, ...] | None = None
    channels: tuple[str, ...] = ()
    ends: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def order(self) -> str:
        """The axes of the rotations, in the order of the channels; axes without a channel last."""
        given = "".join(c[0] for c in self.channels if c.endswith("rotation"))
        return given + "".join(axis for axis in DEFAULT_ORDER if axis not in given)


class Hierarchy:
    """A reader of the words of a BVH file up to its frames.

    After ``read``, ``joints`` has the joints in the order of the file. The parent of each root is
    -1.
    """

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path = path
        self.words = [(word, n) for n, line in enumerate(lines, 1) for word in line.split()]
        self.next = 0
        self.joints: list[Joint] = []

    def fail(self, line: int, problem: str) -> NoReturn:
        """Raises MotionError for a line of the file."""
        raise MotionError(f"{self.path}, line {line}: {problem}")

    def take(self, wanted: str = "") -> str:
        """Returns the next word, which must be ``wanted`` if that is given."""
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
        """The line of the last word that was taken."""
        return self.words[max(self.next, 1) - 1][1]

    def take_number(self) -> float:
        """Returns the next word, a finite number."""
        word = self.take()
        value = as_number(word)
        if not math.isfinite(value):
            self.fail(self.line, f"{word[:40]!r} is no number; correct it")
        return value

    def take_offset(self) -> tuple[float, ...]:
        """Returns the next three words, numbers."""
        return self.take_number(), self.take_number(), self.take_number()

    def take_name(self) -> str:
        """Returns all words up to the next brace, because names may have blanks in them."""
        words = []
        while (word := self.take()) != "{":
            words.append(word)
        return " ".join(words)

    def take_channels(self) -> tuple[str, ...]:
        """Returns the channels of a joint: any rotations and positions, each once."""
        count, line = self.take_number(), self.line
        start = self.next
        while self.next < len(self.words) and self.words[self.next][0][-8:].lower() in (
            "rotation",
            "position",
        ):
            self.next += 1
        names = tuple(
            word[0].upper() + word[1:].lower() for word, _ in self.words[start : self.next]
        )
        joint = self.joints[-1].name
        if len(names) != count or len(set(names)) != count:
            self.fail(line, f"{joint} has {count:g} channels but names {' '.join(names)}")
        if not CHANNELS.issuperset(names):
            unknown = " ".join(sorted(set(names) - CHANNELS))
            self.fail(line, f"{joint} has the channels {unknown}; axes are X, Y and Z")
        return names

    def read(self) -> None:
        """Reads the trees, up to the word MOTION."""
        self.take("HIERARCHY")
        while not self.joints or self.follows("ROOT"):
            self.read_tree()
        self.take("MOTION")

    def follows(self, word: str) -> bool:
        """Whether the next word is this one."""
        return self.next < len(self.words) and self.words[self.next][0].upper() == word

    def read_tree(self) -> None:
        """Reads a root and all below it."""
        blocks: list[int | None] = []  # joints with open braces; None is an end site
        first = len(self.joints)
        while blocks or len(self.joints) == first:
            word = self.take("" if len(self.joints) > first else "ROOT").upper()
            at = blocks[-1] if blocks else None
            joint = None if at is None else self.joints[at]
            if word == "}":
                blocks.pop()
                self.check_complete(joint)
            elif (word == "ROOT" and not blocks) or (word == "JOINT" and joint):
                line = self.line
                blocks.append(len(self.joints))
                self.joints.append(Joint(self.take_name(), -1 if at is None else at, line))
            elif word == "END" and joint:
                self.take_name()
                if not self.follows("}"):
                    self.take("OFFSET")
                    joint.ends.append(self.take_offset())
                blocks.append(None)
            elif word == "OFFSET" and joint and joint.offset is None:
                joint.offset = self.take_offset()
            elif word == "CHANNELS" and joint and joint is self.joints[-1] and not joint.channels:
                joint.channels = self.take_channels()
            else:
                self.fail(self.line, f"{word[:40]!r} is out of place; is it a BVH file?")

    def check_complete(self, joint: Joint | None) -> None:
        """Raises MotionError if a joint has no offset. Without channels it stands still."""
        if joint and joint.offset is None:
            self.fail(joint.line, f"{joint.name} has no OFFSET; add it")

    def select_tree(self, root: str | None) -> slice:
        """Returns the joints of the tree of the root with this name; None is the only root.

        Raises:
            MotionError: there is no such root, or there are several and none is named.
        """
        starts = [place for place, joint in enumerate(self.joints) if joint.parent < 0]
        names = [self.joints[start].name for start in starts]
        if root is None and len(names) > 1:
            raise MotionError(
                f"{self.path} has {len(names)} skeletons, {', '.join(names)}; choose one with "
                "--root"
            )
        if root is not None and root not in names:
            raise MotionError(f"{self.path} has no root {root!r}; its roots: {', '.join(names)}")
        which = 0 if root is None else names.index(root)
        return slice(*[*starts, len(self.joints)][which : which + 2])


def write_hierarchy(skeleton: Skeleton) -> tuple[list[str], list[int]]:
    """Returns the lines of the tree in a BVH file, and the joints in the order of these lines."""
    lines, order = ["HIERARCHY"], []
    depths = [0] * skeleton.joints
    ends = {joint: [] for joint in range(skeleton.joints)}
    for site in skeleton.end_sites:
        ends[site.joint].append(site.offset)
    children = skeleton.children
    waiting: list[int | str] = [0]  # joints to write, and closing braces of written joints
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
            f"{indent}\tOFFSET {format_offset(skeleton.offsets[joint], skeleton.unit)}",
            f"{indent}\tCHANNELS {positions} {rotations}",
        ]
        # Programs expect an end site at every joint without children.
        placeholder = [] if children[joint] else [(0.0, 0.0, 0.0)]
        for end in ends[joint] or placeholder:
            offset = f"\t\tOFFSET {format_offset(end, skeleton.unit)}"
            lines += [indent + line for line in ("\tEnd Site", "\t{", offset, "\t}")]
        waiting.append(f"{indent}}}")
        waiting += reversed(children[joint])
    return lines, order


def format_offset(offset: tuple[float, ...], unit: float) -> str:
    """Returns an offset in units of the file."""
    return " ".join(f"{x / unit:.6f}" for x in offset)
