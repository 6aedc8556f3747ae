"""The command line, ``wanvae``: encode, decode, reconstruct, plan, train and others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

import wanvae
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert, load_complete
from wanvae.commands.options import (
    DTYPES,
    add_model_options,
    add_shard_option,
    model_to_share,
)
from wanvae.commands.plan import PLAN
from wanvae.commands.pipeline import decode_file, encode_file, reconstruct_file
from wanvae.dataset.command import ENCODE_DATASET
from wanvae.demo import demo_clip, demo_weights
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.options import add_progress_option
from wanvae.engine.command_line.program import Command, Program
from wanvae.engine.config import to_json_dict
from wanvae.evaluate.command import EVALUATE
from wanvae.folders.manifest import MANIFEST, write_manifest
from wanvae.latents.file import parse_rate

SIDE_HELP = "pixels, a multiple of 8 (16 for Wan2.2)"
VIDEO_HELP = "video or image to read; anything FFmpeg reads"
OUTPUT_HELP = "file to write: .mp4, .mkv, .mov, or .png, .jpg, .webp for one frame"


def reconstruct(arguments: Namespace) -> None:
    source = arguments.input or demo_clip()
    demo = arguments.input is None
    with model_to_share(arguments) as (vae, processes):
        report = reconstruct_file(
            vae,
            source,
            arguments.output,
            side_by_side=arguments.side_by_side or demo,
            crf=arguments.crf,
            start=arguments.start,
            duration=arguments.duration,
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


def encode(arguments: Namespace) -> None:
    with model_to_share(arguments) as (vae, processes):
        shape = encode_file(
            vae,
            arguments.input,
            arguments.output,
            start=arguments.start,
            duration=arguments.duration,
            shard=processes,
            **common_options(arguments),
        )
    if shape is not None:
        print(f"{arguments.input} -> {arguments.output}: mean and logvar {shape}")


def decode(arguments: Namespace) -> None:
    fps = None if arguments.fps is None else parse_rate(arguments.fps)
    with model_to_share(arguments) as (vae, processes):
        frames = decode_file(
            vae,
            arguments.input,
            arguments.output,
            normalized=arguments.normalized,
            fps=fps,
            crf=arguments.crf,
            shard=processes,
            **common_options(arguments),
        )
    if frames:
        print(f"{arguments.input} -> {arguments.output}: {frames} frames")


def common_options(arguments: Namespace) -> dict[str, Any]:
    """What all these commands do with a model."""
    return {name: arguments[name] for name in ("tile_size", "max_memory", "progress")}


def info(arguments: Namespace) -> None:
    path = arguments.checkpoint or demo_weights()
    checkpoint = load_complete(path)
    count = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in checkpoint.tensors.values()})
    config = checkpoint.config
    print(f"{path}: {checkpoint.layout.value} layout")
    print(f"parameters: {count:,} in {len(checkpoint.tensors)} tensors, {', '.join(dtypes)}")
    print(
        f"compression: {config.temporal_factor}x{config.spatial_factor}x{config.spatial_factor}, "
        f"{config.z_dim} channels{', an image model' if config.ndim == 2 else ''}"
    )
    for name, value in to_json_dict(config).items():
        print(f"{name}: {value}")
    for note in checkpoint.notes:
        print(f"note: {note}")


def convert_checkpoint(arguments: Namespace) -> None:
    dtype = None if arguments.dtype is None else DTYPES[arguments.dtype]
    report = convert(arguments.source, arguments.destination, Layout(arguments.to), dtype)
    print(
        f"{report.source.value} to {report.target.value}: {report.tensors} tensors, "
        f"{report.renamed} renamed"
    )
    for note in report.notes:
        print(f"note: {note}")


def index(arguments: Namespace) -> None:
    folder = Path(arguments.folder)
    try:
        entries = write_manifest(folder, progress=arguments.progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run it again to go on from there") from None
    broken = [entry for entry in entries if entry.error is not None]
    images = sum(entry.is_image for entry in entries)
    videos = len(entries) - len(broken) - images
    print(
        f"{folder / MANIFEST}: {videos} videos, {images} images, {len(broken)} that cannot be read"
    )
    for entry in broken:
        print(f"cannot read {entry.name}: {entry.error}")


def add_quality_option(parser: Parser) -> None:
    parser.add_argument("--crf", type=int, default=18, help="H.264 quality, 0 (best) to 51")


def add_part_options(parser: Parser) -> None:
    parser.add_argument("--start", type=float, default=0.0, help="where to begin, in seconds")
    parser.add_argument(
        "--duration", type=float, help="how much to take, in seconds (default: all)"
    )


def add_reconstruct_options(parser: Parser) -> None:
    parser.add_argument("input", nargs="?", help=VIDEO_HELP)
    parser.add_argument(
        "output",
        nargs="?",
        default="reconstruction.mp4",
        help=OUTPUT_HELP,
    )
    parser.add_argument("--side-by-side", action="store_true", help="put the original at the left")
    add_part_options(parser)
    add_quality_option(parser)
    add_model_options(parser)
    add_shard_option(parser)


def add_encode_options(parser: Parser) -> None:
    parser.add_argument("input", help=VIDEO_HELP)
    parser.add_argument("output", help="file to write, .safetensors")
    add_part_options(parser)
    add_model_options(parser)
    add_shard_option(parser)


def add_decode_options(parser: Parser) -> None:
    parser.add_argument("input", help="latents, .safetensors")
    parser.add_argument("output", help=OUTPUT_HELP)
    parser.add_argument(
        "--normalized",
        action="store_true",
        help="the latents are as a diffusion model gives them: denormalize them first",
    )
    parser.add_argument(
        "--fps", help="frames per second, like 25 or 30000/1001 (default: the video's, else 16)"
    )
    add_quality_option(parser)
    add_model_options(parser)
    add_shard_option(parser)


def add_info_options(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint", nargs="?", help="of any layout (default: the small model of this package)"
    )


def add_convert_options(parser: Parser) -> None:
    parser.add_argument("source", help="checkpoint of any layout; which one is found out")
    parser.add_argument(
        "destination",
        help=".safetensors (native), .pth or .safetensors (wan), directory (diffusers)",
    )
    layouts = [layout.value for layout in Layout]
    parser.add_argument("--to", choices=layouts, required=True, help="layout to write")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the tensors (default: as read)")


def add_index_options(parser: Parser) -> None:
    parser.add_argument("folder", help="of videos, images and tars of them; with its subfolders")
    add_progress_option(parser)


COMMANDS = {
    "reconstruct": Command(
        reconstruct,
        add_reconstruct_options,
        "encode and decode a video, and compare",
        "Encode and decode a video of any length, or a part of it, and say how close the result "
        "is. With no input: a sample clip, side by side with the original. With --shard all "
        "processes of accelerate launch -m wanvae share the work.",
    ),
    "encode": Command(
        encode,
        add_encode_options,
        "video to latents",
        "Encode a video to its latents: mean and logvar, not normalized, in float32.",
    ),
    "encode-dataset": ENCODE_DATASET,
    "decode": Command(
        decode,
        add_decode_options,
        "latents to video",
        "Decode latents to a video: those of `wanvae encode` or `wanvae encode-dataset`, or a "
        "tensor `latents` (z_dim, T, H, W) of another program.",
    ),
    "evaluate": EVALUATE,
    "plan": PLAN,
    "info": Command(
        info,
        add_info_options,
        "what a checkpoint is",
        "Say what a checkpoint is, and what had to be assumed.",
    ),
    "convert": Command(
        convert_checkpoint,
        add_convert_options,
        "checkpoint to another layout",
        "Write a checkpoint in another layout.",
    ),
    "index": Command(
        index,
        add_index_options,
        "list the videos of a folder, for training",
        "Find the videos, images and tar shards in a folder, and write what they are to a file in "
        "it, so that training on many of them starts quickly. Files that cannot be read are "
        "listed. Run it again after adding files: only new and changed ones are opened.",
    ),
}


def train(arguments: Sequence[str], program: str) -> int:
    # Imported here, for no other command needs what it does.
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
    """Run a command; returns its exit status."""
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
