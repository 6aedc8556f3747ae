"""Processes of accelerate, new for each test that asks for them."""

from collections.abc import Iterator

import pytest
from accelerate import PartialState


@pytest.fixture
def new_processes() -> Iterator[None]:
    """Forgets the processes of earlier tests, and at the end the processes of this test."""
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.fixture
def processes(new_processes: None) -> PartialState:
    """A run of one process."""
    return PartialState(cpu=True)
