"""Where written frames go: a pipe, or a file or numbered images that appear complete."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from wanvae.engine.files import numbered, temporary_sibling
from wanvae.video.common import unwritable


class Target(Protocol):
    """Where frames go."""

    @property
    def holds_many(self) -> bool:
        """Whether each frame is a file."""
        ...

    def begin(self) -> str | BinaryIO:
        """Creates what is written to, and returns it. FFmpeg would only fail at the first frame."""
        ...

    def complete(self) -> None:
        """Gives what is written its name."""
        ...

    def discard(self) -> None:
        """Deletes what is unfinished."""
        ...


class FileTarget:
    """A file that gets its name when it is complete.

    Raises:
        VideoError: the folder around ``path`` is missing.
    """

    holds_many = False

    def __init__(self, path: Path) -> None:
        require_folder(path, path.parent)
        self._path = path
        self._partial = temporary_sibling(path)

    def begin(self) -> str | BinaryIO:
        """Creates the partial file."""
        self._partial.touch()
        return os.path.abspath(self._partial)

    def complete(self) -> None:
        """Gives the file its name."""
        os.replace(self._partial, self._path)

    def discard(self) -> None:
        """Deletes the unfinished file."""
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)


class ArrayTarget(FileTarget):
    """A NumPy array ``(T, H, W, C)`` in a .npy file. The header gets its T when it is complete.

    Args:
        frame: shape of a frame, (H, W, C).
        bits: of a sample, 8 or 16.
    """

    # With the text that fills it, the header is as long as NumPy aligns headers to.
    _HEADER = 128
    _MAGIC = b"\x93NUMPY\x01\x00"

    def __init__(self, path: Path, frame: tuple[int, int, int], bits: int) -> None:
        super().__init__(path)
        self._frame, self._bytes = frame, bits // 8
        self._file: BinaryIO | None = None

    def begin(self) -> str | BinaryIO:
        """Creates the partial file, with room for its header."""
        self._file = self._partial.open("wb")
        self._file.write(bytes(self._HEADER))
        return self._file

    def complete(self) -> None:
        """Writes the header, and gives the file its name."""
        assert self._file is not None
        frames = (self._file.tell() - self._HEADER) // (math.prod(self._frame) * self._bytes)
        kind = "|u1" if self._bytes == 1 else "<u2"
        facts = {"descr": kind, "fortran_order": False, "shape": (frames, *self._frame)}
        room = self._HEADER - len(self._MAGIC) - 2
        text = f"{facts}".ljust(room - 1) + "\n"
        self._file.seek(0)
        self._file.write(self._MAGIC + room.to_bytes(2, "little") + text.encode())
        self._file.close()
        super().complete()

    def discard(self) -> None:
        """Deletes the unfinished file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        super().discard()


class PipeTarget:
    """A pipe such as stdout. What is written is gone, so nothing can be completed or deleted."""

    holds_many = False

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def begin(self) -> str | BinaryIO:
        """Returns the pipe."""
        return self._pipe

    def complete(self) -> None:
        """Sends what is left in the buffer."""
        self._pipe.flush()

    def discard(self) -> None:
        """Does nothing."""


class NumberedTarget:
    """Numbered images, like frames/%05d.png, that get their names when all are complete.

    The folder of the images is created if it is missing.

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
        self._folder, self._name = folder, path.name
        inside = folder / "frames" if folder.is_dir() else folder
        self._partial = temporary_sibling(inside)

    def begin(self) -> str | BinaryIO:
        """Creates the partial folder."""
        self._partial.mkdir()
        return os.path.abspath(self._partial / self._name)

    def complete(self) -> None:
        """Gives the images their names."""
        if not self._folder.is_dir():
            os.replace(self._partial, self._folder)
            return
        for name in sorted(os.listdir(self._partial)):
            os.replace(self._partial / name, self._folder / name)
        self.discard()

    def discard(self) -> None:
        """Deletes the unfinished images."""
        shutil.rmtree(self._partial, ignore_errors=True)


def require_folder(path: Path, folder: Path) -> None:
    """Raises VideoError if a folder is missing."""
    if not folder.is_dir():
        raise unwritable(path, f"the folder {folder} does not exist; create it first")
