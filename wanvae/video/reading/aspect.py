"""Pixels that are not square, as on DVDs, and the size of the pictures in square pixels."""

from __future__ import annotations

from fractions import Fraction

# How far from square pixels are before anyone sees it.
_SQUARE = Fraction(1, 100)
# No camera or disc has pixels so much wider than high, or higher than wide.
_WIDEST = 8


def square_size(width: int, height: int, ratio: Fraction | None) -> tuple[int, int]:
    """Returns the width and height of a picture in square pixels.

    The larger side stays, and the other is scaled. If both are the same, the one stays that is
    longer on the screen. A side that is even stays even, because most codecs need even sides.

    Args:
        width, height: pixels as they are stored.
        ratio: width of a pixel, divided by its height; None if a file does not say. Nothing is
            scaled if pixels are nearly square, or if the ratio cannot be meant.
    """
    if not ratio or abs(ratio - 1) <= _SQUARE or not 1 / _WIDEST <= ratio <= _WIDEST:
        return width, height
    if width > height or (width == height and ratio > 1):
        return width, _nearest(height / ratio, even=height % 2 == 0)
    return _nearest(width * ratio, even=width % 2 == 0), height


def ratio_text(ratio: Fraction | None) -> str:
    """Returns a ratio as people write it, like 64:45."""
    return f"{ratio.numerator}:{ratio.denominator}" if ratio else "1:1"


def _nearest(side: Fraction, *, even: bool) -> int:
    """Returns the whole number next to ``side`` that is positive, and ``even`` if asked for."""
    return max(2, 2 * round(side / 2)) if even else max(1, round(side))
