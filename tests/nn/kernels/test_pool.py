"""Memory for intermediate results."""

from __future__ import annotations

import mmap
import multiprocessing
import sys

import pytest
import torch

from wanvae.nn.kernels import pool as memory
from wanvae.nn.kernels.pool import SMALLEST_BLOCK, Pool, empty

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the pool is used on Linux alone")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A new pool, in place of that of the process."""
    pool = Pool()
    monkeypatch.setattr(memory, "POOL", pool)
    return pool


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (2, 3, 4, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_order_in_memory_are_those_of_torch(shape, dtype, monkeypatch):
    small = empty(shape, dtype, CPU)
    monkeypatch.setattr(memory, "SMALLEST_BLOCK", 1)
    pooled = empty(shape, dtype, CPU)
    assert (pooled.shape, pooled.dtype) == (shape, dtype)
    assert pooled.stride() == small.stride()
    values = torch.arange(pooled.numel(), dtype=dtype).reshape(shape)
    assert torch.equal(pooled.copy_(values), values)


@linux
def test_memory_is_used_again_once_no_tensor_needs_it(pool):
    x = empty((SMALLEST_BLOCK,), torch.float32, CPU)
    address, part = x.data_ptr(), x[-4:].fill_(7)
    del x
    assert pool.free == 0
    other = empty((SMALLEST_BLOCK,), torch.float32, CPU)
    assert other.data_ptr() != address
    assert part.tolist() == [7] * 4
    del part
    assert empty((SMALLEST_BLOCK,), torch.float32, CPU).data_ptr() == address


def test_free_blocks_are_not_lent_for_much_less(pool):
    size = 16 * mmap.PAGESIZE
    views = [pool.lend(size), pool.lend(size)]
    views.clear()
    assert pool.lend(size // 2).nbytes == size // 2
    assert pool.lend(size - mmap.PAGESIZE).nbytes == size


def test_free_and_lent_are_never_more_than_was_lent_at_once(pool):
    page = mmap.PAGESIZE
    generator = torch.Generator().manual_seed(0)
    held, most, waited = [], 0, 0
    for _ in range(300):
        if held and torch.rand((), generator=generator) < 0.5:
            held.pop(int(torch.randint(len(held), (), generator=generator)))
        held.append(pool.lend(page * int(torch.randint(1, 100, (), generator=generator))))
        lent = sum(view.nbytes for view in held)
        most = max(most, lent)
        waited = max(waited, pool.free)
        assert lent + pool.free <= most
    assert waited > 0


def test_what_is_kept_is_limited(pool):
    size = 4 * mmap.PAGESIZE
    pool.most_free = 2 * size
    views = [pool.lend(size) for _ in range(5)]
    views.clear()
    assert pool.free == 2 * size
    pool.clear()
    assert pool.free == 0


def test_limits_hold_until_the_last_run_that_has_one_ends(pool, monkeypatch):
    size = 4 * mmap.PAGESIZE
    monkeypatch.setattr(memory, "KEPT_WITHIN_LIMITS", 2 * size)

    def kept() -> int:
        views = [pool.lend(size) for _ in range(5)]
        views.clear()
        return pool.free

    assert kept() == 5 * size
    first, second = pool.within_limits(), pool.within_limits()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert kept() == 2 * size
    second.__exit__(None, None, None)
    assert kept() == 5 * size


def test_too_much_is_a_memory_error(pool):
    with pytest.raises(MemoryError, match="cannot allocate"):
        pool.lend(2**60)


def fill(x: torch.Tensor) -> None:
    x.fill_(1)


@linux
def test_forked_processes_do_not_share_it(pool):
    x = empty((SMALLEST_BLOCK,), torch.uint8, CPU).zero_()
    child = multiprocessing.get_context("fork").Process(target=fill, args=(x,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert not x.any()
