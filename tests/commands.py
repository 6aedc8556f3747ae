"""The command line, run in the process of a test."""

from collections.abc import Sequence

import pytest

from wanvae import cli


def outputs_of(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], status: int
) -> tuple[str, str]:
    """Returns what ``wanvae`` prints to stdout and stderr, and checks its exit status."""
    capsys.readouterr()
    assert cli.main(arguments) == status
    captured = capsys.readouterr()
    return captured.out, captured.err
