"""Whoever needs other options of the allocator leaves it as it was."""

from __future__ import annotations

from threading import Barrier, Thread

import pytest

from wanvae.engine import memory
from wanvae.engine.memory import KEEPING, RETURNING, USUAL, Allocator, MallocOptions


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[MallocOptions]:
    """The options that the C library was given, and an allocator that nobody uses yet."""
    applied: list[MallocOptions] = []
    monkeypatch.setattr(MallocOptions, "apply", lambda options: applied.append(options))
    monkeypatch.setattr(memory, "ALLOCATOR", Allocator())
    return applied


def test_what_training_chose_comes_back(applied: list[MallocOptions]) -> None:
    memory.keep_freed_memory()
    with memory.returning_freed_memory():
        assert applied == [KEEPING, RETURNING]
    assert applied == [KEEPING, RETURNING, KEEPING]


def test_nothing_chosen_comes_back_as_usual(applied: list[MallocOptions]) -> None:
    with pytest.raises(RuntimeError), memory.returning_freed_memory():
        raise RuntimeError
    assert applied == [RETURNING, USUAL]


def test_options_chosen_inside_wait_until_the_end(applied: list[MallocOptions]) -> None:
    with memory.returning_freed_memory():
        memory.keep_freed_memory()
        assert applied == [RETURNING]
    assert applied == [RETURNING, KEEPING]


def test_the_last_of_several_threads_ends_it(applied: list[MallocOptions]) -> None:
    inside, first_left = Barrier(2, timeout=20), Barrier(2, timeout=20)

    def stay() -> None:
        with memory.returning_freed_memory():
            inside.wait()
            first_left.wait()

    thread = Thread(target=stay)
    thread.start()
    with memory.returning_freed_memory():
        inside.wait()
    assert applied == [RETURNING]
    first_left.wait()
    thread.join()
    assert applied == [RETURNING, USUAL]
