"""What README.md says is there: commands and their options, files, names, parts of the tree.

That its examples work is tested in test_readme_examples.py.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from argparse import Action, ArgumentParser
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

import motion.cli
import motion.train.run
import wanvae.cli
import wanvae.train.run
from tests.readme import BLOCKS, LEFT_OUT, ROOT, SPANS, TEXT, Block, Call, calls
from wanvae.engine.command_line.arguments import config_parser
from wanvae.engine.command_line.program import TRAIN

PROGRAMS = {"wanvae": wanvae.cli.PROGRAM, "motion": motion.cli.PROGRAM}
CONFIGS = {"wanvae": wanvae.train.run.TrainConfig, "motion": motion.train.run.TrainConfig}
CALLS = tuple(dict.fromkeys(calls()))
OPTIONS = tuple(dict.fromkeys(span for span in SPANS if span.startswith("--")))
PYTHON = tuple(block for block in BLOCKS if block.language == "python")
# Paths from the root of the repository, in the text as well as in blocks.
PATHS = sorted(set(re.findall(r"(?<![\w./-])(?:configs|tests|tools|wanvae)/[\w/.-]*\w", TEXT)))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LINKS = re.findall(r"\]\((?!https?:)(.+?)\)", TEXT)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def name_of(call: Call) -> str:
    return shlex.join([call.module, *call.arguments])


@pytest.mark.parametrize("call", CALLS, ids=name_of)
def test_commands_can_be_parsed(call: Call) -> None:
    package, _, training = call.module.partition(".")
    arguments = [*call.arguments]
    if call.module.endswith(".py"):
        script = call.module.removesuffix(".py")
        if arguments[:1] == ["motion"]:  # tools/benchmark.py leaves the rest to another
            script, arguments = f"{script}_motion", arguments[1:]
        importlib.import_module(script.replace("/", ".")).parse(arguments)
    elif training or arguments[:1] == [TRAIN]:
        options = arguments if training else arguments[1:]
        assert_parses(training_parser(package), options, complete=call.complete)
    elif call.complete:
        assert_parses(PROGRAMS[package].make_parser(), arguments, complete=True)
    else:
        command, *options = arguments
        assert any(knows(parser, options) for parser in parsers_of(package, command))


def assert_parses(parser: ArgumentParser, arguments: Sequence[str], *, complete: bool) -> None:
    if complete:
        parser.parse_args(arguments)
    else:
        assert knows(parser, arguments)


def knows(parser: ArgumentParser, arguments: Sequence[str]) -> bool:
    """Whether a parser has all options of arguments that do not tell all."""
    named = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    return named <= options_of(parser).keys()


@cache
def training_parser(package: str) -> ArgumentParser:
    return config_parser(CONFIGS[package], "test", "")


@cache
def parsers_by_command(package: str) -> dict[str, ArgumentParser]:
    actions = PROGRAMS[package].make_parser()._actions
    (commands,) = (action for action in actions if action.dest == "command")
    return {name: parser for name, parser in commands.choices.items() if name != TRAIN}


def parsers_of(package: str, command: str) -> list[ArgumentParser]:
    """That of a subcommand, or all where the README does not say which."""
    parsers = parsers_by_command(package)
    return [*parsers.values()] if command in ("COMMAND", LEFT_OUT) else [parsers[command]]


def options_of(parser: ArgumentParser) -> dict[str, Action]:
    return {name: action for action in parser._actions for name in action.option_strings}


@pytest.mark.parametrize("span", OPTIONS)
def test_options_in_the_text_are_there(span: str) -> None:
    training = [training_parser(package) for package in PROGRAMS]
    others = [p for package in PROGRAMS for p in parsers_by_command(package).values()]
    option, *value = span.split()
    parsers = [parser for parser in training + others if knows(parser, [option])]
    assert parsers
    if parsers[0] in training:
        parsers[0].parse_args([option, *value] if value else [])
    elif value and (choices := options_of(parsers[0])[option].choices):
        assert value[0] in choices


def test_all_commands_are_there() -> None:
    named = {call.arguments[0] for call in CALLS if call.module == "wanvae" and call.arguments}
    assert PROGRAMS["wanvae"].commands.keys() | {TRAIN} <= named


def test_the_table_of_commands_of_motion() -> None:
    rows = [row.split() for row in first_column("| command |")]
    assert {command for command, *_ in rows} == PROGRAMS["motion"].commands.keys() | {TRAIN}
    for command, *arguments in rows:
        if command != TRAIN:
            (parser,) = parsers_of("motion", command)
            positionals = [action for action in parser._actions if not action.option_strings]
            assert len(arguments) == len(positionals)


def first_column(heading: str) -> list[str]:
    """The code in the first column of the table with this heading."""
    _, _, *rows = TEXT[TEXT.index(heading) :].partition("\n\n")[0].splitlines()
    return [span for row in rows for span in re.findall(r"`(.+?)`", row.split("|")[1])]


@pytest.mark.parametrize("path", PATHS)
def test_files_of_the_repository_are_there(path: str) -> None:
    assert Path(path).exists()


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_somewhere(link: str) -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {f"#{heading.lower().replace(' ', '-')}" for heading in headings}
    assert link in anchors if link.startswith("#") else Path(link).is_file()


def test_the_configs_are_those_of_the_tree() -> None:
    named = {Path(name).name for name in re.findall(r"[\w/]+\.yaml", TEXT)}
    assert named == {path.name for path in Path("configs").rglob("*.yaml")}


def test_the_tree_under_how_it_is_built() -> None:
    (tree,) = (block.text for block in BLOCKS if block.language == "")
    named = set(re.findall(r"^(\S+)/ ", tree, re.MULTILINE))
    packages = {str(path.parent) for root in PROGRAMS for path in Path(root).rglob("__init__.py")}
    assert packages <= named
    assert all(Path(folder).is_dir() for folder in named)


def test_what_is_to_be_installed_has_a_name_in_the_project() -> None:
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", PROJECT, re.DOTALL)[1]
    named = set(re.findall(r"pip install -e \"\.\[(\w+)\]\"", TEXT))
    assert named <= set(re.findall(r"^(\w+) = ", extras, re.MULTILINE))


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.example)
def test_names_that_python_imports_are_there(block: Block) -> None:
    for statement in ast.walk(ast.parse(block.text)):
        if isinstance(statement, ast.ImportFrom) and statement.module.split(".")[0] in PROGRAMS:
            module = importlib.import_module(statement.module)
            assert all(hasattr(module, alias.name) for alias in statement.names)


@pytest.mark.slow
def test_the_tiles_of_a_4k_frame(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--frames", "1", "--height", "2160", "--width", "3840"]
    assert wanvae.cli.main(["plan", *size, "--max-memory", "2GB"]) == 0
    (tiles,) = re.findall(r"\d+ tiles of at most \d+x\d+ pixels", TEXT)
    assert capsys.readouterr().out.count(f": {tiles}, ") == 2
