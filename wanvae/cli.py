"""The command line: ``wanvae reconstruct | encode | decode | info | convert``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from jsonargparse import ArgumentParser, Namespace

import wanvae
from wanvae import formats
from wanvae.convert import ConversionReport, convert
from wanvae.demo import demo_clip, demo_weights
from wanvae.engine.config import to_json_dict
from wanvae.formats import Layout
from wanvae.model import WanVAE
from wanvae.pipeline import decode_file, encode_file, reconstruct_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VIDEO_HELP = "video or image to read; anything FFmpeg reads"
OUTPUT_HELP = "file to write: .mp4, .mkv, .mov, or .png, .jpg, .webp for one frame"


def reconstruct(arguments: Namespace) -> None:
    source = arguments.input or demo_clip()
    demo = arguments.input is None
    report = reconstruct_file(
        load_model(arguments),
        source,
        arguments.output,
        side_by_side=arguments.side_by_side or demo,
        crf=arguments.crf,
        progress=arguments.progress,
    )
    print(
        f"{source} -> {arguments.output}: {report.frames} frames, "
        f"PSNR {report.psnr:.2f} dB, SSIM {report.ssim:.4f}, "
        f"compression {report.compression:.1f}x, "
        f"{report.seconds / report.frames:.3f} s per frame ({report.seconds:.1f} s)"
    )


def encode(arguments: Namespace) -> None:
    shape = encode_file(
        load_model(arguments), arguments.input, arguments.output, progress=arguments.progress
    )
    print(f"{arguments.input} -> {arguments.output}: mean and logvar {tuple(shape)}")


def decode(arguments: Namespace) -> None:
    frames = decode_file(
        load_model(arguments),
        arguments.input,
        arguments.output,
        normalized=arguments.normalized,
        fps=None if arguments.fps is None else parse_fps(arguments.fps),
        crf=arguments.crf,
        progress=arguments.progress,
    )
    print(f"{arguments.input} -> {arguments.output}: {frames} frames")


def info(arguments: Namespace) -> None:
    path = arguments.checkpoint or demo_weights()
    checkpoint = formats.load(path)
    count = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in checkpoint.tensors.values()})
    config = checkpoint.config
    print(f"{path}: {checkpoint.layout.value} layout")
    print(f"parameters: {count:,} in {len(checkpoint.tensors)} tensors, {', '.join(dtypes)}")
    print(
        f"compression: {config.temporal_factor}x{config.spatial_factor}x{config.spatial_factor}, "
        f"{config.z_dim} channels"
    )
    for name, value in to_json_dict(config).items():
        print(f"{name}: {value}")
    for note in checkpoint.notes:
        print(f"note: {note}")


def convert_checkpoint(arguments: Namespace) -> None:
    dtype = None if arguments.dtype is None else DTYPES[arguments.dtype]
    report = convert(arguments.source, arguments.destination, Layout(arguments.to), dtype)
    print_conversion(report)


def print_conversion(report: ConversionReport) -> None:
    """Say what a conversion did."""
    print(
        f"{report.source.value} to {report.target.value}: {report.tensors} tensors, "
        f"{report.renamed} renamed"
    )
    for note in report.notes:
        print(f"note: {note}")


def load_model(arguments: Namespace) -> WanVAE:
    path = arguments.checkpoint or demo_weights()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return WanVAE.from_pretrained(path, DTYPES[arguments.dtype], device)


def parse_fps(text: str) -> Fraction:
    """A rate like 25, 29.97 or 30000/1001."""
    try:
        fps = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if fps <= 0:
        raise ValueError(f"--fps must be a positive rate like 25 or 30000/1001, not {text!r}")
    return fps


def add_model_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        help="native, official or diffusers checkpoint (default: the small model of this package)",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="to compute in")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    parser.add_argument(
        "--progress", type=bool, default=sys.stderr.isatty(), help="show a progress bar"
    )


def add_quality_option(parser: ArgumentParser) -> None:
    parser.add_argument("--crf", type=int, default=18, help="H.264 quality, 0 (best) to 51")


def reconstruct_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Encode and decode a video, and say how close the result is. With no input: "
        "a sample clip, side by side with the original."
    )
    parser.add_argument("input", nargs="?", help=VIDEO_HELP)
    parser.add_argument("output", nargs="?", default="reconstruction.mp4", help=OUTPUT_HELP)
    parser.add_argument("--side-by-side", action="store_true", help="put the original at the left")
    add_quality_option(parser)
    add_model_options(parser)
    return parser


def encode_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Encode a video to its latents: mean and logvar, not normalised, in float32."
    )
    parser.add_argument("input", help=VIDEO_HELP)
    parser.add_argument("output", help="file to write, .safetensors")
    add_model_options(parser)
    return parser


def decode_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Decode latents to a video: those of `wanvae encode`, or a tensor `latents` "
        "(z_dim, T, H, W) of another program."
    )
    parser.add_argument("input", help="latents, .safetensors")
    parser.add_argument("output", help=OUTPUT_HELP)
    parser.add_argument(
        "--normalized",
        action="store_true",
        help="the latents are as a diffusion model gives them: denormalize them first",
    )
    parser.add_argument("--fps", help="frames per second (default: the encoded video's, else 16)")
    add_quality_option(parser)
    add_model_options(parser)
    return parser


def info_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Say what a checkpoint is, and what had to be assumed.")
    parser.add_argument("checkpoint", nargs="?", help="default: the small model of this package")
    return parser


def convert_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Write a checkpoint in another layout.")
    parser.add_argument("source", help="checkpoint of any layout; which one is found out")
    parser.add_argument(
        "destination",
        help=".safetensors (native), .pth or .safetensors (wan), directory (diffusers)",
    )
    layouts = [layout.value for layout in Layout]
    parser.add_argument("--to", choices=layouts, required=True, help="layout to write")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the tensors (default: as read)")
    return parser


COMMANDS: dict[str, tuple[Callable[[], ArgumentParser], Callable[[Namespace], None], str]] = {
    "reconstruct": (reconstruct_parser, reconstruct, "encode and decode a video, and compare"),
    "encode": (encode_parser, encode, "video to latents"),
    "decode": (decode_parser, decode, "latents to video"),
    "info": (info_parser, info, "what a checkpoint is"),
    "convert": (convert_parser, convert_checkpoint, "checkpoint to another layout"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 for an error, 130 after Ctrl-C (2, from the parser: usage)."""
    parser = ArgumentParser(prog="wanvae", description=wanvae.__doc__, version=wanvae.__version__)
    subcommands = parser.add_subcommands(dest="command")
    for name, (make_parser, _, summary) in COMMANDS.items():
        subcommands.add_subcommand(name, make_parser(), help=summary)
    parsed = parser.parse_args(arguments)
    command = COMMANDS[parsed.command][1]
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            command(parsed[parsed.command])
        except KeyboardInterrupt:
            print("wanvae: interrupted; nothing was written", file=sys.stderr)
            return 130
        except torch.OutOfMemoryError as error:
            print(f"wanvae: out of memory: {first_line(error)}", file=sys.stderr)
            return 1
        except (ValueError, OSError) as error:
            print(f"wanvae: {first_line(error)}", file=sys.stderr)
            return 1
    return 0


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def show_warning(message: Warning | str, *_: object) -> None:
    print(f"wanvae: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
