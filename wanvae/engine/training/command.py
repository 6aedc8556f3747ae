"""The command that trains a model, whatever the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from wanvae.engine.command_line.arguments import parse_config
from wanvae.engine.command_line.outcome import INTERRUPTED, exit_status
from wanvae.engine.memory import keep_freed_memory

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
    arguments = sys.argv[1:] if arguments is None else [*arguments]
    config = parse_config(cls, program, description, arguments)
    return exit_status(
        lambda: 0 if run(config) else INTERRUPTED,
        program,
        arguments,
        interrupted="interrupted before the first step",
        out_of_memory="try a smaller batch_size, or mixed_precision bf16",
    )
