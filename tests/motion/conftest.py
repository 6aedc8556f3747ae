"""Processes of accelerate, new for each test that asks for them."""

from collections.abc import Iterator

import pytest
from accelerate import PartialState


@pytest.fixture
def new_processes() -> Iterator[None]:
    """Forgets the processes that an earlier test has set up, and those of this test."""
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.fixture
def processes(new_processes: None) -> PartialState:
    """A run of one process."""
    return PartialState(cpu=True)
