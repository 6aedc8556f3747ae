"""The common parts of reading and writing video files."""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction

from av.error import EOFError, FFmpegError, InvalidDataError

from wanvae.engine.storage.remote_file import RemoteFile
from wanvae.engine.storage.remote_path import Location, RemotePath, location
from wanvae.errors import UserError

# swscale's BICUBIC, ACCURATE_RND, FULL_CHR_H_INT and FULL_CHR_H_INP. Some versions of PyAV do not
# name all of them. Without the last three swscale repeats chroma samples instead of interpolating
# them, and leaves the last column of 10 bit pictures of odd width unset.
INTERPOLATION = 0x4 | 0x40000 | 0x2000 | 0x4000


# The lowest and highest rate, in frames per second, that every container can say.
RATES = Fraction(1, 1000), Fraction(10_000)
# Containers that say where in its first packets a track begins. They limit languages and tags, and
# show one subtitle at a time.
MP4_FAMILY = ("mov", "mp4")


class VideoError(UserError):
    """A video file cannot be read or written. The message says which file and why in one line."""


class HdrWarning(UserWarning):
    """A video is HDR, or has wide colours, and is converted to SDR."""


@dataclass(frozen=True)
class FilePart:
    """A video or image inside a larger file, such as an uncompressed tar.

    Attributes:
        container: the larger file.
        name: the name of the part in messages.
        offset, size: the first byte and the number of bytes.
    """

    container: Location
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.container}/{self.name}"


Source = str | os.PathLike[str] | FilePart


# The name of the standard input.
STANDARD_INPUT = "-"


def is_pipe(source: Source) -> bool:
    """Whether a source can be read only once and in order: "-", a named pipe, or a device."""
    if isinstance(source, (FilePart, RemotePath)):
        return False
    if os.fspath(source) == STANDARD_INPUT:
        return True
    with suppress(OSError, ValueError):
        mode = os.stat(source).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)
    return False


def address(source: Source) -> str:
    """The path that FFmpeg opens. It is absolute, so no name looks like a protocol ("data:")."""
    if isinstance(source, FilePart):
        end = source.offset + source.size
        return f"subfile,,start,{source.offset},end,{end},,:{os.path.abspath(source.container)}"
    return "pipe:0" if os.fspath(source) == STANDARD_INPUT else os.path.abspath(source)


def open_remote(source: Source) -> RemoteFile | None:
    """Opens a video at an address, or in a file at an address; None if it is on a disk.

    Raises:
        FileNotFoundError: there is no such file.
        RemoteError: the server cannot be reached.
    """
    part = source if isinstance(source, FilePart) else None
    place = location(source.container if isinstance(source, FilePart) else source)
    if not isinstance(place, RemotePath):
        return None
    return place.open_part() if part is None else place.open_part(part.offset, part.size)


def opened(source: Source) -> RemoteFile | str:
    """Returns what FFmpeg opens: a file at an address that is open, or the path of a local one.

    Raises as ``open_remote``.
    """
    return open_remote(source) or address(source)


def reason(error: Exception) -> str:
    """Says in words why FFmpeg or the system failed."""
    if isinstance(error, EOFError):
        return "it ends too early: it is cut short"
    if isinstance(error, InvalidDataError):
        return "it is not a video or image that FFmpeg can read, or it is damaged or cut short"
    return getattr(error, "strerror", None) or str(error)


class Notices:
    """Warns of facts about one file, each once."""

    def __init__(self, path: Source) -> None:
        self._path = path
        self._told: set[str] = set()

    def tell(
        self, sentence: str, once: str | None = None, kind: type[UserWarning] = UserWarning
    ) -> None:
        """Warns of something about the file, once for each sentence, or for each name ``once``."""
        if (once or sentence) not in self._told:
            self._told.add(once or sentence)
            warnings.warn(f"{self._path}: {sentence}", kind, stacklevel=2)


@contextmanager
def one_line_errors(action: str, path: Source, advice: str = "") -> Iterator[None]:
    """Turns errors of FFmpeg and the system into a VideoError, which ends with ``advice``.

    That nobody reads a pipe stays a BrokenPipeError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (FFmpegError, OSError) as error:
        raise VideoError(f"cannot {action} {path}: {reason(error)}{advice}") from error


def unwritable(path: os.PathLike[str] | str, reason: str) -> VideoError:
    """Returns the error for a file that cannot be written."""
    return VideoError(f"cannot write {path}: {reason}")
