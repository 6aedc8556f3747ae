"""``wanvae-motion export``: an encoder or a decoder as a program for other software."""

from __future__ import annotations

from typing import get_args

import torch
from jsonargparse import Namespace

from motion.commands.options import add_untold_options, read_untold
from motion.export import Part, Signature, least_frames, least_tokens, write_part
from motion.models import load_model
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command


def add_options(parser: Parser) -> None:
    parser.add_argument("checkpoint", help="checkpoint of any layout")
    parser.add_argument("output", help="file to write: .onnx, or .pt2 for torch.export.load")
    parser.reads("checkpoint")
    parser.writes("output")
    parser.add_argument(
        "--part",
        required=True,
        choices=list(get_args(Part)),
        help="encoder: motion (clips, frames, channels) to indices (clips, tokens, layers), or to "
        "mean and logvar (clips, tokens, channels) of a VAE; decoder: the way back",
    )
    add_untold_options(parser)


def run(arguments: Namespace) -> None:
    model = load_model(arguments.checkpoint, read_untold(arguments), dtype=torch.float32)
    part, config = arguments.part, model.config
    write_part(arguments.output, model, part)
    signature = Signature.of(config)
    motion = f"motion (clips, frames, {config.channels})"
    size = f"(clips, tokens, {signature.size})"
    found = " and ".join(signature.found)
    way = (
        f"{motion} to {found} {size}"
        if part == "encoder"
        else f"{signature.code} {size} to {motion}"
    )
    print(f"{arguments.checkpoint} -> {arguments.output}: {way}")
    least = f"{least_frames(config)} frames or {least_tokens(config)} tokens"
    print(f"at least {least}; values are not checked")


EXPORT = Command(
    run,
    add_options,
    "Write the encoder or the decoder of a checkpoint as a program, for any number of clips and "
    "frames in float32. It needs none of this code. It does not check values: motion must be "
    "finite, and indices must be of the checkpoint.",
)
