"""An iterator whose next item can be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Peekable(Generic[T]):
    """Yields the items of an iterator, and shows the next one before it is taken."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._next: list[T] = []

    def __iter__(self) -> Peekable[T]:
        return self

    def __next__(self) -> T:
        return self._next.pop() if self._next else next(self._items)

    def peek(self) -> T | None:
        """Returns the next item, which stays; None if there are no more."""
        if not self._next:
            self._next.extend(islice(self._items, 1))
        return self._next[0] if self._next else None
