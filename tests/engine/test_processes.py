"""Exchanges between real processes, and what is told when one of them is killed."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from wanvae.engine.processes import (
    ProcessError,
    copy_from_first_process,
    expecting_processes,
    gather_from_processes,
    gather_objects,
    is_lost_process,
    run_on_first_process,
    sum_over_processes,
)

# Each of them needs all processes.
EXCHANGES: dict[str, Callable[[], object]] = {
    "sum": lambda: sum_over_processes(torch.ones(2)),
    "gather": lambda: gather_from_processes(torch.ones(2)),
    "copy": lambda: copy_from_first_process(torch.ones(2)),
    "objects": lambda: gather_objects("a"),
    "first": lambda: run_on_first_process(lambda: "a"),
}


def exchange_all(rank: int) -> None:
    """Process ``rank`` of two checks every exchange."""
    assert sum_over_processes(torch.tensor([rank + 1.0])).tolist() == [3]
    rows = gather_from_processes(torch.full((rank + 1, 2), float(rank)))
    assert [row.tolist() for row in rows] == [[[0, 0]], [[1, 1], [1, 1]]]
    assert copy_from_first_process(torch.tensor([rank])).tolist() == [0]
    assert gather_objects(f"rank {rank}") == ["rank 0", "rank 1"]
    assert run_on_first_process(lambda: rank) == 0


def fail_on_first(rank: int) -> None:
    """Rank 0 raises its own error, and rank 1 ends with it."""
    with pytest.raises(ZeroDivisionError if rank == 0 else SystemExit):
        run_on_first_process(lambda: 1 / 0)


def lose_process(rank: int) -> None:
    """Rank 1 is killed, and rank 0 says so in every exchange that follows."""
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    # In the other exchanges rank 0 only sends, which may succeed before the end is noticed.
    for name in ("sum", "gather", "objects"):
        with pytest.raises(ProcessError, match="another process of the run has ended") as caught:
            EXCHANGES[name]()
        assert isinstance(caught.value.__cause__, RuntimeError)


def wait_patiently(rank: int) -> None:
    """Rank 1 waits for rank 0 longer than in other exchanges, and takes its error."""

    def work() -> str:
        time.sleep(2 * IMPATIENCE.total_seconds())
        return "done"

    assert run_on_first_process(work, patience=timedelta(days=30)) == "done"
    with pytest.raises(ZeroDivisionError if rank == 0 else SystemExit):
        run_on_first_process(lambda: 1 / 0, patience=timedelta(days=30))


def keep_other_errors(rank: int) -> None:
    """An object that cannot be pickled is no lost process."""
    with pytest.raises(Exception, match="pickle") as caught:
        gather_objects(lambda: rank)
    assert not isinstance(caught.value, ProcessError)


CHECKS = (exchange_all, fail_on_first, lose_process, wait_patiently, keep_other_errors)
# How long an exchange waits where nobody asks for more.
IMPATIENCE = timedelta(seconds=3)


def run_check(check: Callable[[int], None], rank: int, folder: Path, results: Connection) -> None:
    """Run ``check`` as process ``rank`` of two; send its traceback, empty if it passed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    dist.barrier()
    if check is wait_patiently:
        dist.destroy_process_group()
        meeting = f"file://{folder}/again"
        dist.init_process_group("gloo", meeting, IMPATIENCE, world_size=2, rank=rank)
    try:
        check(rank)
    except BaseException:
        results.send(traceback.format_exc())
    else:
        results.send("")


@pytest.mark.parametrize("check", CHECKS)
def test_two_processes(tmp_path: Path, check: Callable[[int], None]) -> None:
    context, reports = get_context("spawn"), []
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=run_check, args=(check, rank, tmp_path, ends[rank][1]), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        for rank, (reading, writing) in enumerate(ends):
            writing.close()
            if check is lose_process and rank == 1:
                continue
            assert reading.poll(120), f"rank {rank} says nothing"
            reports.append(reading.recv())
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    assert not any(reports), "\n".join(reports)


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_process_alone_exchanges_nothing(name: str) -> None:
    alone = EXCHANGES[name]()
    value = alone[0] if isinstance(alone, list) else alone
    assert value == "a" if isinstance(value, str) else torch.equal(value, torch.ones(2))


NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (5)"),
        dist.DistBackendError(
            NCCL
            + "unhandled cuda error, NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA "
            "function failed.\nLast error:\nCuda failure 2 'out of memory'"
        ),
        ValueError("zip() argument 2 is longer than argument 1"),
    ],
)
def test_other_errors_of_an_exchange_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, expecting_processes():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "message",
    [
        "[/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [1.2.3.4]:5",
        "[gloo/transport/tcp/pair.cc:535] Read error [1.2.3.4]:5: Software caused",
        "writev [::1]:54172: Connection reset by peer",
        NCCL + "remote process exited or there was a network error, NCCL version 2.21.5\n"
        "ncclRemoteError: A call failed possibly due to a network error.",
        NCCL + "internal error\nncclInternalError: Internal check failed.\nLast error:\nNet : "
        "Connection closed by remote peer user<50260>",
        "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown",
    ],
)
def test_messages_of_a_broken_connection(message: str) -> None:
    assert is_lost_process(RuntimeError(message))
