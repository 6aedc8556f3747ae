"""Buckets: a few shapes, of which each clip gets the nearest one, so that clips form batches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import exp, isqrt, log, sqrt

from wanvae.engine.config import check

# Height and width in pixels.
Shape = tuple[int, int]
# How wide the widest shape of an area is, about, as a ratio of width to height.
WIDEST = 2


def shapes_of_area(height: int, width: int, multiple: int, aspects: int) -> tuple[Shape, ...]:
    """Returns shapes with about the area of one shape, from tall to wide.

    The ratios of width to height are a geometric series around 1: with each ratio there is its
    inverse, and the square. The series ends near 1:2 and 2:1, or with the given shape if that is
    longer. The given shape is one of them, if its sides are multiples of ``multiple`` and it is not
    nearly a square. The shorter side is the nearest multiple, and the longer side is the largest
    multiple within the area, so that no shape has more pixels than the given one. All shapes except
    the square are among the shapes that musubi-tuner has for this area.

    Args:
        height, width: the given shape, like 480 and 832.
        multiple: all sides are multiples of it, like 16.
        aspects: number of ratios, odd. Where several ratios give one shape, there are fewer shapes.

    Raises:
        UserError: a number is out of range, or the area is too small for the multiple.
    """
    check(multiple >= 1, "multiple", multiple, "1 or more")
    check(aspects >= 1 and aspects % 2 == 1, "aspects", aspects, "an odd number, like 9")
    area, steps = height * width, aspects // 2
    side = isqrt(area) // multiple * multiple
    own = log(max(height, width) / min(height, width))
    # The place of the given shape in the series; 0 if it is nearly a square.
    place = min(round(steps * own / log(WIDEST)), steps)
    step = own / place if place else log(WIDEST) / max(steps, 1)
    shapes = {(side, side)}
    for number in range(1, steps + 1):
        short = multiple * round(sqrt(area) / exp(number * step / 2) / multiple)
        long = area // short // multiple * multiple if short else 0
        shapes |= {(short, long), (long, short)}
    enough = f"an area whose shapes have sides of {multiple} or more"
    check(all(min(shape) for shape in shapes), "area", f"{height}x{width}", enough)
    return tuple(sorted(shapes, reverse=True))


def nearest_shape(height: int, width: int, shapes: Iterable[Shape]) -> Shape:
    """Returns the shape that loses least of frames that are scaled to cover it and then cropped.

    Of shapes that lose the same, as shapes of one ratio do, it is the largest one that needs no
    enlargement; else the smallest one. A square between a tall and a wide shape becomes wide.

    Args:
        height, width: the size of the frames.
    """

    def closeness(shape: Shape) -> tuple[Fraction, bool, int, int]:
        ratio = Fraction(shape[0] * width, shape[1] * height)
        fits = shape[0] <= height and shape[1] <= width
        area = shape[0] * shape[1]
        return min(ratio, 1 / ratio), fits, area if fits else -area, shape[1]

    return max(shapes, key=closeness)


def parse_shapes(name: str, texts: Sequence[str]) -> tuple[Shape, ...]:
    """Returns the heights and widths in texts like "480x832".

    Args:
        name: the name of the option, for messages.

    Raises:
        UserError: a text is another one.
    """
    expected = "a height and a width like 480x832"
    for text in texts:
        check(bool(re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text)), name, text, expected)
    sides = (text.split("x") for text in texts)
    return tuple((int(height), int(width)) for height, width in sides)
