"""What the processes of a run agree on.

All processes have to call these functions, in the same order. A process alone gets what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wanvae.errors import UserError

T = TypeVar("T")


class ProcessError(UserError):
    """Another process of the run is no longer there; one line that says what to do."""


def count_processes() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of ``x`` over the processes of a run; no gradients."""
    return sum_over_processes(x) / count_processes()


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of ``x`` over the processes of a run; no gradients."""
    x = x.detach()
    if count_processes() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total


def means_over_processes(
    figures: Mapping[str, Tensor | float], device: torch.device
) -> dict[str, float]:
    """Figures by name, scalars of the same names in all processes, averaged over them in float32.

    Args:
        device: where the processes exchange tensors.
    """
    local = [
        torch.as_tensor(figure, dtype=torch.float32, device=device) for figure in figures.values()
    ]
    means = mean_over_processes(torch.stack(local)).tolist()
    return dict(zip(figures, means, strict=True))


def gather_from_processes(x: Tensor) -> list[Tensor]:
    """``x`` of each process, in the order of their ranks; no gradients.

    Only the first dimension may differ from process to process.
    """
    x = x.detach().contiguous()
    if count_processes() == 1:
        return [x]
    lengths = [x.new_zeros((), dtype=torch.long) for _ in range(count_processes())]
    dist.all_gather(lengths, torch.tensor(len(x), device=x.device))
    sizes = [int(length) for length in lengths]
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return [part[:size] for part, size in zip(gathered, sizes, strict=True)]


def copy_from_first_process(x: Tensor) -> Tensor:
    """``x`` of the process of rank 0; no gradients."""
    x = x.detach()
    if count_processes() == 1:
        return x
    x = x.contiguous().clone()
    dist.broadcast(x, src=0)
    return x


def made_by_first_process(make: Callable[[], T]) -> T:
    """What ``make`` returns in the process of rank 0, which alone calls it; it must pickle.

    Raises:
        SystemExit: with status 1, in the others, if it raised in rank 0, which has to say why.
        ProcessError: rank 0 is no longer there.
    """
    if count_processes() == 1:
        return make()
    made: list[tuple[T] | None] = [None]
    try:
        if dist.get_rank() == 0:
            made = [(make(),)]
    finally:
        with meeting():
            dist.broadcast_object_list(made)
    if made[0] is None:
        raise SystemExit(1)
    return made[0][0]


def objects_of_processes(value: T) -> list[T]:
    """``value`` of each process, in the order of their ranks; it must pickle.

    Raises:
        ProcessError: one of them is no longer there.
    """
    values = [value] * count_processes()
    if len(values) > 1:
        with meeting():
            dist.all_gather_object(values, value)
    return values


@contextmanager
def meeting() -> Iterator[None]:
    """Turn what is raised where another process has ended into a ProcessError."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            "another process of the run has ended before its time; files that were written are "
            "complete, run it again"
        ) from error
