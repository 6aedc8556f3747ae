"""The command ``wanvae encode-dataset``: its options, and what it reports."""

from __future__ import annotations

from jsonargparse import Namespace

from wanvae.commands.options import DTYPES, add_model_options, checkpoint_of, load_model
from wanvae.dataset.encode import DatasetReport, encode_dataset
from wanvae.dataset.settings import DatasetOptions
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.devices import device_of, launched_processes
from wanvae.errors import UserError
from wanvae.execution.budget import parse_memory

# How many failures and left out videos are named.
SHOWN = 10


def run(arguments: Namespace) -> None:
    options = DatasetOptions(
        frames=arguments.frames,
        fps=as_text(arguments.fps),
        resize=as_text(arguments.resize),
        store=arguments.store,
        scale=arguments.scale,
        dtype=arguments.store_dtype,
        container=arguments.container,
        shard_size=parse_memory(arguments.shard_size),
        seed=arguments.seed,
    )
    with launched_processes(arguments.device) as processes:
        checkpoint = checkpoint_of(arguments)
        try:
            report = encode_dataset(
                load_model(arguments, checkpoint, device_of(processes)),
                checkpoint,
                arguments.source,
                arguments.destination,
                options,
                processes,
                tile_size=arguments.tile_size,
                max_memory=arguments.max_memory,
                progress=arguments.progress,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "files that were written are complete; run it again to go on from there"
            ) from None
    # One process speaks, and fails, for all.
    if report is not None:
        show(f"{arguments.source} -> {arguments.destination}", report)


def as_text(value: object) -> str | None:
    """An option as on the command line, for in a YAML file 16 is a number."""
    return None if value is None else str(value)


def show(name: str, report: DatasetReport) -> None:
    speed = report.frames / report.seconds
    print(
        f"{name}: {report.written} clips written, {report.kept} were there, "
        f"{len(report.failures)} failed; {report.size:,} bytes written, "
        f"{speed:.2f} frames per second"
    )
    show_some("left out, too small or too short", report.left_out)
    show_some("failed", [f"{failure.name}: {failure.reason}" for failure in report.failures])
    if not report.written + report.kept:
        raise UserError(f"not one of {len(report.failures)} clips could be encoded")


def show_some(label: str, lines: list[str] | tuple[str, ...]) -> None:
    for line in lines[:SHOWN]:
        print(f"{label}: {line}")
    if len(lines) > SHOWN:
        print(f"{label}: {len(lines) - SHOWN} more")


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "source",
        help="folder of videos, images and tars of them, or the manifest that wanvae index wrote",
    )
    parser.add_argument("destination", help="folder to write; may be that of an interrupted run")
    parser.add_argument(
        "--frames",
        type=int,
        help="of each clip, 1 + 4n: cut videos into clips of so many, and drop the rest (default: "
        "a clip of each whole video)",
    )
    parser.add_argument(
        "--fps", help="frames per second, like 16 or 30000/1001 (default: those of each video)"
    )
    parser.add_argument(
        "--resize",
        help="480x832: scale and crop to that height and width; 480: scale the shorter side to "
        "that (default: the size of the video). Sides are cropped to multiples of 8",
    )
    parser.add_argument(
        "--store",
        choices=["moments", "mean", "sample"],
        default="moments",
        help="mean and logvar of the latents, the mean alone, or a sample",
    )
    parser.add_argument(
        "--scale",
        choices=["raw", "normalized"],
        default="raw",
        help="latents as the decoder takes them, or as diffusion models do",
    )
    parser.add_argument("--store-dtype", choices=list(DTYPES), default="float32", help="to store")
    parser.add_argument("--seed", type=int, default=0, help="of samples")
    parser.add_argument(
        "--container",
        choices=["files", "tar", "safetensors"],
        default="files",
        help="a file for each clip; tars of such files; safetensors files of many clips",
    )
    parser.add_argument(
        "--shard-size", default="1GB", help="of a tar or file of many clips, like 500MB"
    )
    add_model_options(parser)


ENCODE_DATASET = Command(
    run,
    add_options,
    "a folder of videos to latents to train on",
    "Encode the videos and images of a folder to latents, to train diffusion models with "
    "wanvae.LatentDataset. What cannot be read is recorded in failures.jsonl, and the rest goes "
    "on. Run it again to go on after an interruption, however sudden. Several processes "
    "(accelerate launch -m wanvae encode-dataset ...) share the work, with the same result.",
)
