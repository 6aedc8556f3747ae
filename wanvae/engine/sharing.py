"""Work that the processes of a run share: which items each one takes, and its progress bar."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

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


def share_files(files: Sequence[T], processes: PartialState, *, progress: bool) -> Iterator[T]:
    """Yields the files of this process: every n-th file if the run has n processes.

    Args:
        progress: show a progress bar, in the first process.
    """
    share = files[processes.process_index :: processes.num_processes]
    with progress_bar(processes, "file", total=len(share), show=progress) as bar:
        for file in share:
            yield file
            bar.update()


def progress_bar(processes: PartialState, unit: str, *, total: int, show: bool) -> tqdm:
    """Returns a progress bar of the work of this process, moved by ``update``.

    Args:
        unit: the name of one step.
        total: the number of steps.
        show: whether to show it, in the first process.
    """
    return tqdm(total=total, unit=unit, disable=not (show and processes.is_main_process))
