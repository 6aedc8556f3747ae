"""README.md as its tests see it: the blocks of code, and all commands, also those in its text."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")

BLOCK = re.compile(
    r"^(?:<!-- example: (?P<example>.+?) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PROGRAMS = ("accelerate", "python", "wanvae", "wanvae-motion")
# What stands for what a command leaves out.
LEFT_OUT = "..."


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: "bash", "python" or "".
        text: what is in it.
        line: of the file, where the text begins, counted from 1.
        example: what the comment before it calls it; None without one.
    """

    language: str
    text: str
    line: int
    example: str | None


@dataclass(frozen=True)
class Call:
    """What a command runs.

    Attributes:
        module: "wanvae", or the path of a script.
        arguments: that it gets.
        complete: whether it can be run as it is printed.
    """

    module: str
    arguments: tuple[str, ...]
    complete: bool = True


BLOCKS = tuple(
    Block(
        match["language"],
        match["text"],
        TEXT.count("\n", 0, match.start("text")) + 1,
        match["example"],
    )
    for match in BLOCK.finditer(TEXT)
)
EXAMPLES = {block.example: block for block in BLOCKS if block.example is not None}
# Code in the text and the tables, each on one line.
SPANS = tuple(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", BLOCK.sub("", TEXT)))


def calls() -> Iterator[Call]:
    """What all commands of the README run of this project; those in its text may be incomplete."""
    for words in commands():
        if (call := call_of(words)) is not None:
            yield replace(call, complete=LEFT_OUT not in words)
    for span in SPANS:
        if span.split()[0] in PROGRAMS and (call := call_of(shlex.split(span))) is not None:
            yield replace(call, complete=False)


def commands() -> Iterator[list[str]]:
    """The words of each command in a block."""
    for block in BLOCKS:
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words:
                    end = words.index("&&") if "&&" in words else len(words)
                    yield words[:end]
                    words = words[end + 1 :]


def call_of(words: Sequence[str]) -> Call | None:
    """What a command runs of this project; None if that is something else."""
    match words:
        case ["wanvae", *arguments]:
            return Call("wanvae", tuple(arguments))
        case ["wanvae-motion", *arguments] | ["python", "-m", "motion", *arguments]:
            return Call("motion", tuple(arguments))
        case ["python", script, *arguments]:
            return Call(script, tuple(arguments))
        case ["accelerate", "launch", *options]:
            launch = launcher().parse_args(options)
            return Call(launch.training_script, tuple(launch.training_script_args))
    return None


@cache
def launcher() -> ArgumentParser:
    """The parser of ``accelerate launch``."""
    return launch_command_parser()
