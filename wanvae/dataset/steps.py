"""Which clips are in which batch of an epoch, and which process takes it in which step.

Tensors hold what is known of each batch, because there may be a million of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil, prod
from random import Random

import torch
from torch import Tensor

from wanvae.errors import UserError

# The rows of a table of batches, which has a column for each: the place of its first clip in the
# order of clips, its number of clips, and the number of their shape.
FIRST, COUNT, SHAPE = range(3)


def count_steps(sizes: Iterable[int], batch_size: int, processes: int, *, drop_last: bool) -> int:
    """Returns the number of steps of ``plan_steps``.

    Args:
        sizes: number of clips of each shape.
    """
    if drop_last:
        return sum(size // batch_size for size in sizes) // processes
    return ceil(sum(ceil(size / batch_size) for size in sizes) / processes)


def plan_steps(
    clips: Mapping[tuple[int, ...], Sequence[int]],
    batch_size: int,
    processes: int,
    *,
    drop_last: bool,
    generator: Random | None,
) -> Iterator[list[list[int]]]:
    """Yields the batches of each step, one for each process: lists of clips.

    The batches of a step are neighbours in the order of their work.

    Args:
        clips: the clips of each shape.
        batch_size: clips in a batch.
        processes: number of processes.
        drop_last: leave out smaller batches, and batches that do not fill a step. Without it, the
            batches with the most clips are divided until all steps are full. If then all batches
            have one clip, some come twice.
        generator: for a random order; None puts batches with the most work first.

    Raises:
        UserError: there are no clips, or ``drop_last`` leaves none.
    """
    shapes = sorted(clips)
    order, table = list_batches([clips[shape] for shape in shapes], batch_size, generator)
    if drop_last:
        table = table[:, table[COUNT] == batch_size]
        table = table[:, : table.shape[1] // processes * processes]
    if not table.shape[1]:
        raise UserError(
            f"there are too few clips for a batch of {batch_size} in each of {processes} processes"
            + (": leave out drop_last, or take a smaller batch_size" if drop_last else "")
        )
    table = fill_up(table, processes)
    volumes = torch.tensor([prod(shape) for shape in shapes])
    table = table[:, table[SHAPE].argsort(stable=True)]
    work = table[COUNT] * volumes[table[SHAPE]]
    table = table[:, work.argsort(stable=True, descending=True)]
    steps = table.view(len(table), -1, processes)
    steps = steps[:, places(steps.shape[1], generator)]
    if generator is not None:
        # So that no process has the largest batches of all steps.
        chances = random_numbers(table.shape[1], generator).view(-1, processes)
        steps = steps.gather(2, chances.argsort(dim=1, stable=True).expand_as(steps))
    starts, counts = steps[FIRST].tolist(), steps[COUNT].tolist()
    for step in zip(starts, counts, strict=True):
        yield [order[start : start + count] for start, count in zip(*step, strict=True)]


def list_batches(
    groups: Sequence[Sequence[int]], batch_size: int, generator: Random | None
) -> tuple[list[int], Tensor]:
    """Returns clips in their order, and a table of their batches.

    Args:
        groups: the clips of each shape.
        batch_size: clips in a batch. The last batch of a shape may have fewer.
        generator: for a random order of clips and batches.
    """
    order: list[int] = []
    tables = []
    for number, group in enumerate(groups):
        starts = torch.arange(0, len(group), batch_size)
        counts = (len(group) - starts).clamp(max=batch_size)
        tables.append(torch.stack([len(order) + starts, counts, torch.full_like(starts, number)]))
        order += torch.tensor(group)[places(len(group), generator)].tolist()
    table = torch.cat(tables, dim=1) if tables else torch.empty(3, 0, dtype=torch.int64)
    return order, table[:, places(table.shape[1], generator)]


def fill_up(table: Tensor, processes: int) -> Tensor:
    """Returns a table of so many batches that all steps are full.

    The batch with the most clips is divided in two, again and again. If all batches have one clip,
    the first batches come twice.
    """
    table = table.clone()
    for _ in range(-table.shape[1] % processes):
        counts = table[COUNT]
        place = int((counts == counts.max()).nonzero()[0])
        half = int(counts[place]) // 2
        if not half:
            break
        second = table[:, place : place + 1].clone()
        second[COUNT] = half
        table[FIRST, place] += half
        table[COUNT, place] -= half
        table = torch.cat([table, second], dim=1)
    missing = -table.shape[1] % processes
    copies = table.repeat(1, ceil(missing / table.shape[1]))
    return torch.cat([table, copies[:, :missing]], dim=1)


def places(count: int, generator: Random | None) -> Tensor:
    """Returns the numbers below ``count`` in random order; without a generator, in their order."""
    if generator is None:
        return torch.arange(count)
    return random_numbers(count, generator).argsort(stable=True)


def random_numbers(count: int, generator: Random) -> Tensor:
    """Returns random numbers, which are the same in all versions of Python and PyTorch."""
    return torch.tensor([generator.random() for _ in range(count)], dtype=torch.float64)
