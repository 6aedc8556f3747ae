"""The elements of a page. The template of each, and ``page.js``, say how it looks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np

Cell: TypeAlias = str | float | None
# Shown where there is no figure.
NOTHING = "\N{EN DASH}"
# Points of figures are kept as integers of 16 bits, as fine as their extent allows.
STEPS = 65535


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: the heading, with the unit.
        digits: how many digits numbers have after the point.
        better: whether higher or lower numbers are better; the best one is marked, if they differ.
        explanation: shown over the heading.
        bars: whether there are bars behind the numbers, which start at 0.
    """

    name: str
    digits: int = 2
    better: Literal["higher", "lower"] | None = None
    explanation: str = ""
    bars: bool = False

    def text(self, cell: Cell) -> str:
        """The text that a cell shows."""
        if isinstance(cell, str):
            return cell
        value = number(cell)
        return NOTHING if value is None else f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells, and the anchor of the section its first cell links to."""

    cells: Sequence[Cell]
    anchor: str | None = None


@dataclass(frozen=True)
class Table:
    """A table that readers can sort by any column."""

    template: ClassVar[str] = "table.html"
    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str = ""

    def is_text(self, index: int) -> bool:
        """Whether any cell of a column is text."""
        return any(isinstance(row.cells[index], str) for row in self.rows)

    @property
    def best(self) -> list[float | None]:
        """The best number of each column; None where nothing is marked, because all look alike."""
        return [self._best(index) for index in range(len(self.columns))]

    @property
    def largest(self) -> list[float | None]:
        """The number of each column whose bar fills its cell; None for columns without bars."""
        return [
            max(self._numbers(index), default=None) if column.bars else None
            for index, column in enumerate(self.columns)
        ]

    def _best(self, index: int) -> float | None:
        column = self.columns[index]
        if column.better is None:
            return None
        numbers = self._numbers(index)
        if len({column.text(value) for value in numbers}) < 2:
            return None
        return max(numbers) if column.better == "higher" else min(numbers)

    def _numbers(self, index: int) -> list[float]:
        cells = [row.cells[index] for row in self.rows]
        numbers = [number(cell) for cell in cells if not isinstance(cell, str)]
        return [value for value in numbers if value is not None]


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis. If the axis counts frames, a click shows the frame.

    Attributes:
        title: the heading.
        x_label, y_label: the labels of the axes, with the unit.
        lines: values by name; None or NaN is a gap.
        x: the position of each value; None is 0, 1, ...
        by_frame: whether x counts the frames that players of the same section show.
        from_zero: whether the vertical axis begins at 0.
        markers: whether each value gets a dot.
        first_colour: the number of the colour of the first line; figures have the same colours.
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
    """Pictures in rows of ``columns`` each."""

    template: ClassVar[str] = "pictures.html"
    pictures: Sequence[Picture]
    columns: int
    title: str = ""


@dataclass(frozen=True)
class Comparison:
    """One picture over another with a slider between them, moving or still.

    Attributes:
        media: a .mp4, .png, .jpg or .webp file with all panels side by side, of the same width.
        panels: the name of each panel; the first two are compared at the start.
        fps: frames per second of a video.
        first: the number of its first frame.
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
    """Figures that move in one space. Readers can turn and play them.

    Attributes:
        labels: the name of each figure.
        points: ``(F, T, P, 3)`` in metres, y up: the points of each figure in each frame. The view
            follows the first figure.
        bones: pairs of points that lines join.
        fps: frames per second.
        first: the number of the first frame.
        yaw: the first point of view, in radians about the vertical from +z to +x.
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
        """The points as little-endian integers of 16 bits, in steps of ``data["step"]``."""
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


Element: TypeAlias = Table | Curves | Pictures | Comparison | StickFigures


@dataclass(frozen=True)
class Section:
    """A stretch of a page with a heading.

    Attributes:
        title: the heading.
        anchor: letters, digits and hyphens; links lead to it.
        elements: shown one below the other. An iterator gives each when it is written.
        text: shown below the heading.
        folded: whether readers must open the section to see it.
        columns: how many curves are side by side, where there is room.
    """

    title: str
    anchor: str
    elements: Iterable[Element]
    text: str = ""
    folded: bool = False
    columns: int = 1


def number(value: float | None) -> float | None:
    """``value``, or None if it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def short(value: float | None) -> float | None:
    """``value`` with as many digits as a curve shows."""
    value = number(value)
    return None if value is None else float(f"{value:.5g}")
