"""The command ``wanvae merge-index``: joins the parts of a data set that machines have encoded."""

from __future__ import annotations

from jsonargparse import Namespace

from wanvae.commands.output import print_some
from wanvae.dataset.merge import MergeReport, merge_parts
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.storage.remote_path import location
from wanvae.errors import UserError


def run(arguments: Namespace) -> None:
    """Runs the command."""
    report = merge_parts(
        [location(folder) for folder in arguments.folders], location(arguments.destination)
    )
    show(arguments.destination, report)


def show(name: str, report: MergeReport) -> None:
    """Prints the results, and raises UserError if clips are missing."""
    print(
        f"{name}: {report.clips} clips, {len(report.failures)} failed; "
        f"{report.copied} files were copied or linked"
    )
    if report.twice:
        print(f"{report.twice} clips are in several parts, with the same latents")
    print_some("note", report.notes)
    print_some("failed", [f"{failure.name}: {failure.reason}" for failure in report.failures])
    if report.complete:
        return
    print_some("missing", report.missing)
    absent = [str(part) for part in report.absent]
    if report.unlisted:
        print_some("missing, and so are its clips: part", absent)
    raise UserError(
        f"{len(report.missing) + report.unlisted} clips are missing, so {name} has no index yet; "
        "run wanvae encode-dataset with the same options and this folder to encode them, or "
        "merge again with the missing parts"
    )


def add_options(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "folders",
        nargs="+",
        help="folders that wanvae encode-dataset --part wrote, as paths or addresses",
    )
    parser.add_argument(
        "destination", help="folder of the whole data set; new, or one of the folders"
    )
    parser.reads("folders")


MERGE_INDEX = Command(
    run,
    add_options,
    "Join the parts of a data set that several machines have encoded, each with wanvae "
    "encode-dataset --part. Settings, models and lists of clips must be the same. Files of other "
    "folders are copied into the destination. Missing clips are told; wanvae encode-dataset "
    "without --part encodes them.",
)
