"""What reading and writing video files have in common."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from av.error import EOFError, FFmpegError, InvalidDataError

from wanvae.errors import UserError

# swscale's BICUBIC, ACCURATE_RND, FULL_CHR_H_INT and FULL_CHR_H_INP, not all of which every PyAV
# names. Without the last three it repeats chroma samples instead of interpolating them, and leaves
# the last column of odd-width 10 bit pictures unset.
INTERPOLATION = 0x4 | 0x40000 | 0x2000 | 0x4000


# The lowest and highest rate, in frames per second, that every container can say.
RATES = Fraction(1, 1000), Fraction(10_000)


class VideoError(UserError):
    """A video file that cannot be read or written; the message says which and why in one line."""


@dataclass(frozen=True)
class FilePart:
    """A video or image inside a larger file, such as an uncompressed tar.

    container: the larger file.
    name: what to call the part in messages.
    offset, size: where it lies, in bytes.
    """

    container: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.container}/{self.name}"


Source = str | os.PathLike[str] | FilePart


def address(source: Source) -> str:
    """What FFmpeg opens: an absolute path, so that no name is taken for a protocol like "data:"."""
    if isinstance(source, FilePart):
        end = source.offset + source.size
        return f"subfile,,start,{source.offset},end,{end},,:{os.path.abspath(source.container)}"
    return os.path.abspath(source)


def reason(error: Exception) -> str:
    """Why FFmpeg or the system failed, in words."""
    if isinstance(error, EOFError):
        return "it ends too early: it is cut short"
    if isinstance(error, InvalidDataError):
        return "it is not a video or image that FFmpeg can read, or it is damaged or cut short"
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def one_line_errors(action: str, path: Source) -> Iterator[None]:
    """Turn what FFmpeg and the system raise into a VideoError."""
    try:
        yield
    except (FFmpegError, OSError) as error:
        raise VideoError(f"cannot {action} {path}: {reason(error)}") from error
