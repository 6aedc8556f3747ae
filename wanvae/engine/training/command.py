"""The command that trains a model, whatever the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wanvae.engine.command_line.arguments import parse_config
from wanvae.engine.command_line.outcome import exit_status
from wanvae.engine.memory import keep_freed_memory

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def training_command(
    cls: type[T],
    run: Callable[[T], None],
    program: str,
    description: str | None,
    arguments: Sequence[str] | None,
    config_folders: Sequence[Path] = (),
) -> int:
    """Parses a config and trains; returns the status, as ``exit_status`` does.

    Args:
        cls: the config, a dataclass; see ``parse_config``.
        run: trains as a config says, to the last step.
        program: the name of the command in messages.
        description: the first lines of the help.
        arguments: of the command line; None takes the arguments of this process.
        config_folders: where the package may have its configs, which ``--config`` takes by name.
    """
    keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else [*arguments]
    config = parse_config(cls, program, description, arguments, config_folders)

    def run_to_end() -> int:
        run(config)
        return 0

    return exit_status(
        run_to_end,
        program,
        arguments,
        interrupted="interrupted before the first step",
        out_of_memory="try a smaller batch_size, or mixed_precision bf16",
    )
