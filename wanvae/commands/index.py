"""The command ``wanvae index``: lists the videos of a folder, for training."""

from __future__ import annotations

from jsonargparse import Namespace

from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.options import add_progress_option
from wanvae.engine.command_line.program import Command
from wanvae.engine.litter import describe_ignored
from wanvae.engine.storage.remote_path import location
from wanvae.folders.catalog import index_folder
from wanvae.folders.listing import MANIFEST


def index(arguments: Namespace) -> None:
    """Writes the manifest of a folder, and prints what cannot be read."""
    folder = location(arguments.folder)
    try:
        content = index_folder(folder, progress=arguments.progress)
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


def add_index_options(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "folder",
        help="folder of videos, images and tars of them, as a path or an address; its subfolders "
        "are searched",
    )
    parser.reads("folder")
    add_progress_option(parser)


INDEX = Command(
    index,
    add_index_options,
    "Find the videos, images and tars in a folder, and list them in a file in this folder, so that "
    "training on many of them starts quickly. Files that cannot be read are printed. Run it again "
    "after adding files: only new and changed files are opened.",
)
