"""Work in threads: all of it, in order, no more in advance than asked for, errors in place."""

import threading
import time
from collections.abc import Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanvae.engine.ahead import ahead, behind


def counted(items: list[int], made: list[int]) -> Generator[int, None, None]:
    for item in items:
        made.append(item)
        yield item


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@given(items=st.lists(st.integers()), depth=st.integers(1, 5))
def test_items_come_in_order(items: list[int], depth: int) -> None:
    assert list(ahead(counted(items, []), depth)) == items


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_asked_for_are_made(depth: int) -> None:
    made: list[int] = []
    numbers = ahead(counted(list(range(100)), made), depth)
    assert next(numbers) == 0
    deadline = time.monotonic() + 10
    while len(made) < 1 + depth:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(0.05)
    assert made == list(range(1 + depth))
    numbers.close()
    assert len(made) <= 2 + depth


def test_errors_are_raised_in_place() -> None:
    def fail() -> Generator[int, None, None]:
        yield 1
        raise KeyError("two")

    items = ahead(ahead(fail(), 2), 2)
    assert next(items) == 1
    with pytest.raises(KeyError, match="two"):
        next(items)


def test_closing_ends_what_makes_the_items() -> None:
    ended = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    items = ahead(ahead(endless(), 3), 3)
    next(items)
    items.close()
    assert ended.is_set()


# Work behind


@given(items=st.lists(st.integers()), depth=st.integers(1, 5))
def test_work_is_done_in_order(items: list[int], depth: int) -> None:
    done: list[int] = []
    with behind(done.append, depth) as put:
        for item in items:
            put(item)
    assert done == items


def test_no_more_than_asked_for_wait() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[int]()

    def work(item: int) -> None:
        begun.set()
        go_on.wait()
        done.append(item)

    with behind(work, 2) as put:
        put(0)
        assert begun.wait(10)
        put(1)
        put(2)
        late = threading.Thread(target=put, args=(3,))
        late.start()
        late.join(0.05)
        assert late.is_alive()
        go_on.set()
        late.join()
    assert done == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 100])
def test_an_error_of_the_work_is_raised_and_ends_it(count: int) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        done.append(item)
        raise KeyError("zero")

    with pytest.raises(KeyError, match="zero"), behind(work, 2) as put:
        for item in range(count):
            put(item)
    assert done == [0]


def test_after_an_interruption_nothing_more_is_done() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[int]()

    def work(item: int) -> None:
        begun.set()
        go_on.wait()
        done.append(item)

    with pytest.raises(KeyboardInterrupt), behind(work, 3) as put:
        put(0)
        put(1)
        assert begun.wait(10)
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt
    assert done == [0]
