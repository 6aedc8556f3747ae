"""The commands ``wanvae reconstruct``, ``encode`` and ``decode``, for one video or image."""

from __future__ import annotations

import os
import shlex
import sys
from fractions import Fraction
from pathlib import Path
from shutil import which
from typing import Any

from jsonargparse import Namespace

from wanvae.commands.options import (
    add_model_options,
    add_picture_options,
    add_shard_option,
    checkpoint_of,
    model_to_share,
)
from wanvae.commands.pipeline import decode_file, encode_file, reconstruct_file
from wanvae.commands.writing import (
    OUTPUT_HELP,
    STDOUT,
    add_encoding_options,
    encoding_of,
    opened_output,
)
from wanvae.demo import demo_clip
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.errors import UserError
from wanvae.latents.scale import Scale
from wanvae.model import AnyVAE
from wanvae.tiny import TinyVAE
from wanvae.video import ReadOptions
from wanvae.video.rate import parse_rate
from wanvae.video.reading.options import parse_options

# How much of the sample clip is reconstructed, so that newcomers soon have something to see.
DEMO_SECONDS = 4.0
VIDEO_HELP = (
    "video or image to read, a folder of images, several images (frames/%05d.png or "
    "'frames/*.png'), or - for a pipe; all that FFmpeg reads"
)


def reconstruct(arguments: Namespace) -> None:
    """Encodes and decodes a video, and prints how close the result is."""
    demo = arguments.input is None
    source = demo_clip() if demo else arguments.input
    fps = rate_of(arguments)
    with (
        opened_output(arguments) as destination,
        model_to_share(arguments) as (vae, processes),
    ):
        report = reconstruct_file(
            vae,
            source,
            destination,
            side_by_side=arguments.side_by_side or demo,
            encoding=encoding_of(arguments),
            start=arguments.start,
            duration=duration_of(arguments),
            fps=fps,
            sound=not arguments.no_audio,
            options=read_options(arguments),
            shard=processes,
            **common_options(arguments),
        )
        if report is not None:
            print(
                f"{source} -> {arguments.output}: {report.frames} frames, "
                f"PSNR {report.psnr:.2f} dB, SSIM {report.ssim:.4f}, "
                f"compression {report.compression:.1f}x, "
                f"{report.seconds / report.frames:.3f} s per frame ({report.seconds:.1f} s)"
            )
            if demo and arguments.output != STDOUT:
                print(describe_demo(Path(arguments.output).resolve(), whole=arguments.whole))
            tell_of_tiny(arguments, vae)


def duration_of(arguments: Namespace) -> float | None:
    """Returns the seconds to reconstruct: of the sample clip a few, of other videos all.

    Raises:
        UserError: the options contradict each other.
    """
    if arguments.whole and arguments.duration is not None:
        raise UserError("--whole and --duration contradict each other; leave out one")
    if arguments.input is None and not arguments.whole and arguments.duration is None:
        return DEMO_SECONDS
    return arguments.duration


def describe_demo(path: Path, *, whole: bool) -> str:
    """Returns lines that say what the reconstruction of the sample clip is, and how to see it."""
    command = opening_command()
    other = "if this computer has no screen, copy the file to one that has a screen"
    if command is not None:
        other = f"or run: {shlex.join([*command, str(path)])}"
    lines = [
        f"The result is {path}: the original on the left, its reconstruction on the right.",
        f"To see it, open {path.as_uri()} in a web browser; {other}",
    ]
    if not whole:
        lines.append(
            f"It is {DEMO_SECONDS:g} seconds of a sample clip; --whole takes all of it, and "
            "`wanvae reconstruct IN.mp4 OUT.mp4` a video of yours."
        )
    return "\n".join(lines)


def opening_command() -> list[str] | None:
    """Returns the command that opens a file on this system; None if there is no screen."""
    if sys.platform == "win32":
        return ["explorer"]
    if sys.platform == "darwin":
        return ["open"]
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return ["xdg-open"] if screen and which("xdg-open") else None


