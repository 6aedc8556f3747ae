"""Stretches of time, and how much of its input a layer needs for a stretch of its output."""

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
        """What windows of ``reach`` frames see that begin ``before`` frames ahead of their own."""
        first, last = (end * stride - before for end in (self.first, self.last))
        return Interval(first, last + reach - 1)

    def divided(self, times: int, offset: int = 0) -> Interval:
        """``(frame + offset) // times`` of both ends: what repeating frames reads."""
        ends = (self.first, self.last)
        first, last = (end if math.isinf(end) else (end + offset) // times for end in ends)
        return Interval(first, last)

    def union(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(min(self.first, other.first), max(self.last, other.last))


ALL_TIME = Interval(-math.inf, math.inf)
