"""The command line, ``wanvae-motion``: the list of its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import motion
from motion.commands.convert import CONVERT
from motion.commands.detokenize import DETOKENIZE
from motion.commands.evaluate import EVALUATE
from motion.commands.info import INFO
from motion.commands.reconstruct import RECONSTRUCT
from motion.commands.render import RENDER
from motion.commands.sample import SAMPLE
from motion.commands.tokenize import TOKENIZE
from wanvae.engine.command_line.program import Program

COMMANDS = {
    "sample": SAMPLE,
    "info": INFO,
    "tokenize": TOKENIZE,
    "detokenize": DETOKENIZE,
    "reconstruct": RECONSTRUCT,
    "evaluate": EVALUATE,
    "render": RENDER,
    "convert": CONVERT,
}


def train(arguments: Sequence[str], program: str) -> int:
    """Runs ``wanvae-motion train``, which has a parser of its own."""
    # Imported here because no other command needs what training imports.
    from motion.train.run import main as train_main

    return train_main(arguments, program)


PROGRAM = Program(
    name="wanvae-motion",
    version=motion.__version__,
    description=motion.__doc__,
    commands=COMMANDS,
    train=train,
    training="train or fine-tune a tokenizer",
    out_of_memory="try shorter motion or another --device",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit status."""
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
