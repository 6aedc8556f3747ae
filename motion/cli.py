"""The command line, ``wanvae-motion``: the list of its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import motion
from wanvae.engine.command_line.program import Program, listed

COMMANDS = {
    "sample": listed(
        "a walk, if there is no recording at hand", "motion.commands.sample", "SAMPLE"
    ),
    "info": listed("what a file is", "motion.commands.info", "INFO"),
    "tokenize": listed("motion to tokens", "motion.commands.tokenize", "TOKENIZE"),
    "detokenize": listed("tokens to motion", "motion.commands.detokenize", "DETOKENIZE"),
    "encode": listed("motion to the latents of a VAE", "motion.commands.encode", "ENCODE"),
    "decode": listed("latents of a VAE to motion", "motion.commands.decode", "DECODE"),
    "reconstruct": listed(
        "motion to tokens and back, and compare", "motion.commands.reconstruct", "RECONSTRUCT"
    ),
    "evaluate": listed(
        "errors and code use over many files, as a page", "motion.commands.evaluate", "EVALUATE"
    ),
    "render": listed("motion to a video of a stick figure", "motion.commands.render", "RENDER"),
    "convert": listed(
        "checkpoint to another layout, motion to another format",
        "motion.commands.convert",
        "CONVERT",
    ),
    "export": listed(
        "encoder or decoder as a program, for ONNX or torch.export",
        "motion.commands.export",
        "EXPORT",
    ),
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
