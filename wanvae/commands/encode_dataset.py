"""The command ``wanvae encode-dataset``: a folder of videos to latents to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from jsonargparse import Namespace

from wanvae.commands.options import DTYPES, add_model_options, checkpoint_of, load_model
from wanvae.commands.output import print_some
from wanvae.config import WanVAEConfig
from wanvae.dataset.encode import DatasetReport, encode_dataset
from wanvae.dataset.settings import DatasetOptions
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.config import check
from wanvae.engine.devices import device_of, launched_processes
from wanvae.errors import UserError
from wanvae.execution.budget import parse_memory
from wanvae.folders.shapes import Shape, parse_shapes, shapes_of_area
from wanvae.latents.formats import LAYOUTS
from wanvae.model import require_wan_vae

# Latents along each side of a patch of the diffusion models of Wan and Qwen-Image.
PATCH = 2
# Of the buckets of --area, if nothing else is asked for.
ASPECTS = 9


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
                tile_size=arguments.tile_size,
                max_memory=arguments.max_memory,
                progress=arguments.progress,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "files that were written are complete; run it again to go on from there"
            ) from None
    # Only the first process prints, and fails, for all of them.
    if report is not None:
        show(f"{arguments.source} -> {arguments.destination}", report, options)


def as_text(value: object) -> str | None:
    """Returns an option as text, because in a YAML file 16 is a number."""
    return None if value is None else str(value)


def as_texts(value: object) -> list[str]:
    """Returns the parts of an option like "17,49,81", which in a YAML file may be a list."""
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, list) else str(value).split(",")


def parse_lengths(value: object) -> tuple[int, ...]:
    """Returns the numbers of frames of ``--frames``, the largest first; none without it.

    Raises:
        UserError: it has other parts than numbers.
    """
    texts = as_texts(value)
    for text in texts:
        check(text.isdecimal(), "frames", text, "a whole number, or several like 17,49,81")
    return tuple(sorted({int(text) for text in texts}, reverse=True))


def parse_buckets(arguments: Namespace) -> tuple[str, ...]:
    """Returns the buckets of ``--buckets``, from tall to wide; none without it.

    Raises:
        UserError: they are no sizes, or options exclude each other.
    """
    if arguments.area is None:
        for name in ("multiple", "aspects"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name} is for --area, which is not given")
    elif arguments.buckets is not None or arguments.resize is not None:
        raise UserError("--area computes buckets: leave out --buckets and --resize, or --area")
    return as_buckets(parse_shapes("buckets", as_texts(arguments.buckets)))


def buckets_of_area(arguments: Namespace, config: WanVAEConfig) -> tuple[str, ...]:
    """Returns the buckets of ``--area``, from tall to wide.

    Raises:
        UserError: ``--area`` is no size, or ``--multiple`` or ``--aspects`` is out of range.
    """
    ((height, width),) = parse_shapes("area", [str(arguments.area)])
    multiple = arguments.multiple
    if multiple is None:
        multiple = PATCH * config.spatial_factor
    aspects = ASPECTS if arguments.aspects is None else arguments.aspects
    return as_buckets(shapes_of_area(height, width, multiple, aspects))


def as_buckets(shapes: Iterable[Shape]) -> tuple[str, ...]:
    """Returns shapes as texts like "480x832", each once, from tall to wide."""
    return tuple(f"{height}x{width}" for height, width in sorted(set(shapes), reverse=True))


def describe_buckets(report: DatasetReport, options: DatasetOptions) -> Iterator[str]:
    """Yields a line for each bucket, with its clips; one line for all if only lengths are asked."""
    for bucket in options.buckets:
        lengths = {
            frames: count
            for (frames, height, width), count in sorted(report.shapes.items(), reverse=True)
            if f"{height}x{width}" == bucket
        }
        yield f"bucket {bucket}: {describe_lengths(lengths)}"
    if options.shorter and not options.buckets:
        total = Counter[int]()
        for (frames, _, _), count in report.shapes.items():
            total[frames] += count
        yield f"lengths: {describe_lengths(dict(sorted(total.items(), reverse=True)))}"


def describe_lengths(lengths: Mapping[int, int]) -> str:
    """Returns how many clips have which number of frames, like "3 of 81 frames, 1 of 17 frames"."""
    counts = (f"{count} of {length} frames" for length, count in lengths.items())
    return ", ".join(counts) or "no clips"


def show(name: str, report: DatasetReport, options: DatasetOptions) -> None:
    """Prints the results, and raises UserError if there are no clips."""
    speed = report.frames / report.seconds
    print(
        f"{name}: {report.written} clips written, {report.kept} were there, "
        f"{len(report.failures)} failed; {report.size:,} bytes written, "
        f"{speed:.2f} frames per second"
    )
    print_some("encoded again, because it has changed", report.changed)
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
    if not report.written + report.kept:
        raise UserError(f"not one of {len(report.failures)} clips could be encoded")


def add_options(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "source",
        help="folder of videos, images and tars of them, or the manifest that wanvae index wrote",
    )
    parser.add_argument("destination", help="folder to write, new or from an interrupted run")
    parser.reads("source")
    parser.writes("destination")
    parser.add_argument(
        "--frames",
        help="frames of each clip, 1 + 4n: cut videos into such clips, and drop the rest; "
        "17,49,81: of 81, and from the rest again and again the longest that fits (default: one "
        "clip for each whole video)",
    )
    parser.add_argument(
        "--fps", help="frames per second, like 16 or 30000/1001 (default: the rate of each video)"
    )
    parser.add_argument(
        "--resize",
        help="480x832: scale and crop to that height and width; 480: scale the shorter side to "
        "that (default: the size of the video). Sides are cropped to multiples of 8",
    )
    parser.add_argument(
        "--buckets",
        help="480x832,832x480,624x624: scale and crop each video to the one that crops it least",
    )
    parser.add_argument(
        "--area",
        help="480x832: compute buckets of about this area, from tall to wide, instead of --buckets",
    )
    parser.add_argument(
        "--multiple",
        type=int,
        help="what the sides of the buckets of --area are multiples of (default: 2 latents: 16, or "
        "32 for Wan2.2 5B)",
    )
    parser.add_argument(
        "--aspects",
        type=int,
        help="number of buckets of --area, odd: a square, and as many tall as wide ones (default: "
        f"{ASPECTS})",
    )
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
    add_model_options(parser)


ENCODE_DATASET = Command(
    run,
    add_options,
    "Encode the videos and images of a folder to latents, to train diffusion models with "
    "wanvae.LatentDataset. Files that cannot be read are recorded in failures.jsonl, and the rest "
    "is encoded. After any interruption, run it again to go on. Several processes "
    "(accelerate launch -m wanvae encode-dataset ...) share the work, with the same result.",
)
