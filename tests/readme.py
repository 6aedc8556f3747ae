"""README.md and the guides as their tests see them: blocks of code, code in the text, commands."""

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
# Where guides lie, besides the root.
FOLDERS = ("motion", "tools", "wanvae")

BLOCK = re.compile(
    r"^(?:<!-- example: (?P<example>.+?) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PROGRAMS = ("accelerate", "python", "wanvae", "wanvae-motion")
# Stands for what a command leaves out.
LEFT_OUT = "..."


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: "bash", "python" or "".
        text: the code.
        guide: path of the file, from the root.
        line: where the text begins, counted from 1.
        example: the name that the comment before the block gives it; None without a comment.
    """

    language: str
    text: str
    guide: str
    line: int
    example: str | None


@dataclass(frozen=True)
class Call:
    """What a command runs.

    Attributes:
        module: "wanvae", or the path of a script.
        arguments: the arguments it gets.
        complete: whether it can be run as it is printed.
    """

    module: str
    arguments: tuple[str, ...]
    complete: bool = True


@dataclass(frozen=True)
class Guide:
    """A README.md.

    Attributes:
        path: from the root of the repository.
        text: the whole file.
        blocks: its blocks of code.
        spans: the code in its text and tables, each on one line.
    """

    path: str
    text: str
    blocks: tuple[Block, ...]
    spans: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder of the file, which its links start from."""
        return (ROOT / self.path).parent

    @property
    def anchors(self) -> set[str]:
        """The anchors of its headings."""
        headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", self.text), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    @property
    def links(self) -> list[str]:
        """The targets of its links and pictures within the repository."""
        return re.findall(r"\]\((?!https?:)(.+?)\)", self.text)

    @property
    def calls(self) -> Iterator[Call]:
        """All commands of this project; commands in the text may be incomplete."""
        for words in self.commands:
            if (call := call_of(words)) is not None:
                yield replace(call, complete=LEFT_OUT not in words)
        for span in self.spans:
            if span.split()[0] in PROGRAMS and (call := call_of(shlex.split(span))) is not None:
                yield replace(call, complete=False)

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each command in a block."""
        for block in self.blocks:
            if block.language == "bash":
                for line in block.text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    while words:
                        end = words.index("&&") if "&&" in words else len(words)
                        yield words[:end]
                        words = words[end + 1 :]


def read_guide(path: Path) -> Guide:
    """The guide at ``path``."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    blocks = tuple(
        Block(
            match["language"],
            match["text"],
            name,
            text.count("\n", 0, match.start("text")) + 1,
            match["example"],
        )
        for match in BLOCK.finditer(text)
    )
    spans = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    return Guide(name, text, blocks, tuple(" ".join(span.split()) for span in spans))


def call_of(words: Sequence[str]) -> Call | None:
    """What a command runs of this project; None if it runs something else."""
    match words:
        case ["wanvae", *arguments]:
            return Call("wanvae", tuple(arguments))
        case ["wanvae-motion", *arguments] | ["python", "-m", "motion", *arguments]:
            return Call("motion", tuple(arguments))
        case ["python", script, *arguments]:
            return Call(script, tuple(arguments))
        case ["accelerate", "launch", *options] if options:
            launch = launcher().parse_args(options)
            return Call(launch.training_script, tuple(launch.training_script_args))
    return None


@cache
def launcher() -> ArgumentParser:
    """The parser of ``accelerate launch``."""
    return launch_command_parser()


README = read_guide(ROOT / "README.md")
GUIDES = (
    README,
    *(
        read_guide(path)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob(README.path))
    ),
)
TEXT = "\n".join(guide.text for guide in GUIDES)
BLOCKS = tuple(block for guide in GUIDES for block in guide.blocks)
EXAMPLES = {block.example: block for block in BLOCKS if block.example is not None}
