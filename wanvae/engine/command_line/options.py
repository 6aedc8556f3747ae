"""Options that many commands have."""

from __future__ import annotations

from jsonargparse import ActionYesNo

from wanvae.engine.command_line.arguments import Parser


def add_device_option(parser: Parser) -> None:
    """Declares ``--device``."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")


def add_progress_option(parser: Parser) -> None:
    """Declares ``--progress`` and ``--no-progress``."""
    parser.add_argument(
        "--progress",
        action=ActionYesNo(no_prefix="no-"),
        default=None,
        help="show a progress bar (default: on a terminal; elsewhere one line says what is done)",
    )
