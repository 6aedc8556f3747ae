"""Reading a file at an address in any order, a piece at a time."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from wanvae.engine.storage.retries import RemoteError, ShortReadError, retry
from wanvae.engine.storage.temporary_files import temporary_folder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Bytes that are asked for at first, and at most, when reading goes on where it stopped.
FIRST_PIECE = 2**16
LARGEST_PIECE = 2**23
# Pieces in memory. A reader of a container goes to and fro between its index and its data.
PIECES = 4


@dataclass(frozen=True)
class Piece:
    """Bytes of a file.

    Attributes:
        start: the first byte.
        content: the bytes.
    """

    start: int
    content: bytes

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + len(self.content)


class RemoteFile(io.RawIOBase):
    """A file at an address, or a part of it, open for reading.

    Only the pieces are loaded that somebody reads; they become longer while reading goes on without
    jumps. From a web server that only sends whole files, the file is copied to a local disk first.

    Args:
        files: the file system.
        path: the file in it.
        address: the file in messages.
        start: the first byte of the part.
        size: bytes of the part; None is the rest of the file.

    Attributes:
        failure: why reading has failed, if it has. A library that reads the file may take an error
            for the end of the file.

    Raises:
        FileNotFoundError: there is no such file.
        RemoteError: the server cannot be reached. Reading raises it as well.
    """

    def __init__(
        self,
        files: AbstractFileSystem,
        path: str,
        address: str,
        start: int = 0,
        size: int | None = None,
    ) -> None:
        self._files = files
        self._path = path
        self._action = f"read {address}"
        self._copied = False
        self._content: IO[bytes] = retry(self._open, self._action)
        length: int | None = getattr(self._content, "size", None)
        if length is None or not can_seek(self._content):
            length = self._copy()
        self._start = start
        self._size = max(0, length - start) if size is None else size
        self._position = 0
        self._pieces: list[Piece] = []
        self.failure: Exception | None = None

    def _open(self) -> Any:
        # Our own pieces replace the cache of the library.
        return self._files.open(self._path, "rb", cache_type="none")

    def _copy(self) -> int:
        """Copies the file to a local disk, and returns its size."""

        def fetch() -> IO[bytes]:
            with temporary_folder() as folder:
                copy = folder / "file"
                self._files.get_file(self._path, str(copy))
                return copy.open("rb")  # an open file keeps its room without its folder

        self._content = retry(fetch, self._action)
        self._copied = True
        return os.fstat(self._content.fileno()).st_size

    def readable(self) -> bool:
        """Says that the file can be read."""
        return True

    def seekable(self) -> bool:
        """Says that reading can go on anywhere."""
        return True

    def tell(self) -> int:
        """Returns the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Continues at another position, and returns it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError(f"cannot seek to {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, with less than fits only at the end of the file."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        done = 0
        while done < wanted:
            position = self._start + self._position
            piece = self._piece_at(position, wanted - done)
            skip = position - piece.start
            count = min(len(piece.content) - skip, wanted - done)
            view[done : done + count] = piece.content[skip : skip + count]
            done += count
            self._position += count
        return done

    def _piece_at(self, position: int, wanted: int) -> Piece:
        """Returns the piece of the file with a position, which may be loaded for it.

        Args:
            wanted: the bytes from there on that are to be read now.
        """
        for piece in self._pieces:
            if piece.start <= position < piece.end:
                return piece
        last = next((piece for piece in self._pieces if piece.end == position), None)
        length = FIRST_PIECE if last is None else min(2 * len(last.content), LARGEST_PIECE)
        length = min(max(length, wanted), self._start + self._size - position)
        try:
            content = self._load(position, length)
        except Exception as error:
            self.failure = error
            raise
        kept = [piece for piece in self._pieces if piece is not last]
        self._pieces = [Piece(position, content), *kept[: PIECES - 1]]
        return self._pieces[0]

    def _load(self, start: int, length: int) -> bytes:
        """Returns bytes of the file."""

        def load() -> bytes:
            self._content.seek(start)
            content = self._content.read(length)
            if len(content) < length:
                raise ShortReadError(f"{len(content)} of {length} bytes have arrived")
            return content

        try:
            return retry(load, self._action)
        except RemoteError as error:
            # The library of web servers says so if a server only sends whole files.
            if self._copied or not isinstance(error.__cause__, ValueError):
                raise
            self._copy()
            return retry(load, self._action)

    def close(self) -> None:
        """Closes the file, and deletes a local copy."""
        if not self.closed:
            self._pieces = []
            if self._copied:
                self._content.close()
        super().close()


def can_seek(content: IO[bytes]) -> bool:
    """Whether an open file can be read from any position."""
    try:
        return content.seek(1) == 1 and content.seek(0) == 0
    except (OSError, ValueError):
        return False
