"""The command ``wanvae index``: lists the videos of a folder, for training."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jsonargparse import Namespace

from wanvae.commands.output import print_some
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.options import add_progress_option
from wanvae.engine.command_line.program import Command
from wanvae.engine.config import check
from wanvae.engine.litter import describe_ignored
from wanvae.engine.storage.remote_path import location
from wanvae.errors import UserError
from wanvae.folders.catalog import index_folder
from wanvae.folders.excerpts import select
from wanvae.folders.listing import MANIFEST
from wanvae.folders.manifest import Entry
from wanvae.selection.checks import Checks

DEFAULTS = Checks()


def index(arguments: Namespace) -> None:
    """Writes the manifest of a folder, and prints what cannot be read."""
    folder = location(arguments.folder)
    checks, workers = checks_of(arguments), arguments.workers
    if workers is None:
        workers = os.cpu_count() or 1
    check(workers >= 1, "workers", workers, "at least 1")
    try:
        content = index_folder(folder, progress=arguments.progress, checks=checks, workers=workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run it again to go on from there") from None
    entries = content.entries
    broken = [entry for entry in entries if entry.error is not None]
    images = sum(entry.is_image for entry in entries)
    videos = len(entries) - len(broken) - images
    print(
        f"{folder / MANIFEST}: {videos} videos, {images} images, {len(broken)} that cannot be read"
    )
    if content.ignored:
        print(f"ignored, no videos or images: {describe_ignored(content.ignored)}")
    if hdr := sum(entry.hdr is not None for entry in entries):
        print(f"{hdr} are HDR or have wide colours: they are converted to SDR")
    for entry in broken:
        print(f"cannot read {entry.name}: {entry.error}")
    show_scenes(entries)


def checks_of(arguments: Namespace) -> Checks | None:
    """Returns what is decided about scenes; None without ``--scenes``.

    Raises:
        UserError: an option of scenes is there without ``--scenes``.
    """
    if arguments.scenes:
        return Checks(
            still_below=DEFAULTS.still_below
            if arguments.still_below is None
            else arguments.still_below,
            bars=not arguments.keep_bars,
            duplicates=not arguments.keep_duplicates,
        )
    given = {
        "--still-below": arguments.still_below is not None,
        "--keep-bars": arguments.keep_bars,
        "--keep-duplicates": arguments.keep_duplicates,
        "--workers": arguments.workers is not None,
    }
    ignored = [name for name, is_given in given.items() if is_given]
    if ignored:
        verb = "needs" if len(ignored) == 1 else "need"
        raise UserError(f"{' and '.join(ignored)} {verb} --scenes, which looks for scenes; add it")
    return None


def show_scenes(entries: Sequence[Entry]) -> None:
    """Prints what is known about scenes, if anything is."""
    analysed = [(entry, entry.analysis) for entry in entries if entry.analysis is not None]
    if not analysed:
        return
    selection = select(entries)
    scenes = [len(analysis.scenes) for entry, analysis in analysed if not entry.is_image]
    print(f"{sum(scenes)} scenes in {len(scenes)} videos")
    for note in selection.notes:
        print(note)
    print_some("left out", selection.left_out)
    damaged = [(entry.name, analysis.damage) for entry, analysis in analysed if analysis.damage]
    print_some("damaged", [f"{name}: {damage}" for name, damage in damaged])


def add_index_options(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "folder",
        help="folder of videos, images and tars of them, as a path or an address; its subfolders "
        "are searched",
    )
    parser.reads("folder")
    parser.add_argument(
        "--scenes",
        action="store_true",
        help="decode each video once, and list its scenes between cuts, fades and dissolves, which "
        "of them are left out, and black bars. Training, evaluation and encode-dataset use that",
    )
    parser.add_argument(
        "--still-below",
        type=float,
        help="leave out scenes in which nothing changes by so many levels of 255 within a "
        f"quarter of a second; 0 keeps all (default: {DEFAULTS.still_below:g})",
    )
    parser.add_argument(
        "--keep-bars", action="store_true", help="do not crop off black bars around the picture"
    )
    parser.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="keep scenes and images that show the same as others, also scaled or encoded again",
    )
    parser.add_argument(
        "--workers", type=int, help="processes that look for scenes (default: one for each CPU)"
    )
    add_progress_option(parser)


INDEX = Command(
    index,
    add_index_options,
    "Find the videos, images and tars in a folder, and list them in a file in this folder, so that "
    "training on many of them starts quickly. Files that cannot be read are printed. Run it again "
    "after adding files: only new and changed files are opened.",
)
