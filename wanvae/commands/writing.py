"""How commands write videos: their options, and stdout instead of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from jsonargparse import Namespace

from wanvae.engine.command_line.arguments import Parser
from wanvae.errors import UserError
from wanvae.video.writing.formats import Encoding, codec_names, pipe_containers, suffixes
from wanvae.video.writing.output import Destination, check_output

# The name that stands for stdout.
STDOUT = "-"
OUTPUT_HELP = (
    f"file to write: {' '.join(suffixes())}; .png, .tiff and .jpg hold one frame, or are numbered "
    f"images (frames/%05d.png); - is stdout. These hold alpha: {' '.join(suffixes(alpha=True))}"
)


def add_encoding_options(parser: Parser) -> None:
    """Declares ``--codec``, ``--bits``, ``--crf`` and ``--stdout``."""
    parser.add_argument(
        "--codec",
        choices=codec_names(),
        help="how the video is compressed (default: as the suffix of the file has it first; see "
        "the table in the guide)",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=[8, 10, 16],
        help="bits of each sample (default: 8, except for ProRes, which has 10)",
    )
    parser.add_argument(
        "--crf",
        type=int,
        default=18,
        help="quality of H.264, H.265, AV1 and VP9, 0 (best) to 51",
    )
    pipes = pipe_containers()
    parser.add_argument(
        "--stdout",
        choices=pipes,
        help=f"what the output - is (default: {pipes[0]}); files have their suffix",
    )


def encoding_of(arguments: Namespace) -> Encoding:
    """Returns what the options say about the encoding."""
    return Encoding(
        codec=arguments.codec,
        bits=arguments.bits,
        crf=arguments.crf,
        container=arguments.stdout,
    )


@contextmanager
def opened_output(arguments: Namespace) -> Iterator[Destination]:
    """Gives where the output of a command goes. Checks first what can be known before the work.

    The output "-" is stdout. All other prints go to stderr within the block.

    Raises:
        VideoError: what the options ask for cannot be written there.
        UserError: stdout is a terminal.
    """
    encoding = encoding_of(arguments)
    if arguments.output != STDOUT:
        check_output(arguments.output, encoding)
        yield arguments.output
        return
    if sys.stdout.isatty():
        raise UserError("stdout is a terminal, which cannot show a video: name a file, or add a |")
    pipe = sys.stdout.buffer
    check_output(pipe, encoding)
    with redirect_stdout(sys.stderr):
        yield pipe