def encode(arguments: Namespace) -> None:
    """Encodes a video to a file of latents."""
    fps = rate_of(arguments)
    with model_to_share(arguments) as (vae, processes):
        shape = encode_file(
            vae,
            arguments.input,
            arguments.output,
            checkpoint=checkpoint_of(arguments),
            start=arguments.start,
            duration=arguments.duration,
            fps=fps,
            options=read_options(arguments),
            shard=processes,
            **common_options(arguments),
        )
    if shape is not None:
        print(f"{arguments.input} -> {arguments.output}: mean and logvar {shape}")
        tell_of_tiny(arguments, vae)


def decode(arguments: Namespace) -> None:
    """Decodes a file of latents to a video."""
    fps = rate_of(arguments)
    arguments = with_preview(arguments)
    with (
        opened_output(arguments) as destination,
        model_to_share(arguments) as (vae, processes),
    ):
        tiny = isinstance(vae, TinyVAE)
        if arguments.preview is not None and not tiny:
            raise UserError(f"{arguments.preview} is no tiny autoencoder: name it as --checkpoint")
        frames = decode_file(
            vae,
            arguments.input,
            destination,
            checkpoint=checkpoint_of(arguments),
            scale=scale_of(arguments),
            entry=arguments.entry,
            drop_alpha=arguments.drop_alpha,
            fps=fps,
            encoding=encoding_of(arguments),
            audio_from=arguments.audio_from,
            shard=processes,
            **common_options(arguments),
        )
        if frames:
            print(f"{arguments.input} -> {arguments.output}: {frames} frames")
            tell_of_tiny(arguments, vae)


def tell_of_tiny(arguments: Namespace, vae: AnyVAE) -> None:
    """Prints how a tiny autoencoder itself has latents, because its file may not tell for sure."""
    if isinstance(vae, TinyVAE) and arguments.tiny_latents is None:
        kind = vae.config.network_latents
        other = "raw" if kind == "normalized" else "normalized"
        print(
            f"{arguments.checkpoint}: its network is taken to have {kind} latents; if colours are "
            f"wrong, add --tiny-latents {other}"
        )


def with_preview(arguments: Namespace) -> Namespace:
    """Returns options with ``--preview`` as the checkpoint, if it is given.

    Raises:
        UserError: ``--checkpoint`` is given too.
    """
    if arguments.preview is None:
        return arguments
    if arguments.checkpoint is not None:
        raise UserError("--preview decodes instead of --checkpoint: give one of them")
    arguments = arguments.clone()
    arguments.checkpoint = arguments.preview
    return arguments


def common_options(arguments: Namespace) -> dict[str, Any]:
    """Returns the arguments that the three commands share."""
    return {name: arguments[name] for name in ("tile_size", "max_memory", "progress")}


def rate_of(arguments: Namespace) -> Fraction | None:
    """Returns the rate of ``--fps``; None without it."""
    return None if arguments.fps is None else parse_rate(arguments.fps)


def read_options(arguments: Namespace) -> ReadOptions:
    """Returns what the options say about the pictures that are read."""
    return parse_options(
        deinterlace=arguments.deinterlace,
        background=arguments.background,
        hwaccel=arguments.hwaccel,
    )


def scale_of(arguments: Namespace) -> Scale | None:
    """Returns the scale of latents that the options name; None if they name none."""
    if not arguments.normalized:
        return arguments.scale
    if arguments.scale == "raw":
        raise UserError("--normalized and --scale raw contradict each other; leave out one")
    return "normalized"


def add_time_options(parser: Parser) -> None:
    """Declares ``--start``, ``--duration`` and ``--fps``."""
    parser.add_argument(
        "--start", type=float, default=0.0, help="start of the part to take, in seconds"
    )
    parser.add_argument(
        "--duration", type=float, help="length of the part to take, in seconds (default: all)"
    )
    parser.add_argument(
        "--fps",
        help="frames per second of several images, like 25 or 30000/1001 (default: 25); video "
        "files have their own",
    )


