"""Parsing of command lines by jsonargparse, with help and errors for people."""

from __future__ import annotations

import json
import os
import re
import sys
from argparse import Action, ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage] - it is documented
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    get_loader,
)

from wanvae.engine.config import renamed_options, renaming_note
from wanvae.engine.files import FileError, refuse_overwriting
from wanvae.engine.storage.remote_path import is_address
from wanvae.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'tuple'>": "a list in brackets, such as [a,b]",
    "tuple with 2 elements": "a list of 2, such as [a,b]",
}
"""What jsonargparse calls the types of options, and what people call them."""


class HelpFormatter(DefaultHelpFormatter):
    """Help that does not say "default: null" of an option without a default."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        return text.replace(" (default: null)", "").replace(", default: null)", ")")


class ConfigFile(ActionConfigFile):
    """``--config file.yaml``, in which options may have their old names.

    ``--config tiny`` takes ``tiny.yaml`` of the package, if there is no file of the given name.
    """

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        if isinstance(parser, Parser):
            value = parser.with_new_names_in(parser.find_config(value))
        ActionConfigFile.apply_config(parser, cfg, dest, value)


class Parser(ArgumentParser):
    """A parser whose options may come from ``--config file.yaml`` too.

    Options have to be written out: ``--learning_rat`` does not stand for ``--learning_rate``.

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
            allow_abbrev=False,
        )
        self.renamed: Mapping[str, str] = {}
        self.packaged_configs: Mapping[str, Path] = {}
        self.inputs: list[str] = []
        self.outputs: dict[str, Callable[[str], Iterable[Path]]] = {}
        self.at_addresses: list[str] = []
        self.commands: Mapping[str, Parser] = {}

    def find_config(self, config: str) -> str:
        """The path of the packaged config that ``config`` names; anything else stays as it is.

        Raises:
            SystemExit: with status 2, if ``config`` can only be a name and nothing has the name.
        """
        path = self.packaged_configs.get(config.removesuffix(".yaml"))
        if not self.packaged_configs or Path(config).exists():
            return config
        if path is None and re.fullmatch(r"[\w./-]+", config):
            names = ", ".join(self.packaged_configs)
            self.error(
                f"--config: there is no file {config}; the configs of the package are {names}"
            )
        return config if path is None else str(path)

    def with_new_names(self, argument: str) -> str:
        """An argument of the command line with the new name of its option."""
        match = re.match(r"--([^=]+)", argument)
        if match is None or match[1] not in self.renamed:
            return argument
        self._say_renamed(match[1])
        return f"--{self.renamed[match[1]]}{argument[match.end() :]}"

    def with_new_names_in(self, config: str) -> str:
        """A YAML file, or one as text with the new names where it has old ones."""
        try:
            values = get_loader(self.parser_mode)(Path(config).read_text(encoding="utf-8"))
        except Exception:  # jsonargparse reads it again, and says what is wrong with it
            return config
        old = [name for name in self.renamed if rename(values, name, self.renamed[name])]
        for name in old:
            self._say_renamed(name)
        return json.dumps(values) if old else config

    def _say_renamed(self, old: str) -> None:
        print(f"{self.prog}: {renaming_note({old: self.renamed[old]})}", file=sys.stderr)

    def add_config_option(self) -> None:
        named = ", ".join(self.packaged_configs)
        names = f", or the name of a config of the package: {named}" if named else ""
        self.add_argument(
            "--config", action=ConfigFile, help=f"YAML file with any of these options{names}"
        )
        self.reads("config")

    def reads(self, *names: str) -> None:
        """Declares options whose values are files or folders that the command reads."""
        self.inputs += names

    def writes(
        self,
        name: str,
        also: Callable[[str], Iterable[Path]] | None = None,
        *,
        to_addresses: bool = False,
    ) -> None:
        """Declares an option whose value is a file or folder that the command writes.

        Args:
            also: returns the files that the command writes besides, from the value of the option.
            to_addresses: whether it may be an address, like s3://bucket/latents.
        """
        self.outputs[name] = also or (lambda _: ())
        if to_addresses:
            self.at_addresses.append(name)

    def refuse_outputs(self, values: Namespace) -> None:
        """Raises FileError if a file that the options ask to write cannot be.

        It is one that they ask to read, or at an address to which the command does not write.
        """
        for path in self._paths(values, set(self.outputs) - set(self.at_addresses)):
            if is_address(path):
                raise FileError(
                    f"{path} is an address, to which only data sets of latents are written: name a "
                    "file or folder on a disk, and copy it"
                )
        inputs = list(self._paths(values, self.inputs))
        for name, also in self.outputs.items():
            for path in self._paths(values, [name]):
                for output in (path, *also(path)):
                    refuse_overwriting(output, inputs)

    def describe_files(self, values: Namespace) -> str:
        """What a command mainly reads, and what it writes, for a message."""
        positional = {action.dest for action in self._actions if not action.option_strings}
        inputs = self._paths(values, [name for name in self.inputs if name in positional])
        outputs = list(self._paths(values, self.outputs))
        return " ".join([*inputs, *(["->", *outputs] if outputs else [])])

    def _paths(self, values: Namespace, names: Iterable[str]) -> Iterator[str]:
        """The values of options that name files."""
        for name in names:
            value = values.get(name)
            for path in value if isinstance(value, list) else [value]:
                if path is not None:
                    yield str(path)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line that says what is wrong; exits with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        text = plain(" ".join(message.split())) + parser.suggestion(message)
        required = re.fullmatch(r"(the following arguments are required: )(([\w-]+)\..+)", text)
        if required and required[3] in self.commands:
            # jsonargparse calls it "encode.output", and tells no parser.
            parser = self.commands[required[3]]
            text = required[1] + ", ".join(map(parser.written, required[2].split(", ")))
        # jsonargparse calls a subcommand "wanvae [options] encode".
        program, of_command = (each.prog.replace(" [options]", "") for each in (self, parser))
        self.exit(2, f"{program}: error: {text} (see {of_command} --help)\n")

    def written(self, key: str) -> str:
        """An argument of this subcommand as people write it: --checkpoint for encode.checkpoint."""
        name = key.partition(".")[2]
        options = {action.dest: action.option_strings for action in self._actions}
        return next(iter(options.get(name) or [name]))

    def suggestion(self, message: str) -> str:
        """The option that an unknown option of an error message may stand for."""
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        known = [name for action in self._actions for name in action.option_strings]
        near = get_close_matches(unknown[1], known, n=1) if unknown else []
        return f"; did you mean {near[0]}?" if near else ""


