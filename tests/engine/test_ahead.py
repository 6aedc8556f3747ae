"""Items made ahead by a thread: all of them, in order, no more than asked for, errors in place."""

import threading
import time
from collections.abc import Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanvae.engine.ahead import ahead


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
