"""What files of motion do not tell, or tell wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from motion.skeleton.tree import Skeleton
from wanvae.engine.config import check, check_option

Axis = Literal["y", "z"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How motion files are read. None leaves it to the reader.

    Attributes:
        unit: metres per unit of length of a BVH file; None guesses it from the size of a person.
        up: the axis that points up in the file; None guesses it from the pose, or from the keys of
            an .npz file.
        root: the name of the root of the skeleton to read, where a BVH file has several.
        frames_from_data: whether a BVH file may have fewer frames than its line Frames says.
        retarget: whether the skeleton that a model knows moves as the file moves, where the file
            has another one. Nothing where no model reads the file.
    """

    unit: float | None = None
    up: Axis | None = None
    root: str | None = None
    frames_from_data: bool = False
    retarget: bool = False

    def __post_init__(self) -> None:
        if self.unit is not None:
            check(0 < self.unit < float("inf"), "unit", self.unit, "metres, above 0")
        if self.up is not None:
            check_option("up", self.up, Axis)


GUESSED = Reading()


@dataclass(frozen=True, kw_only=True)
class AsRead:
    """What the skeleton of a motion file was read as, whether it was named or guessed.

    Attributes:
        unit, up, root: as in a :class:`Reading`.
    """

    unit: float
    up: Axis
    root: str

    @classmethod
    def of(cls, skeleton: Skeleton) -> AsRead:
        """Returns what the skeleton of a clip was read as."""
        return cls(unit=skeleton.unit, up=skeleton.up, root=skeleton.names[0])

    def fits(self, reading: Reading) -> bool:
        """Whether the file would be read in the same way now, as far as ``reading`` names it."""
        return (
            reading.unit in (None, self.unit)
            and reading.up in (None, self.up)
            and reading.root in (None, self.root)
        )