def plain(message: str) -> str:
    """A message of jsonargparse on one line, without names of Python if it is about a type."""
    match = re.fullmatch(r'Parser key "(\S+)": (.+) (?:Got|Given) value: (.*)', message)
    expected = re.findall(
        r"Expected an? (.+?)\.?(?= - Expected| Given|$)", match[2] if match else ""
    )
    if not match or not expected:
        return re.sub(r'^Parser key "(\S+)": ', r"\1: ", message)
    kinds = [KINDS.get(kind) or choices(kind) for kind in expected if "NoneType" not in kind]
    return f"{match[1]} must be {' or '.join(kinds)}, not {match[3]}"


def choices(kind: str) -> str:
    """``typing.Literal['a', 2]`` as "a or 2"; any other type as it is."""
    literal = re.fullmatch(r"typing\.Literal\[(.+)\]", kind)
    return " or ".join(literal[1].replace("'", "").split(", ")) if literal else kind


def rename(values: Any, old: str, new: str) -> bool:
    """Rename ``a.b.old`` to ``a.b.new`` in nested dicts; returns whether it was there."""
    *path, name = old.split(".")
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    new = new.split(".")[-1]
    if not isinstance(values, dict) or name not in values or new in values:
        return False
    values[new] = values.pop(name)
    return True


def parse(parser: Parser, arguments: Sequence[str] | None) -> Namespace:
    """The values of ``arguments``; None takes the arguments of this process.

    Raises:
        SystemExit: with status 2, after a message, for an unknown key or an impossible value.
    """
    try:
        return parser.parse_args(arguments)
    except UnicodeDecodeError as error:
        parser.error(f"a config file must be text in UTF-8: {error}")


def find_packaged_configs(folders: Sequence[Path]) -> dict[str, Path]:
    """The YAML files of the first of some folders that exists, by their names without suffix."""
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def config_parser(
    cls: type,
    program: str,
    description: str | None,
    config_folders: Sequence[Path] = (),
    *,
    exit_on_error: bool = True,
) -> Parser:
    """The parser of ``parse_config`` and, without an exit on errors, of ``read_config``."""
    parser = Parser(description, program, exit_on_error=exit_on_error)
    parser.renamed = renamed_options(cls)
    parser.packaged_configs = find_packaged_configs(config_folders)
    parser.add_config_option()
    parser.add_class_arguments(cls, None)
    return parser


def parse_config(
    cls: type[T],
    program: str,
    description: str | None,
    arguments: Sequence[str] | None,
    config_folders: Sequence[Path] = (),
) -> T:
    """A ``cls`` from ``--config file.yaml`` and overrides like ``--model.dim 32``.

    Args:
        cls: a dataclass; its fields may be dataclasses. The docstrings of the fields are the help.
        program: the name of the command in messages.
        description: the first lines of the help.
        arguments: of the command line; None takes the arguments of this process.
        config_folders: where the package may have its configs, which ``--config`` takes by name.

    Raises:
        SystemExit: with status 2, after a message, for an unknown key or an impossible value.
    """
    parser = config_parser(cls, program, description, config_folders)
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parse(parser, [parser.with_new_names(argument) for argument in arguments])
    try:
        return instantiate(parser, parsed, cls)
    except UserError as error:
        parser.error(str(error))


def read_config(
    cls: type[T], config: str | os.PathLike[str], config_folders: Sequence[Path] = ()
) -> T:
    """A ``cls`` from a YAML file, as ``parse_config`` has it from ``--config``, for programs.

    Args:
        config: the file, or the name of a config in ``config_folders``.

    Raises:
        UserError: there is no such config, or it has an unknown key or an impossible value.
    """
    parser = config_parser(cls, "config", None, config_folders, exit_on_error=False)
    try:
        return instantiate(parser, parse(parser, [f"--config={os.fspath(config)}"]), cls)
    except (ArgumentError, UserError) as error:
        text = plain(" ".join(str(error).split())).removeprefix("--config: ")
        raise UserError(text if str(config) in text else f"{config}: {text}") from error


def instantiate(parser: Parser, parsed: Namespace, cls: type[T]) -> T:
    """The ``cls`` whose fields a parser has parsed; UserError if ``cls`` refuses them."""
    parsed = parser.instantiate(parsed)
    return cls(**{field.name: parsed[field.name] for field in fields(cls)})
