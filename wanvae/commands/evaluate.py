"""The command ``wanvae evaluate``: how well models reconstruct a folder of videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch
from jsonargparse import Namespace

from wanvae.checkpoints.formats import identify, weights_file
from wanvae.commands.options import (
    add_model_options,
    add_picture_options,
    load_model,
    source_of_options,
)
from wanvae.commands.output import print_some
from wanvae.commands.pipeline import limit_shared_by
from wanvae.demo import demo_weights
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.devices import device_of, launched_processes
from wanvae.engine.digest import digest_of_file
from wanvae.evaluate.evaluation import Networks, evaluate
from wanvae.evaluate.models import Judged, facts_of_model, judge_diffusers, judge_stream
from wanvae.evaluate.page import PAGE, QUALITY
from wanvae.evaluate.settings import EvaluationOptions
from wanvae.evaluate.summary import Evaluation
from wanvae.execution.budget import parse_memory
from wanvae.metrics.frechet import I3D
from wanvae.metrics.lpips import LpipsNetwork, load_lpips
from wanvae.model import require_wan_vae

DEFAULTS = EvaluationOptions()


def run(arguments: Namespace) -> None:
    """Runs the command."""
    options = EvaluationOptions(
        frames=tuple(arguments.frames or ()),
        resize=tuple(map(str, as_list(arguments.resize))),
        clips=arguments.clips,
        lpips=arguments.lpips,
        media=arguments.media,
        media_seconds=arguments.media_seconds,
        deinterlace=arguments.deinterlace,
        background=arguments.background,
    )
    coders = 2 * max(1, len(as_list(arguments.checkpoint)))
    with launched_processes(arguments.device) as processes, limit_shared_by(coders):
        models = load_models(arguments, device_of(processes))
        device = models[0].vae.device
        try:
            evaluation = evaluate(
                models,
                load_networks(arguments, device),
                arguments.source,
                arguments.output,
                options,
                processes,
                hwaccel=arguments.hwaccel,
                progress=arguments.progress,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "clips that were judged are kept; run it again to go on from there"
            ) from None
    # Only the first process prints.
    if evaluation is not None:
        show(arguments.output, evaluation)


def load_models(arguments: Namespace, default_device: str) -> list[Judged]:
    """Returns a model for each checkpoint, and with ``--diffusers`` also diffusers' model."""
    checkpoints = as_list(arguments.checkpoint) or [demo_weights()]
    share = None
    if arguments.max_memory is not None:
        share = parse_memory(arguments.max_memory) // len(checkpoints)
    models = []
    for name, path in zip(names_of(checkpoints), checkpoints, strict=True):
        checkpoint = source_of_options(arguments, path)
        vae = load_model(arguments, checkpoint, default_device)
        digests = digest_of_file(weights_file(checkpoint)), identify(checkpoint)
        facts = facts_of_model(vae, name, digests, "wanvae")
        models.append(judge_stream(vae, facts, arguments.tile_size, share))
        if arguments.diffusers:
            theirs = facts_of_model(vae, f"{name} (diffusers)", digests, "diffusers")
            full = require_wan_vae(vae, checkpoint, "--diffusers")
            models.append(judge_diffusers(full, theirs))
    return models


def as_list(value: str | list[str] | None) -> list[str]:
    """Returns the values of an option, because a YAML file may hold a single text."""
    return [value] if isinstance(value, str) else value or []


def names_of(checkpoints: Sequence[str | Path]) -> Iterator[str]:
    """Returns distinct names for tables: file names, else whole paths, else numbered paths."""
    paths = [Path(checkpoint) for checkpoint in checkpoints]
    for names in ([path.stem for path in paths], list(map(str, paths))):
        if len(set(names)) == len(names):
            return iter(names)
    return (f"{path} ({number})" for number, path in enumerate(paths, 1))


def load_networks(arguments: Namespace, device: torch.device) -> Networks:
    """Returns the networks of LPIPS and rFVD. Nothing is downloaded.

    Raises:
        UserError: a named file does not hold such a network, or torchvision is not installed.
    """
    i3d = None if arguments.i3d is None else I3D(arguments.i3d, device)
    lpips = load_lpips(arguments.lpips, arguments.lpips_weights, "--lpips-weights")
    return Networks(f"left out: {lpips}" if isinstance(lpips, str) else lpips.to(device), i3d)


def show(output: str, evaluation: Evaluation) -> None:
    """Prints the figures, what is missing, and the path of the report."""
    for row in evaluation.overall:
        figures = ", ".join(
            f"{column.name} {column.text(value)}"
            for name, column in QUALITY.items()
            if (value := getattr(row, name)) is not None
        )
        print(f"{row.model}: {figures}")
    for name, why in evaluation.notes:
        print(f"{name}: {why}")
    print_some("left out", [f"{one.name}: {one.reason}" for one in evaluation.left_out])
    print_some("cannot read", [f"{one.name}: {one.reason}" for one in evaluation.failures])
    page = Path(output, PAGE)
    print(f"{len(evaluation.records)} clips -> {page} ({page.stat().st_size / 1e6:.1f} MB)")


def add_options(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "source",
        help="folder of videos, images and tars of them, its manifest, or a single file; a path or "
        "an address",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder to write, new or from an interrupted run",
    )
    parser.reads("source", "lpips_weights", "i3d")
    parser.writes("output")
    parser.add_argument(
        "--diffusers",
        action="store_true",
        help="also judge the model of diffusers with the same weights; it takes a clip as a whole, "
        "so its memory grows with the length of the clip",
    )
    parser.add_argument(
        "--frames",
        type=int,
        nargs="+",
        help="judge each clip at these lengths, taken from the middle of its video "
        "(default: whole videos)",
    )
    parser.add_argument(
        "--resize",
        nargs="+",
        help="judge each clip at these sizes. 480x832: scale down and crop to this height and "
        "width; 480: scale the shorter side to this length (default: the size of the video)",
    )
    parser.add_argument("--clips", type=int, help="use at most this many files, the first by name")
    parser.add_argument(
        "--lpips",
        choices=list(get_args(LpipsNetwork)),
        default=DEFAULTS.lpips,
        help="network of LPIPS. LPIPS is left out if the weights of the network are missing",
    )
    parser.add_argument(
        "--lpips-weights",
        help="file with the weights of this network from torchvision (default: the file that "
        "torchvision has downloaded before)",
    )
    parser.add_argument(
        "--i3d",
        help="path of i3d_torchscript.pt, to measure rFVD over windows of 16 frames. This file is "
        "a program that is run: take it from a source that you trust",
    )
    parser.add_argument(
        "--media",
        type=int,
        default=DEFAULTS.media,
        help="how many clips, the first ones, the report shows with videos and pictures",
    )
    parser.add_argument(
        "--media-seconds",
        type=float,
        default=DEFAULTS.media_seconds,
        help="how many seconds of these clips the report shows",
    )
    add_picture_options(parser)
    add_model_options(parser, several=True)


EVALUATE = Command(
    run,
    add_options,
    "Encode and decode the videos and images of a folder with one or several checkpoints, and "
    "write how close the results are: evaluation.json, evaluation.csv, and report.html, one file "
    "with tables, curves, the worst frames and videos to compare with a slider. Figures: PSNR, "
    "SSIM, MS-SSIM, LPIPS, the error of changes between frames, flicker where groups of frames "
    "begin, rFVD, rate and speed. After any interruption, run it again to go on. Several processes "
    "(accelerate launch -m wanvae evaluate ...) share the work. All models work at the same time, "
    "and share --max-memory.",
)
