"""The command line ``wanvae``: the list of its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import wanvae
from wanvae.engine.waiting import wait_briefly

wait_briefly()  # before the imports that load PyTorch

from wanvae.engine.command_line.program import Program, listed  # noqa: E402

COMMANDS = {
    "reconstruct": listed(
        "encode and decode a video, and compare", "wanvae.commands.video", "RECONSTRUCT"
    ),
    "encode": listed("video to latents", "wanvae.commands.video", "ENCODE"),
    "encode-dataset": listed(
        "encode a folder of videos to latents to train on",
        "wanvae.commands.encode_dataset",
        "ENCODE_DATASET",
    ),
    "decode": listed("latents to video", "wanvae.commands.video", "DECODE"),
    "evaluate": listed(
        "judge models on a folder of videos, with a report", "wanvae.commands.evaluate", "EVALUATE"
    ),
    "plan": listed("print what encoding and decoding would take", "wanvae.commands.plan", "PLAN"),
    "info": listed("print what a checkpoint is", "wanvae.commands.checkpoint", "INFO"),
    "convert": listed(
        "write a checkpoint in another layout", "wanvae.commands.checkpoint", "CONVERT"
    ),
    "merge-index": listed(
        "join the parts of a data set of latents", "wanvae.commands.merge_index", "MERGE_INDEX"
    ),
    "index": listed("list the videos of a folder, for training", "wanvae.commands.index", "INDEX"),
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
