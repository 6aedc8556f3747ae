"""The command line, run in the process of a test."""

from collections.abc import Callable, Sequence

import pytest

from wanvae import cli

# Runs a command, and returns what it prints to stdout and stderr.
Run = Callable[..., tuple[str, str]]


def outputs_of(
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    status: int,
    main: Callable[[Sequence[str]], int] = cli.main,
) -> tuple[str, str]:
    """Returns what a program prints to stdout and stderr, and checks its exit status.

    The line that says what is done where no progress is shown is left out of stderr.
    """
    capsys.readouterr()
    assert main(arguments) == status
    captured = capsys.readouterr()
    return captured.out, without_notice(captured.err, arguments[0])


def without_notice(printed: str, command: str) -> str:
    """Returns what a command prints to stderr, without the line that says what is done."""
    notices = tuple(f"{program}: {command} " for program in ("wanvae", "wanvae-motion"))
    lines = printed.splitlines(keepends=True)
    return "".join(lines[1:] if lines and lines[0].startswith(notices) else lines)
