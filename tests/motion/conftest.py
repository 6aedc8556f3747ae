"""Processes of accelerate, a small model, and a folder of motion files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import PartialState

from motion import RVQVAE
from tests.motion.small_tokenizers import tiny_tokenizer, write_walks


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


@pytest.fixture(scope="module")
def model() -> RVQVAE:
    """A small tokenizer of the walks in ``folder``."""
    return tiny_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder "in" with parts of a walk."""
    write_walks(tmp_path / "in")
    return tmp_path / "in"
