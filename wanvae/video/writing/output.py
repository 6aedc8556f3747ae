"""Where and how frames are written. What cannot be written is refused before there are frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from wanvae.engine.files import is_numbered
from wanvae.video.common import one_line_errors, unwritable
from wanvae.video.writing.formats import Encoding, Format, choose_format, pipe_containers
from wanvae.video.writing.target import ArrayTarget, FileTarget, NumberedTarget, PipeTarget, Target

Destination = str | os.PathLike[str] | BinaryIO


def path_of(destination: Destination) -> Path | str:
    """Returns the path of a file; of a pipe its name in messages."""
    if not isinstance(destination, (str, os.PathLike)):
        return str(getattr(destination, "name", "the pipe"))
    folder = os.fspath(destination).endswith(("/", os.sep))
    return Path(destination, "%05d.png") if folder else Path(destination)


def check_output(destination: Destination, encoding: Encoding) -> None:
    """Raises VideoError if what is asked for cannot be written there. Writes nothing."""
    format = find_format(destination, encoding, alpha=None)
    find_target(destination, format, (0, 0, 0))


def find_format(destination: Destination, encoding: Encoding, *, alpha: bool | None) -> Format:
    """Returns how frames are written.

    Args:
        alpha: whether frames have alpha; None if it is not known yet.

    Raises:
        VideoError: what is asked for cannot be written, or the path is a folder.
    """
    path, container = path_of(destination), encoding.container
    pipes = pipe_containers()
    if isinstance(path, Path):
        with one_line_errors("write", path):
            if path.is_dir():
                raise unwritable(
                    path,
                    "it is a directory; give a file name, or numbered images in it, like "
                    f"{path}/%05d.png",
                )
        if container is not None:
            raise unwritable(path, f"its suffix says what it is; {container} is for pipes")
        return choose_format(path, path.suffix, encoding, alpha=alpha)
    container = container or pipes[0]
    if container not in pipes:
        raise unwritable(path, f"a pipe cannot take {container}; use {' or '.join(pipes)}")
    return choose_format(path, f".{container}", encoding, alpha=alpha)


def find_target(destination: Destination, format: Format, frame: tuple[int, int, int]) -> Target:
    """Returns where frames of a shape (H, W, C) go. Raises VideoError if they cannot go there."""
    if not isinstance(destination, (str, os.PathLike)):
        return PipeTarget(destination)
    path = Path(path_of(destination))
    with one_line_errors("write", path):
        if format.container.is_image and is_numbered(path.name):
            return NumberedTarget(path)
        if format.container.is_array:
            return ArrayTarget(path, frame, format.pixels.bits)
        return FileTarget(path)
