"""Where written frames go: a file, or a folder of numbered images, that appears complete."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from wanvae.engine.files import is_numbered, numbered, temporary_sibling
from wanvae.video.common import VideoError


class FileTarget:
    """A file that gets its name when it is complete.

    Attributes:
        partial: what to write to.
        holds_many: whether each frame is a file.

    Raises:
        VideoError: ``path`` is a folder, or the folder around it is missing.
    """

    holds_many = False

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise unwritable(
                path,
                "it is a directory; give a file name, or numbered images in it, like "
                f"{path}/%05d.png",
            )
        require_folder(path, path.parent)
        self._path = path
        self.partial = temporary_sibling(path)

    def begin(self) -> None:
        """Creates the partial file; FFmpeg would only fail at the first frame."""
        self.partial.touch()

    def complete(self) -> None:
        """Gives the file its name."""
        os.replace(self.partial, self._path)

    def discard(self) -> None:
        """Deletes the unfinished file."""
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)


class NumberedTarget:
    """Numbered images, like frames/%05d.png, that get their names when all are complete.

    The folder of the images is created if it is missing. Attributes are as in ``FileTarget``.

    Raises:
        VideoError: the folder holds images with such names, or the folder around it is missing.
    """

    holds_many = True

    def __init__(self, path: Path) -> None:
        folder = path.parent
        # The folder of the program has nothing around it to write to.
        require_folder(path, folder if folder.is_dir() else folder.parent)
        if folder.is_dir() and any(numbered(path.name).fullmatch(f) for f in os.listdir(folder)):
            raise unwritable(
                path, f"{folder} already holds images with such names; give a new folder"
            )
        self._folder = folder
        inside = folder / "frames" if folder.is_dir() else folder
        self._partial_folder = temporary_sibling(inside)
        self.partial = self._partial_folder / path.name

    def begin(self) -> None:
        """Creates the partial folder."""
        self._partial_folder.mkdir()

    def complete(self) -> None:
        """Gives the images their names."""
        if not self._folder.is_dir():
            os.replace(self._partial_folder, self._folder)
            return
        for name in sorted(os.listdir(self._partial_folder)):
            os.replace(self._partial_folder / name, self._folder / name)
        self.discard()

    def discard(self) -> None:
        """Deletes the unfinished images."""
        shutil.rmtree(self._partial_folder, ignore_errors=True)


def find_target(path: Path) -> FileTarget | NumberedTarget:
    """Returns where the frames of a file, or of numbered images, go. Raises VideoError."""
    return NumberedTarget(path) if is_numbered(path.name) else FileTarget(path)


def require_folder(path: Path, folder: Path) -> None:
    """Raises VideoError if a folder is missing."""
    if not folder.is_dir():
        raise unwritable(path, f"the folder {folder} does not exist; create it first")


def unwritable(path: Path, reason: str) -> VideoError:
    """Returns the error for a path that cannot be written."""
    return VideoError(f"cannot write {path}: {reason}")
