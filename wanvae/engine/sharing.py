"""Work that the processes of a run share: which items each one takes, and its progress bar."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


def neighbouring_share(items: Sequence[T], sizes: Sequence[int], rank: int, ranks: int) -> list[T]:
    """Returns the items of process ``rank``: neighbours, and about as much work as the others have.

    Args:
        sizes: the work of each item.
    """
    total, before, share = sum(sizes), 0, []
    for item, size in zip(items, sizes, strict=True):
        if (2 * before + size) * ranks // (2 * total) == rank:
            share.append(item)
        before += size
    return share


def balanced_share(items: Sequence[T], sizes: Sequence[int], rank: int, ranks: int) -> list[T]:
    """Returns the items of process ``rank``, the largest first.

    Each item in turn goes to the process with the least work so far.

    Args:
        sizes: the work of each item.
    """
    busy = [(0, process) for process in range(ranks)]
    share = []
    for number in sorted(range(len(items)), key=lambda number: -sizes[number]):
        work, idlest = heapq.heappop(busy)
        heapq.heappush(busy, (work + sizes[number], idlest))
        if idlest == rank:
            share.append(items[number])
    return share


def progress_bar(
    processes: PartialState,
    unit: str,
    *,
    items: Iterable[Any] | None = None,
    total: int | None = None,
    show: bool,
) -> tqdm:
    """Returns a progress bar over the work of this process. Only the first process shows it.

    Args:
        unit: the name of one step.
        items: what to iterate over; None for a bar that is moved by ``update``.
        total: the number of steps; None takes the length of ``items``.
        show: whether to show it at all.
    """
    shown = show and processes.is_main_process
    return tqdm(items, total=total, unit=unit, disable=not shown)
