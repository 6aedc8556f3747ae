"""A long file with one JSON object on each line, of which lines are read when they are asked for.

Only the places of the lines are held in memory, so a list of a million opens in a moment.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from wanvae.engine.config import from_json_dict, parse_json
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.engine.storage.temporary_files import temporary_file
from wanvae.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

# Bytes that are searched for ends of lines at once.
BLOCK = 2**22


class JsonLines(Sequence[T], Generic[T]):
    """The dataclasses of a file with one JSON object on each line.

    The object can be pickled, and used in several processes and threads. If another file takes the
    place of the file, the lines stay as they were. A file at an address is copied to a temporary
    file, once in each process that it is pickled for.

    Args:
        path: the file.
        cls: the dataclass of each line.
        advice: what people should do if the file is damaged.

    Attributes:
        path: the file.

    Raises:
        UserError: the first or the last line is damaged. Reading another damaged line raises it
            too, and so does reading after the file has changed in place.
        OSError: the file cannot be read.
        RemoteError: a server cannot be reached, or the local disk has no room for the copy.
    """

    def __init__(self, path: Location, cls: type[T], advice: str) -> None:
        self.path = path
        self._cls = cls
        self._advice = advice
        self._open()
        self._state = self._current_state()
        self._starts = find_lines(self._descriptor)
        for number in {0, len(self) - 1} if len(self) else ():
            self[number]

    def _open(self) -> None:
        self._descriptor = open_descriptor(self.path)
        weakref.finalize(self, os.close, self._descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_descriptor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()
        self._check_state()

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self.parse(self.line(number), number)

    def __iter__(self) -> Iterator[T]:
        for number, line in enumerate(self.lines()):
            yield self.parse(line, number)

    def line(self, number: int) -> bytes:
        """Returns the bytes of a line.

        Raises:
            UserError: the file has changed.
        """
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        self._check_state()
        return os.pread(self._descriptor, end - start, start)

    def blocks(self) -> Iterator[bytes]:
        """Yields many lines at once.

        Raises:
            UserError: the file has changed.
        """
        self._check_state()
        first = 0
        while first < len(self):
            start = int(self._starts[first])
            after = int(self._starts.searchsorted(start + BLOCK, "right"))
            after = min(max(first + 1, after - 1), len(self))
            yield os.pread(self._descriptor, int(self._starts[after]) - start, start)
            first = after

    def lines(self) -> Iterator[bytes]:
        """Yields the bytes of each line.

        Raises:
            UserError: the file has changed.
        """
        for block in self.blocks():
            yield from block.splitlines(keepends=True)

    def parse(self, line: bytes, number: int) -> T:
        """Returns the dataclass of a line.

        Raises:
            UserError: it holds something else.
        """
        try:
            return from_json_dict(self._cls, parse_json(line))
        except UserError as error:
            raise UserError(
                f"{self.path} is damaged (line {number + 1}: {error}); {self._advice}"
            ) from error

    def _current_state(self) -> tuple[int, ...]:
        """Returns bytes and time of the file; of a copy, the size, because nobody changes it."""
        size, time = state_of(self._descriptor)
        return (size,) if isinstance(self.path, RemotePath) else (size, time)

    def _check_state(self) -> None:
        if self._current_state() != self._state:
            raise UserError(f"{self.path} has changed since it was opened; open it again")


def open_descriptor(path: Location) -> int:
    """Opens a file for reading, or a copy of a file at an address."""
    if not isinstance(path, RemotePath):
        return os.open(path, os.O_RDONLY)
    with path.open("rb") as content, temporary_file() as copy:
        shutil.copyfileobj(content, copy)
        copy.flush()
        return os.dup(copy.fileno())


def state_of(descriptor: int) -> tuple[int, int]:
    """Returns the bytes of an open file and the time of its last change, in nanoseconds."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def find_lines(descriptor: int) -> np.ndarray:
    """Returns where each line of an open file starts, and where the last one ends."""
    import numpy as np

    found, place = [np.zeros(1, np.int64)], 0
    while block := os.pread(descriptor, BLOCK, place):
        found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (place + 1))
        place += len(block)
    starts = np.concatenate(found)
    return starts if starts[-1] == place else np.append(starts, place)
