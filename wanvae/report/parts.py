"""What a page is made of. How each part looks is told by its template and by ``page.js``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np

Cell: TypeAlias = str | float | None
# Shown for a figure that there is not.
NOTHING = "\N{EN DASH}"
# Points of figures are kept as integers of 16 bits, as fine as their extent allows.
STEPS = 65535


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading, with the unit.
        digits: of its numbers, after the point.
        better: which numbers of it are; the best one is marked, if there are several.
        explanation: shown over the heading.
        bars: whether numbers of it, from 0 up, get bars behind them.
    """

    name: str
    digits: int = 2
    better: Literal["higher", "lower"] | None = None
    explanation: str = ""
    bars: bool = False

    def text(self, cell: Cell) -> str:
        """A cell as it is shown."""
        if isinstance(cell, str):
            return cell
        value = number(cell)
        return NOTHING if value is None else f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells, and the anchor of the section that its first cell leads to."""

    cells: Sequence[Cell]
    anchor: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows that can be sorted by any column."""

    template: ClassVar[str] = "table.html"
    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str = ""

    @property
    def best(self) -> list[float | None]:
        """The best number of each column; None if none is to be marked."""
        return [self._best(index) for index in range(len(self.columns))]

    @property
    def largest(self) -> list[float | None]:
        """The number of each column whose bar is as wide as its cell; None if it has no bars."""
        return [
            max(self._numbers(index), default=None) if column.bars else None
            for index, column in enumerate(self.columns)
        ]

    def _best(self, index: int) -> float | None:
        better, numbers = self.columns[index].better, self._numbers(index)
        if better is None or len(numbers) < 2:
            return None
        return max(numbers) if better == "higher" else min(numbers)

    def _numbers(self, index: int) -> list[float]:
        cells = [row.cells[index] for row in self.rows]
        numbers = [number(cell) for cell in cells if not isinstance(cell, str)]
        return [value for value in numbers if value is not None]


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis. Where they are over frames, a click shows the frame.

    Attributes:
        lines: values by name; None or NaN is a gap.
        x: of each value; None is 0, 1, ...
        by_frame: whether x are the frames that players of the same section show.
        from_zero: whether the vertical axis begins at 0.
        markers: whether each value gets a dot.
        first_colour: number of the colour of the first line, of those that figures have in turn.
    """

    template: ClassVar[str] = "curves.html"
    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[float | None]]
    x: Sequence[float] | None = None
    by_frame: bool = False
    from_zero: bool = False
    markers: bool = False
    first_colour: int = 0

    @property
    def data(self) -> dict[str, object]:
        """For ``page.js``."""
        return {
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "x": None if self.x is None else list(self.x),
            "lines": {name: [short(value) for value in line] for name, line in self.lines.items()},
            "byFrame": self.by_frame,
            "fromZero": self.from_zero,
            "markers": self.markers,
            "firstColour": self.first_colour,
        }


@dataclass(frozen=True)
class Picture:
    """A picture file and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Pictures in rows of so many."""

    template: ClassVar[str] = "pictures.html"
    pictures: Sequence[Picture]
    columns: int
    title: str = ""


@dataclass(frozen=True)
class Comparison:
    """One picture over another with a slider between them, moving or still.

    Attributes:
        media: .mp4, .png, .jpg or .webp with all panels side by side, of the same width.
        panels: what each shows; the first two are compared to begin with.
        fps: frames per second of a video.
        first: number of its first frame.
    """

    template: ClassVar[str] = "comparison.html"
    media: Path
    panels: Sequence[str]
    fps: float = 1.0
    first: int = 0

    @property
    def data(self) -> dict[str, object]:
        """For ``page.js``."""
        return {"panels": list(self.panels), "fps": self.fps, "first": self.first}


@dataclass(frozen=True, eq=False)
class StickFigures:
    """Figures that move in one space, to be turned and played.

    Attributes:
        labels: of each figure.
        points: ``(F, T, P, 3)`` in metres, y up: of each figure, in each frame. The first is that
            which is followed.
        bones: pairs of points that are joined.
        fps: frames per second.
        first: number of the first frame.
        yaw: where they are seen from to begin with: radians about the vertical from +z to +x.
    """

    template: ClassVar[str] = "figures.html"
    labels: Sequence[str]
    points: np.ndarray
    bones: Sequence[tuple[int, int]]
    fps: float
    first: int = 0
    yaw: float = 0.55

    @property
    def media(self) -> bytes:
        """The points, little-endian integers of 16 bits in steps of ``data["step"]``."""
        low, step = self._grid()
        return np.round((self.points - low) / step - 32768).astype("<i2").tobytes()

    @property
    def data(self) -> dict[str, object]:
        """For ``page.js``."""
        low, step = self._grid()
        return {
            "labels": list(self.labels),
            "frames": self.points.shape[1],
            "points": self.points.shape[2],
            "bones": [list(bone) for bone in self.bones],
            "fps": self.fps,
            "first": self.first,
            "yaw": self.yaw,
            "low": low.tolist(),
            "step": step,
        }

    def _grid(self) -> tuple[np.ndarray, float]:
        low = self.points.min(axis=(0, 1, 2))
        extent = float((self.points.max(axis=(0, 1, 2)) - low).max())
        return low, max(extent, 1e-3) / STEPS


Part: TypeAlias = Table | Curves | Pictures | Comparison | StickFigures


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        anchor: letters, digits and hyphens, by which it is linked to.
        parts: made when they are written, if they are an iterator.
        text: below the heading.
        folded: whether it has to be opened to be seen.
    """

    title: str
    anchor: str
    parts: Iterable[Part]
    text: str = ""
    folded: bool = False


def number(value: float | None) -> float | None:
    """``value``, or None for what is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def short(value: float | None) -> float | None:
    """``value`` with as many digits as a curve shows."""
    value = number(value)
    return None if value is None else float(f"{value:.5g}")
