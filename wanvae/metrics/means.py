"""Means of figures, of which some may not exist."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Mean:
    """The mean of a stream of numbers, without those that are not finite."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Counts a number, if it is finite."""
        if math.isfinite(value):
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        """The mean so far; None without numbers."""
        return self.total / self.count if self.count else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the finite numbers among ``values``; None without any."""
    mean = Mean()
    for value in values:
        if value is not None:
            mean.add(value)
    return mean.value
