"""Shapes and lengths of clips: options of ``wanvae encode-dataset``, and what it prints of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from jsonargparse import Namespace

from wanvae.config import WanVAEConfig
from wanvae.dataset.encode import DatasetReport
from wanvae.dataset.settings import DatasetOptions
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.config import check
from wanvae.errors import UserError
from wanvae.folders.shapes import Shape, parse_shapes, shapes_of_area

# Latents along each side of a patch of the diffusion models of Wan and Qwen-Image.
PATCH = 2
# Of the buckets of --area, if nothing else is asked for.
ASPECTS = 9


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


def add_bucket_options(parser: Parser) -> None:
    """Declares the options of buckets."""
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