def add_reconstruct_options(parser: Parser) -> None:
    """Declares the options of ``wanvae reconstruct``."""
    parser.add_argument("input", nargs="?", help=VIDEO_HELP)
    parser.add_argument(
        "output",
        nargs="?",
        default="reconstruction.mp4",
        help=OUTPUT_HELP,
    )
    parser.reads("input")
    parser.writes("output")
    parser.add_argument("--side-by-side", action="store_true", help="put the original at the left")
    parser.add_argument(
        "--whole",
        action="store_true",
        help=f"take all of the sample clip (default: {DEMO_SECONDS:g} seconds; of a video that you "
        "name, all)",
    )
    parser.add_argument(
        "--no-audio",
        action="store_true",
        help="leave out the sound (default: sound is copied, or encoded again as AAC or Opus where "
        "the format of output cannot hold it; subtitles, chapters and tags are kept too)",
    )
    add_time_options(parser)
    add_picture_options(parser)
    add_encoding_options(parser)
    add_model_options(parser)
    add_shard_option(parser)


def add_encode_options(parser: Parser) -> None:
    """Declares the options of ``wanvae encode``."""
    parser.add_argument("input", help=VIDEO_HELP)
    parser.add_argument("output", help="file to write, .safetensors")
    parser.reads("input")
    parser.writes("output")
    add_time_options(parser)
    add_picture_options(parser)
    add_model_options(parser)
    add_shard_option(parser)


def add_decode_options(parser: Parser) -> None:
    """Declares the options of ``wanvae decode``."""
    parser.add_argument(
        "input", help="latents: a file of wanvae, or a file or folder that another program cached"
    )
    parser.add_argument("output", help=OUTPUT_HELP)
    parser.reads("input")
    parser.writes("output")
    parser.add_argument(
        "--normalized",
        action="store_true",
        help="the latents come from a diffusion model and are normalized: the same as "
        "--scale normalized",
    )
    parser.add_argument(
        "--scale",
        choices=["raw", "normalized"],
        help="scale of the latents of another program (default: what it stores, or what the "
        "values tell)",
    )
    parser.add_argument("--entry", help="name of the clip to decode, where input holds several")
    parser.add_argument(
        "--drop-alpha",
        action="store_true",
        help="write colours alone if the model decodes alpha, as .mp4 needs",
    )
    parser.add_argument(
        "--fps",
        help="frames per second, like 25 or 30000/1001 (default: as encoded, else 16)",
    )
    parser.add_argument(
        "--audio-from",
        metavar="VIDEO",
        help="video that was encoded, or file of sound: keep its sound, subtitles, chapters and "
        "tags for the time that the latents cover",
    )
    parser.reads("audio_from")
    parser.add_argument(
        "--preview",
        metavar="TAE",
        help="decode with this tiny autoencoder instead, like taew2_1.pth: much faster, less exact",
    )
    parser.reads("preview")
    add_encoding_options(parser)
    add_model_options(parser)
    add_shard_option(parser)


RECONSTRUCT = Command(
    reconstruct,
    add_reconstruct_options,
    "Encode and decode a video of any length, or a part of it, and print how close the result "
    "is. Without input: the beginning of a sample clip, side by side with the original. With "
    "--shard, all processes of accelerate launch -m wanvae share the work.",
)

ENCODE = Command(
    encode,
    add_encode_options,
    "Encode a video to its latents: mean and logvar, not normalized, in float32. The file says "
    "which model encoded it.",
)

DECODE = Command(
    decode,
    add_decode_options,
    "Decode latents to a video. The latents come from `wanvae encode` or `wanvae encode-dataset`, "
    "or from musubi-tuner, ai-toolkit, SimpleTuner, diffusion-pipe, FastVideo or ComfyUI, or are a "
    "tensor that torch.save or safetensors wrote. Warns if another model encoded them.",
)
