"""Intervals of time, and which interval of its input a layer needs for its output."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The frames from ``first`` to ``last``, both included, of a signal without ends.

    Either end may be infinite.
    """

    first: float
    last: float

    def before_convolution(self, reach: int, stride: int, before: int) -> Interval:
        """Returns the input of windows of ``reach`` frames that begin ``before`` frames earlier."""
        first, last = (end * stride - before for end in (self.first, self.last))
        return Interval(first, last + reach - 1)

    def divided(self, times: int, offset: int = 0) -> Interval:
        """Returns the input of repeated frames: both ends become ``(end + offset) // times``."""
        ends = (self.first, self.last)
        first, last = (end if math.isinf(end) else (end + offset) // times for end in ends)
        return Interval(first, last)

    def union(self, other: Interval) -> Interval:
        """Returns the smallest interval that contains both intervals."""
        return Interval(min(self.first, other.first), max(self.last, other.last))


ALL_TIME = Interval(-math.inf, math.inf)
