"""Commands that run in the process of a test."""

from __future__ import annotations

import pytest

from tests.commands import Run, outputs_of


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must end with ``status``; gives its stdout and stderr."""

    def run_command(*arguments: object, status: int = 0) -> tuple[str, str]:
        return outputs_of(capsys, [str(argument) for argument in arguments], status)

    return run_command
