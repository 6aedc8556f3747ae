"""The command line ``wanvae``: the list of its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import wanvae
from wanvae.commands.checkpoint import CONVERT, INFO
from wanvae.commands.encode_dataset import ENCODE_DATASET
from wanvae.commands.evaluate import EVALUATE
from wanvae.commands.index import INDEX
from wanvae.commands.plan import PLAN
from wanvae.commands.video import DECODE, ENCODE, RECONSTRUCT
from wanvae.engine.command_line.program import Program

COMMANDS = {
    "reconstruct": RECONSTRUCT,
    "encode": ENCODE,
    "encode-dataset": ENCODE_DATASET,
    "decode": DECODE,
    "evaluate": EVALUATE,
    "plan": PLAN,
    "info": INFO,
    "convert": CONVERT,
    "index": INDEX,
}


def train(arguments: Sequence[str], program: str) -> int:
    """Runs the training command, and returns its exit status."""
    # Imported here, because no other command needs what training needs.
    from wanvae.train import run

    return run.main(arguments, program)


PROGRAM = Program(
    name="wanvae",
    version=wanvae.__version__,
    description=wanvae.__doc__,
    commands=COMMANDS,
    train=train,
    training="train or fine-tune a model",
    out_of_memory="try a smaller video, --dtype bfloat16 or another --device",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit status."""
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
