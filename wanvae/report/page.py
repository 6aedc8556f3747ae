"""Writes one HTML file, element by element: only one is in memory at a time."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from wanvae.engine.files import atomic_path
from wanvae.report.elements import Section

MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    facts: Mapping[str, str],
    sections: Iterable[Section],
    reload: int | None = None,
) -> None:
    """Writes a page that needs no other file and no network.

    Args:
        title: the heading.
        facts: how the page came about, by name; shown below the title.
        sections: shown one below the other. An iterator gives each when it is written.
        reload: seconds after which the page loads itself again; None: never.

    Raises:
        FileError: the page cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("wanvae.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Lines of curves come in the order they were given.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters |= {"base64": encode, "media_type": media_type}
    template = environment.get_template("page.html")
    pieces = template.generate(title=title, facts=facts, sections=sections, reload=reload)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def encode(media: Path | bytes) -> str:
    """The content of a file, or bytes, in base64."""
    content = media if isinstance(media, bytes) else media.read_bytes()
    return base64.b64encode(content).decode("ascii")


def media_type(path: Path) -> str:
    """The media type of a file, for a browser."""
    return MEDIA_TYPES[path.suffix]
