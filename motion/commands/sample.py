"""``wanvae-motion sample``: a procedural walk."""

from __future__ import annotations

from jsonargparse import Namespace

from motion.files.formats import write_motion
from motion.skeleton.sample import walk
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command


def add_options(parser: Parser) -> None:
    parser.add_argument("output", help="file to write: .bvh or .npz")
    parser.writes("output")
    parser.add_argument("--frames", type=int, default=240, help="number of frames")
    parser.add_argument("--fps", type=float, default=30.0, help="frames per second")


def run(arguments: Namespace) -> None:
    clip = walk(arguments.frames, arguments.fps)
    write_motion(arguments.output, clip)
    print(f"{arguments.output}: {len(clip)} frames of {clip.skeleton.joints} joints")


SAMPLE = Command(
    run,
    add_options,
    "Write a procedural walk of the packaged skeleton with the joints of SMPL-X.",
)
