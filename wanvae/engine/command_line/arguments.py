"""Parsing of command lines by jsonargparse, with help and errors for people."""

from __future__ import annotations

import sys
from argparse import Action
from collections.abc import Sequence
from dataclasses import fields
from logging import Logger
from typing import TYPE_CHECKING, NoReturn, TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from wanvae.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class HelpFormatter(DefaultHelpFormatter):
    """Help that does not say "default: null" of an option without a default."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        return text.replace(" (default: null)", "").replace(", default: null)", ")")


class Parser(ArgumentParser):
    """A parser whose options may come from ``--config file.yaml`` too.

    jsonargparse gives ``exit_on_error``, ``logger`` and ``parser_mode`` to the parsers of this
    class that it creates for lists of dataclasses.
    """

    def __init__(
        self,
        description: str | None = None,
        program: str | None = None,
        *,
        exit_on_error: bool = True,
        logger: bool | Logger = False,
        parser_mode: str = "yaml",
    ) -> None:
        super().__init__(
            prog=program,
            description=description,
            formatter_class=HelpFormatter,
            exit_on_error=exit_on_error,
            logger=logger,
            parser_mode=parser_mode,
        )

    def add_config_option(self) -> None:
        self.add_argument("--config", action="config", help="YAML file with any of these options")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the usage and one line that says what is wrong; exits with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        parser.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse(parser: Parser, arguments: Sequence[str] | None) -> Namespace:
    """The values of ``arguments``; None takes the arguments of this process.

    Raises:
        SystemExit: with status 2, after a message, for an unknown key or an impossible value.
    """
    try:
        return parser.parse_args(arguments)
    except UnicodeDecodeError as error:
        parser.error(f"a config file must be text in UTF-8: {error}")


def config_parser(cls: type, program: str, description: str | None) -> Parser:
    """The parser of ``parse_config``."""
    parser = Parser(description, program)
    parser.add_config_option()
    parser.add_class_arguments(cls, None)
    return parser


def parse_config(
    cls: type[T], program: str, description: str | None, arguments: Sequence[str] | None
) -> T:
    """A ``cls`` from ``--config file.yaml`` and overrides like ``--model.dim 32``.

    Args:
        cls: a dataclass; its fields may be dataclasses. The docstrings of the fields are the help.
        program: the name of the command in messages.
        description: the first lines of the help.
        arguments: of the command line; None takes the arguments of this process.

    Raises:
        SystemExit: with status 2, after a message, for an unknown key or an impossible value.
    """
    parser = config_parser(cls, program, description)
    parsed = parse(parser, arguments)
    try:
        parsed = parser.instantiate(parsed)
        return cls(**{field.name: parsed[field.name] for field in fields(cls)})
    except UserError as error:
        parser.error(str(error))
