"""A program of subcommands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from jsonargparse import Namespace

from wanvae.engine.command_line.arguments import Parser, parse
from wanvae.engine.command_line.outcome import exit_status, say

TRAIN = "train"


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        run: runs the command with its parsed arguments.
        add_options: declares the arguments.
        description: the first lines of the help of the command.
    """

    run: Callable[[Namespace], None]
    add_options: Callable[[Parser], None]
    description: str


@dataclass(frozen=True)
class Listed:
    """A subcommand in the list of commands, whose code is not imported before it is needed.

    Attributes:
        summary: one line for the list.
        load: returns the command.
    """

    summary: str
    load: Callable[[], Command]


def listed(summary: str, module: str, name: str) -> Listed:
    """Returns the entry of a command that is the object ``name`` of a module."""
    return Listed(summary, lambda: getattr(import_module(module), name))


@dataclass(frozen=True, kw_only=True)
class Program:
    """A command line.

    Attributes:
        name: the name of the program in messages.
        version: of the package.
        description: the first lines of the help.
        commands: by name. "train" is one more command.
        train: trains as the arguments after "train" say. It gets these arguments and its name, and
            has its own parser and messages.
        training: one line on "train" for the list of commands.
        out_of_memory: what to try when memory runs out.
    """

    name: str
    version: str
    description: str | None
    commands: Mapping[str, Listed]
    train: Callable[[Sequence[str], str], int]
    training: str
    out_of_memory: str

    def make_parser(self) -> Parser:
        """The parser of all commands."""
        return self._join({name: parser_of(one.load()) for name, one in self.commands.items()})

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Runs a command.

        Args:
            arguments: of the command line; None takes the arguments of this process.

        Returns:
            0, or 1 after an error, or as ``exit_status`` after a signal.

        Raises:
            SystemExit: with status 2, after a message, if the arguments are wrong.
        """
        arguments = sys.argv[1:] if arguments is None else [*arguments]
        if arguments[:1] == [TRAIN]:
            return self.train(arguments[1:], f"{self.name} {TRAIN}")
        # The program itself has no options with values, so the first word is the command.
        name = next((word for word in arguments if not word.startswith("-")), "")
        parsers, command = {}, None
        if name in self.commands:
            command = self.commands[name].load()
            parsers[name] = parser_of(command)
        values = parse(self._join(parsers), arguments)[name]
        assert command is not None

        def run() -> int:
            parsers[name].refuse_outputs(values)
            self._settle_progress(name, values, parsers[name])
            command.run(values)
            return 0

        return exit_status(run, self.name, arguments, out_of_memory=self.out_of_memory)

    def _join(self, parsers: Mapping[str, Parser]) -> Parser:
        """The parser of all commands, of which only some have their options."""
        parser = Parser(self.description, self.name)
        parser.add_argument("--version", action="version", version=f"{self.name} {self.version}")
        parser.commands = parsers
        subcommands = parser.add_subcommands(dest="command")
        for name, command in self.commands.items():
            options = parsers[name] if name in parsers else Parser(None)
            subcommands.add_subcommand(name, options, help=command.summary)
        # Only for the list of commands: training has its own parser.
        subcommands.add_subcommand(TRAIN, Parser(None), help=self.training)
        return parser

    def _settle_progress(self, name: str, values: Namespace, parser: Parser) -> None:
        """Shows progress on a terminal, unless the options say it; elsewhere says what is done."""
        if "progress" not in values or values.progress is not None:
            return
        values.progress = sys.stderr.isatty()
        # Launchers number the processes of a run.
        if not values.progress and os.environ.get("RANK", "0") == "0":
            say(self.name, f"{name} {parser.describe_files(values)}")


def parser_of(command: Command) -> Parser:
    """Returns the parser of a command's options."""
    parser = Parser(command.description)
    parser.add_config_option()
    command.add_options(parser)
    return parser
