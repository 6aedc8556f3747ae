"""The command ``wanvae encode-dataset``: a folder of videos to latents to train on."""

from __future__ import annotations

from dataclasses import replace

from jsonargparse import Namespace

from wanvae.commands.buckets import (
    add_bucket_options,
    buckets_of_area,
    describe_buckets,
    parse_buckets,
    parse_lengths,
)
from wanvae.commands.options import (
    DTYPES,
    add_model_options,
    add_picture_options,
    checkpoint_of,
    load_model,
)
from wanvae.commands.output import print_some
from wanvae.dataset.encode import DatasetReport, encode_dataset
from wanvae.dataset.parts import parse_part
from wanvae.dataset.settings import DatasetOptions
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.devices import device_of, launched_processes
from wanvae.engine.signals import GO_ON, Interrupted
from wanvae.errors import UserError
from wanvae.execution.budget import parse_memory
from wanvae.latents.formats import LAYOUTS
from wanvae.model import require_wan_vae


def run(arguments: Namespace) -> None:
    """Runs the command."""
    layout = LAYOUTS.get(arguments.layout)
    frames, *shorter = parse_lengths(arguments.frames) or (None,)
    options = DatasetOptions(
        frames=frames,
        shorter=tuple(shorter),
        fps=as_text(arguments.fps),
        resize=as_text(arguments.resize),
        buckets=parse_buckets(arguments),
        store=arguments.store or ("moments" if layout is None else layout.store),
        scale=arguments.scale or ("raw" if layout is None else layout.scale),
        dtype=arguments.store_dtype or ("float32" if layout is None else layout.dtype),
        container=arguments.container,
        shard_size=parse_memory(arguments.shard_size),
        seed=arguments.seed,
        layout=arguments.layout,
        architecture=arguments.architecture or "",
        conditioning=arguments.conditioning,
        control=arguments.control,
        deinterlace=arguments.deinterlace,
        background=arguments.background,
    )
    with launched_processes(arguments.device) as processes:
        checkpoint = checkpoint_of(arguments)
        vae = load_model(arguments, checkpoint, device_of(processes))
        vae = require_wan_vae(vae, checkpoint, "a data set to train on")
        if arguments.area is not None:
            options = replace(options, buckets=buckets_of_area(arguments, vae.config))
        try:
            report = encode_dataset(
                vae,
                checkpoint,
                arguments.source,
                arguments.destination,
                options,
                processes,
                part=None if arguments.part is None else parse_part(arguments.part),
                tile_size=arguments.tile_size,
                max_memory=arguments.max_memory,
                hwaccel=arguments.hwaccel,
                progress=arguments.progress,
            )
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise KeyboardInterrupt(GO_ON) from None
    # Only the first process prints, and fails, for all of them.
    if report is not None:
        show(f"{arguments.source} -> {arguments.destination}", report, options, arguments.part)


def as_text(value: object) -> str | None:
    """Returns an option as text, because in a YAML file 16 is a number."""
    return None if value is None else str(value)


def show(name: str, report: DatasetReport, options: DatasetOptions, part: str | None) -> None:
    """Prints the results, and raises UserError if there are no clips, except in a part."""
    speed = report.frames / report.seconds
    print(
        f"{name}: {report.written} clips written, {report.kept} were there, "
        f"{len(report.failures)} failed; {report.size:,} bytes written, "
        f"{speed:.2f} frames per second"
    )
    print_some("encoded again, because it has changed", report.changed)
    print_some("latents are kept, but captions or metadata are new", report.redescribed)
    print_some("not in the folder any more, so the index leaves out its clips", report.gone)
    if report.unknown:
        print(
            f"{report.unknown} clips are of an earlier version, which does not tell whether their "
            "videos have changed since; delete their files to encode them again"
        )
    if report.ignored:
        print(f"ignored, no videos or images: {report.ignored}")
    for line in describe_buckets(report, options):
        print(line)
    print_some("note", report.notes)
    print_some("left out, too small or too short", report.left_out)
    print_some("failed", [f"{failure.name}: {failure.reason}" for failure in report.failures])
    if part is not None:
        print(f"part {part} is listed; wanvae merge-index joins the parts")
    elif not report.written + report.kept:
        raise UserError(f"not one of {len(report.failures)} clips could be encoded")


def add_options(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "source",
        help="folder of videos, images and tars of them, or the manifest that wanvae index wrote; "
        "a path or an address like s3://bucket/videos",
    )
    parser.add_argument(
        "destination", help="folder to write, new or from an interrupted run; a path or an address"
    )
    parser.reads("source")
    parser.writes("destination", to_addresses=True)
    parser.add_argument(
        "--frames",
        help="frames of each clip, 1 + 4n: cut videos into such clips, and drop the rest; "
        "17,49,81: cut clips of 81, and from the rest again and again the longest that fits "
        "(default: one clip for each whole video)",
    )
    parser.add_argument(
        "--fps", help="frames per second, like 16 or 30000/1001 (default: the rate of each video)"
    )
    parser.add_argument(
        "--resize",
        help="480x832: scale and crop to that height and width; 480: scale the shorter side to "
        "that (default: the size of the video). Sides are cropped to multiples of 8",
    )
    add_bucket_options(parser)
    parser.add_argument(
        "--store",
        choices=["moments", "mean", "sample"],
        help="mean and logvar of the latents, only the mean, or a sample (default: moments, or "
        "what the program of --layout stores)",
    )
    parser.add_argument(
        "--scale",
        choices=["raw", "normalized"],
        help="raw latents for the decoder, or normalized latents for diffusion models (default: "
        "raw, or what the program of --layout stores)",
    )
    parser.add_argument(
        "--store-dtype",
        choices=list(DTYPES),
        help="dtype of the stored latents (default: float32, or what the program of --layout "
        "stores)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument(
        "--container",
        choices=["files", "tar", "safetensors"],
        default="files",
        help="one file for each clip; tars of such files; or safetensors files of many clips",
    )
    parser.add_argument(
        "--shard-size", default="1GB", help="size of a tar or a file of many clips, like 500MB"
    )
    parser.add_argument(
        "--layout",
        choices=["wanvae", *LAYOUTS],
        default="wanvae",
        help="files of wanvae, or files that this program reads as if it had cached them",
    )
    parser.add_argument(
        "--architecture",
        help="the model that the latents are for, as the program of --layout calls it: wan or qi "
        "for musubi; wan21, wan22_14b, wan22_5b, qwen_image, ... for ai-toolkit (default: one of "
        "so many channels)",
    )
    parser.add_argument(
        "--conditioning",
        choices=["first_frame"],
        help="store the latents of the first frame of each clip alone too, to train image to video",
    )
    parser.add_argument(
        "--control",
        metavar="FOLDER",
        help="folder of second videos with the names of the videos, like depth or poses, as a path "
        "or an address: store their latents at the same times and of the same size too",
    )
    parser.add_argument(
        "--part",
        help="3/16: encode only the fourth of 16 parts, on one of 16 machines; wanvae merge-index "
        "joins them",
    )
    parser.reads("control")
    add_picture_options(parser)
    add_model_options(parser)


ENCODE_DATASET = Command(
    run,
    add_options,
    "Encode the videos and images of a folder to latents, to train diffusion models with "
    "wanvae.LatentDataset. Files that cannot be read are recorded in failures.jsonl, and the rest "
    "is encoded. After any interruption, run it again to go on. Several processes "
    "(accelerate launch -m wanvae encode-dataset ...) share the work, with the same result.",
)
