"""Exchanges between the processes of a run.

All processes must call these functions, in the same order. With one process nothing is exchanged.
The results have no gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wanvae.errors import UserError

T = TypeVar("T")

LOST_PROCESS = (
    "another process of the run has ended before its time; files that were written are complete, "
    "run it again"
)
# What Gloo, NCCL and PyTorch's store say when the process at the other end has ended.
BROKEN_CONNECTION = re.compile(
    r"connection (closed|reset)|broken pipe|gloo.*read error|remote process exited"
    r"|ncclRemoteError|failed to recv, got 0 bytes",
    re.IGNORECASE | re.DOTALL,
)


class ProcessError(UserError):
    """Another process of the run has ended. The message says what to do."""


def count_processes() -> int:
    """The number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of ``x`` over the processes.

    Raises:
        ProcessError: another process has ended. So do all functions below.
    """
    return sum_over_processes(x) / count_processes()


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of ``x`` over the processes."""
    x = x.detach()
    if count_processes() == 1:
        return x
    total = x.clone()
    with expecting_processes():
        dist.all_reduce(total)
    return total


def means_over_processes(
    figures: Mapping[str, Tensor | float], device: torch.device
) -> dict[str, float]:
    """The means of scalars over the processes, by name, computed in float32.

    Args:
        figures: scalars by name; the names are the same in all processes.
        device: where the processes exchange tensors.
    """
    if not figures:
        return {}
    local = [
        torch.as_tensor(figure, dtype=torch.float32, device=device) for figure in figures.values()
    ]
    means = mean_over_processes(torch.stack(local)).tolist()
    return dict(zip(figures, means, strict=True))


def gather_from_processes(x: Tensor) -> list[Tensor]:
    """The ``x`` of each process, in the order of the ranks.

    Only the first dimension may differ from process to process.
    """
    x = x.detach().contiguous()
    if count_processes() == 1:
        return [x]
    sizes = [int(length) for length in gather_equal(torch.tensor(len(x), device=x.device))]
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    return [part[:size] for part, size in zip(gather_equal(padded), sizes, strict=True)]


def gather_equal(x: Tensor) -> list[Tensor]:
    """The ``x`` of each process, which has the same shape in all of them."""
    gathered = [torch.empty_like(x) for _ in range(count_processes())]
    with expecting_processes():
        dist.all_gather(gathered, x)
    return gathered


def copy_from_first_process(x: Tensor) -> Tensor:
    """The ``x`` of the process of rank 0."""
    x = x.detach()
    if count_processes() == 1:
        return x
    x = x.contiguous().clone()
    with expecting_processes():
        dist.broadcast(x, src=0)
    return x


def run_on_first_process(run: Callable[[], T], *, patience: timedelta | None = None) -> T:
    """The result of ``run``, which only the process of rank 0 calls. It must be picklable.

    Args:
        patience: how long the other processes wait for it; None is how long they wait in other
            exchanges, which may be some minutes.

    Raises:
        SystemExit: with status 1, in the other processes, if ``run`` raises in rank 0. Rank 0 says
            why.
    """
    if count_processes() == 1:
        return run()
    # A group has one patience for all of its exchanges, and Gloo needs no device.
    group = None if patience is None else dist.new_group(timeout=patience, backend="gloo")
    assert group is None or isinstance(group, dist.ProcessGroup)
    result: list[tuple[T] | None] = [None]
    try:
        if dist.get_rank() == 0:
            result = [(run(),)]
    finally:
        with expecting_processes():
            dist.broadcast_object_list(result, group=group)
    if result[0] is None:
        raise SystemExit(1)
    return result[0][0]


def gather_objects(value: T) -> list[T]:
    """The ``value`` of each process, in the order of the ranks. It must be picklable."""
    values = [value] * count_processes()
    if len(values) > 1:
        with expecting_processes():
            dist.all_gather_object(values, value)
    return values


@contextmanager
def expecting_processes() -> Iterator[None]:
    """Turns the error of an exchange into a ProcessError if another process has ended.

    Any other error, such as too little memory, stays what it is.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise ProcessError(LOST_PROCESS) from error


def is_lost_process(error: Exception) -> bool:
    """Whether ``error`` says that the connection to another process is broken.

    Gloo raises a plain RuntimeError and NCCL has one class for all errors, so the message decides.
    """
    return isinstance(error, RuntimeError) and bool(BROKEN_CONNECTION.search(str(error)))
