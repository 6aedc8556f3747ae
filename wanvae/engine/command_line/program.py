"""A program of subcommands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jsonargparse import Namespace

from wanvae.engine.command_line.arguments import Parser, parse
from wanvae.engine.command_line.outcome import exit_status

TRAIN = "train"


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        run: runs the command with its parsed arguments.
        add_options: declares the arguments.
        summary: one line for the list of commands.
        description: the first lines of the help of the command.
    """

    run: Callable[[Namespace], None]
    add_options: Callable[[Parser], None]
    summary: str
    description: str


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
    commands: Mapping[str, Command]
    train: Callable[[Sequence[str], str], int]
    training: str
    out_of_memory: str

    def make_parser(self) -> Parser:
        """The parser of all commands."""
        parser = Parser(self.description, self.name)
        parser.add_argument("--version", action="version", version=f"{self.name} {self.version}")
        subcommands = parser.add_subcommands(dest="command")
        for name, command in self.commands.items():
            options = Parser(command.description)
            options.add_config_option()
            command.add_options(options)
            subcommands.add_subcommand(name, options, help=command.summary)
        # Only for the list of commands: training has its own parser.
        subcommands.add_subcommand(TRAIN, Parser(None), help=self.training)
        return parser

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Runs a command.

        Args:
            arguments: of the command line; None takes the arguments of this process.

        Returns:
            0, or 1 after an error, or 130 after Ctrl-C.

        Raises:
            SystemExit: with status 2, after a message, if the arguments are wrong.
        """
        arguments = sys.argv[1:] if arguments is None else [*arguments]
        if arguments[:1] == [TRAIN]:
            return self.train(arguments[1:], f"{self.name} {TRAIN}")
        parsed = parse(self.make_parser(), arguments)

        def run() -> int:
            self.commands[parsed.command].run(parsed[parsed.command])
            return 0

        return exit_status(run, self.name, arguments, out_of_memory=self.out_of_memory)
