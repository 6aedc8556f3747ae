"""A configuration dataclass from a YAML file and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from jsonargparse import ArgumentParser

T = TypeVar("T")


def parse_config(
    cls: type[T], program: str, description: str, arguments: Sequence[str] | None
) -> T:
    """A ``cls`` from ``--config file.yaml`` and overrides like ``--model.dim 32``.

    Args:
        cls: a dataclass, perhaps of dataclasses; the docstrings of its fields are the help.
        arguments: of the command line; None takes those of this process.

    Raises:
        SystemExit: with status 2, after a message, for an unknown key or an impossible value.
    """
    parser = ArgumentParser(prog=program, description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(cls, None)
    parsed = parser.parse_args(arguments)
    try:
        parsed = parser.instantiate(parsed)
        return cls(**{field.name: parsed[field.name] for field in fields(cls)})
    except ValueError as error:
        parser.error(str(error))
