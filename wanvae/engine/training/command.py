"""The command that trains a model, whatever the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from wanvae.engine.command_line.arguments import parse_config
from wanvae.engine.memory import keep_freed_memory
from wanvae.engine.training.loop import NotFiniteError

T = TypeVar("T")


def training_command(
    cls: type[T],
    run: Callable[[T], bool],
    program: str,
    description: str,
    arguments: Sequence[str] | None,
) -> int:
    """Parse a config and train: 0 if training is complete, 130 if interrupted, 1 on an error.

    Args:
        cls: the config, a dataclass; see ``parse_config``.
        run: trains as a config says; returns whether all steps are done.
        program: what the command is called in what it prints.
        arguments: of the command line; None takes those of this process.
    """
    keep_freed_memory()
    config = parse_config(cls, program, description, arguments)
    try:
        return 0 if run(config) else 130
    except KeyboardInterrupt:
        print(f"{program}: interrupted before the first step", file=sys.stderr)
        return 130
    except (ValueError, OSError, NotFiniteError) as error:
        # Of an error in a process that loads data, the last line is the error itself.
        *_, line = (str(error).strip() or type(error).__name__).splitlines()
        print(f"{program}: {line}", file=sys.stderr)
        return 1
