"""The command line, ``wanvae``: encode, decode, reconstruct, plan, train and others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

import wanvae
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert, load_complete
from wanvae.commands.options import (
    DTYPES,
    add_memory_option,
    add_model_options,
    add_shard_option,
    model_to_share,
)
from wanvae.commands.pipeline import decode_file, encode_file, reconstruct_file
from wanvae.config import WanVAEConfig
from wanvae.dataset.command import ENCODE_DATASET
from wanvae.demo import demo_clip, demo_weights
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command, Program, add_progress_option
from wanvae.engine.config import to_json_dict
from wanvae.engine.devices import add_device_option, default_device
from wanvae.errors import UserError
from wanvae.evaluate.command import EVALUATE
from wanvae.execution.budget import Planner, TooLittleMemory, choose_plan, show_memory
from wanvae.execution.cost import Workload
from wanvae.execution.limits import Limits
from wanvae.execution.plan import Plan
from wanvae.execution.sharding import expected_speedup, share_out
from wanvae.folders.manifest import MANIFEST, write_manifest
from wanvae.latents.file import parse_rate
from wanvae.model import WanVAE, check_length, check_size

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


def plan(arguments: Namespace) -> None:
    config = load_complete(arguments.checkpoint).config if arguments.checkpoint else WanVAEConfig()
    check_size(config, arguments.height, arguments.width)
    check_length(config, arguments.frames)
    latents = 1 + (arguments.frames - 1) // config.temporal_factor
    limits = Limits(arguments.tile_size, arguments.max_memory)
    offloads = (arguments.device or default_device()) != "cpu"
    with torch.device("meta"):
        vae = WanVAE(config).to(DTYPES[arguments.dtype])
    for task, network in (("encode", vae.encoder_network()), ("decode", vae.decoder_network())):
        decoding = network.core_first
        channels = config.z_dim if decoding else config.in_channels
        scale = config.upscale_factor if decoding else 1
        sides = scale * arguments.height, scale * arguments.width
        workload = Workload(1, channels, latents, *sides, DTYPES[arguments.dtype], offloads)
        planner = Planner(network)
        chosen = choose_plan(network, workload, limits)
        print(f"{task}: {describe(planner, workload, chosen)}")
        if offloads and limits.max_memory is not None:
            print(f"{task} as a stream: {describe_stream(planner, workload, limits)}")
        if arguments.processes is not None:
            print(f"{task} by {describe_shares(planner, workload, chosen, arguments.processes)}")


def describe(planner: Planner, workload: Workload, chosen: Plan) -> str:
    """A plan and what it takes, in a line."""
    stream = replace(workload, latents=None)
    endless = f"as a stream without end: {show_memory(planner.memory(stream, chosen))}"
    if len(planner.tiles(workload, chosen)) > 1:
        offloaded = planner.memory(stream, replace(chosen, offload=True))
        endless += f", on a GPU with states offloaded: {show_memory(offloaded)}"
    work = planner.costs.multiply_adds(workload, chosen)
    overhead = work / planner.costs.multiply_adds(workload, Plan(None, chosen.frames))
    return (
        f"{describe_steps(planner, workload, chosen)}, "
        f"{show_memory(planner.memory(workload, chosen))} ({endless}), "
        f"{work / 1e12:.2f} T multiply-adds, {overhead:.2f} times those of whole frames"
    )


def describe_steps(planner: Planner, workload: Workload, chosen: Plan) -> str:
    """The tiles of a plan, and its frames at once."""
    size = "whole frames"
    if chosen.tile_size is not None:
        tiles = planner.tiles(workload, chosen)
        size = f"{len(tiles)} tiles of at most {chosen.tile_size[0]}x{chosen.tile_size[1]} pixels"
        if chosen.split_core:
            size += ", all but attention"
    return f"{size}, {chosen.frames or 'all'} frames at once"


def describe_stream(planner: Planner, workload: Workload, limits: Limits) -> str:
    """The plan for a stream without end on a GPU, which can offload states, in a line."""
    stream = replace(workload, latents=None)
    try:
        chosen = choose_plan(planner.network, stream, limits)
    except TooLittleMemory as error:
        return str(error)
    offloaded = ", states offloaded" if chosen.offload else ""
    return (
        f"{describe_steps(planner, stream, chosen)}{offloaded}, "
        f"{show_memory(planner.memory(stream, chosen))}"
    )


def describe_shares(planner: Planner, workload: Workload, chosen: Plan, processes: int) -> str:
    """How processes would share the work of a plan, in a line."""
    if processes < 1:
        raise UserError(f"--processes must be positive, not {processes}")
    shares = share_out(planner.network, chosen, workload.height, workload.width, processes)
    busy = sum(work > 0 for work in shares.work)
    return (
        f"{processes} processes: {len(shares.tiles)} tiles for {busy} of them, "
        f"{expected_speedup(planner.network, workload, shares):.2f} times as fast at most"
    )


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


def add_plan_options(parser: Parser) -> None:
    parser.add_argument("--frames", type=int, default=81, help="of the video, 1 + 4n")
    parser.add_argument(
        "--height", type=int, default=480, help="pixels, a multiple of 8 (Wan2.2: 16)"
    )
    parser.add_argument(
        "--width", type=int, default=832, help="pixels, a multiple of 8 (Wan2.2: 16)"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="to compute in")
    parser.add_argument("--tile-size", type=int, help="pixels a side of the largest tile")
    add_memory_option(parser)
    add_device_option(parser)
    parser.add_argument("--processes", type=int, help="to share each frame, with --shard")
    parser.add_argument(
        "--checkpoint", help="whose architecture to plan for (default: the official one)"
    )


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
    "plan": Command(
        plan,
        add_plan_options,
        "what encoding and decoding would take",
        "Say in which steps and tiles a video would be encoded and decoded, how much memory that "
        "takes, and how much more work tiles are. Nothing is computed.",
    ),
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
    from wanvae.train.run import run as train

    return train.main(arguments, program)


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
