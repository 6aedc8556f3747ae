"""``wanvae-motion export``: an encoder or a decoder as a program for other software."""

from __future__ import annotations

from typing import get_args

from jsonargparse import Namespace

from motion.commands.options import add_untold_options, load_told, read_untold
from motion.export import Part, least_frames, least_tokens, write_part
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
        help="encoder: motion (clips, frames, channels) to indices (clips, tokens, layers); "
        "decoder: the way back",
    )
    add_untold_options(parser)


def run(arguments: Namespace) -> None:
    model = load_told(arguments.checkpoint, read_untold(arguments), dtype="float32")
    part, config = arguments.part, model.config
    write_part(arguments.output, model, part)
    motion = f"motion (clips, frames, {config.channels})"
    indices = f"indices (clips, tokens, {config.quantizer.num_quantizers})"
    way = f"{motion} to {indices}" if part == "encoder" else f"{indices} to {motion}"
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
