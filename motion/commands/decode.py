"""``wanvae-motion decode``: the latents of a VAE to motion."""

from __future__ import annotations

from jsonargparse import Namespace

from motion.commands.detokenize import (
    choose_skeleton,
    make_recording,
    print_what_is_lost,
    write_recording,
)
from motion.commands.options import (
    WRITTEN_HELP,
    add_model_options,
    add_reading_options,
    load_vae,
    read_reading,
)
from motion.features.recording import check_output
from motion.latents import check_latents, read_latents
from motion.render import FIGURE_SUFFIXES
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.files import refuse_overwriting


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "input", help="latents: .safetensors of encode, or with one tensor mean (n, C)"
    )
    parser.add_argument(
        "output",
        help=f"file to write: {WRITTEN_HELP}; .mp4 or .png to look at",
    )
    parser.reads("input", "skeleton")
    parser.writes("output")
    parser.add_argument(
        "--skeleton",
        help="motion file with the skeleton to move (default: the skeleton of the latents, else a "
        "packaged skeleton with the same number of joints)",
    )
    add_reading_options(parser)
    add_model_options(parser)


def run(arguments: Namespace) -> None:
    model, source, target = load_vae(arguments), arguments.input, arguments.output
    config = model.config
    refuse_overwriting(target, [source, arguments.skeleton])
    check_output(target, config, *FIGURE_SUFFIXES)
    latents = read_latents(source)
    check_latents(latents, model, source)
    skeleton = None
    if arguments.skeleton is not None:
        skeleton = choose_skeleton(arguments.skeleton, model, read_reading(arguments))
    origin = latents.origin
    frames = None if origin is None else origin.frames
    features = model.decode(latents.posterior.mode()[None], frames)[0].cpu()
    actor = None if origin is None else origin.actor
    recording = make_recording(model, features, actor, skeleton)
    write_recording(target, recording, progress=arguments.progress)
    print(f"{source} -> {target}: {len(recording)} frames at {config.fps:g} per second")
    print_what_is_lost(target, recording)


DECODE = Command(
    run,
    add_options,
    "Write the motion of a file of continuous latents, which encode or another program wrote. If "
    "the features have no root, as the 330 channels of BEAT2, the motion stays where it began.",
)
