"""Which clips are in which batch of an epoch, and which process takes it in which step."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from random import Random
from typing import TypeVar

from wanvae.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips of one shape.

    Attributes:
        shape: the shape of each clip.
        clips: the numbers of the clips.
    """

    shape: tuple[int, ...]
    clips: list[int]

    @property
    def work(self) -> int:
        """The numbers in all clips together."""
        return prod(self.shape) * len(self.clips)


def count_steps(sizes: Iterable[int], batch_size: int, processes: int, *, drop_last: bool) -> int:
    """Returns the number of steps of ``plan_steps``.

    Args:
        sizes: number of clips of each shape.
    """
    if drop_last:
        return sum(size // batch_size for size in sizes) // processes
    return -(-sum(-(-size // batch_size) for size in sizes) // processes)


def plan_steps(
    clips: Mapping[tuple[int, ...], Sequence[int]],
    batch_size: int,
    processes: int,
    *,
    drop_last: bool,
    generator: Random | None,
) -> list[list[list[int]]]:
    """Returns the clips of each batch: in each step one batch for each process.

    The batches of a step have neighbouring places in the order of their work.

    Args:
        clips: the clips of each shape.
        batch_size: clips in a batch.
        processes: number of processes.
        drop_last: leave out smaller batches, and batches that do not fill a step. Without it, the
            batches with the most clips are divided until all steps are full.
        generator: for a random order; None puts batches with the most work first.

    Raises:
        UserError: there are too few clips for a step.
    """
    batches: list[Batch] = []
    for shape, numbers in clips.items():
        numbers = in_order(numbers, generator)
        parts = (numbers[at : at + batch_size] for at in range(0, len(numbers), batch_size))
        batches += [Batch(shape, p) for p in parts if len(p) == batch_size or not drop_last]
    batches = in_order(batches, generator)
    if drop_last:
        batches = batches[: len(batches) // processes * processes]
    else:
        batches = divided(batches, -len(batches) % processes)
    if not batches or len(batches) % processes:
        raise UserError(
            f"there are too few clips for batches of {batch_size} in {processes} processes: take "
            "more clips, a smaller batch_size or fewer processes, or leave out drop_last"
        )
    batches.sort(key=lambda batch: (batch.work, batch.shape), reverse=True)
    steps = [
        [batch.clips for batch in batches[at : at + processes]]
        for at in range(0, len(batches), processes)
    ]
    return [in_order(step, generator) for step in in_order(steps, generator)]


def in_order(items: Collection[T], generator: Random | None) -> list[T]:
    """Returns ``items`` in random order; without a generator, as they are."""
    if generator is None:
        return list(items)
    # The numbers of random() are the same in all versions of Python.
    order = sorted((generator.random(), place) for place in range(len(items)))
    items = list(items)
    return [items[place] for _, place in order]


def divided(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Returns ``count`` batches more: the largest batch is divided in two, again and again.

    If all batches have one clip, there are fewer.
    """
    # The place makes the order of equal batches certain.
    heap = [(-len(batch.clips), place, batch) for place, batch in enumerate(batches)]
    heapq.heapify(heap)
    for place in range(len(batches), len(batches) + count):
        if not heap or heap[0][0] == -1:
            break
        _, old, batch = heap[0]
        half = len(batch.clips) // 2
        first, second = (
            Batch(batch.shape, batch.clips[half:]),
            Batch(batch.shape, batch.clips[:half]),
        )
        heapq.heapreplace(heap, (-len(first.clips), old, first))
        heapq.heappush(heap, (-len(second.clips), place, second))
    return [batch for _, _, batch in sorted(heap, key=lambda entry: entry[1])]
