"""Tables of what is known of videos and images: ``metadata.jsonl``, ``.csv`` and ``.parquet``.

One column names the video, relative to the folder of the table, as in folders of Hugging Face's
``datasets``. The other columns describe it.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from wanvae.engine.litter import suffix_of
from wanvae.engine.parquet import open_parquet
from wanvae.engine.storage.remote_path import Location, is_address
from wanvae.engine.storage.retries import RemoteError
from wanvae.engine.storage.temporary_files import temporary_file
from wanvae.errors import UserError

# Columns that may name the video, the first that is there.
NAMES = ("file_name", "file", "path", "video")
# Rows of a Parquet file that are read at once.
BATCH = 256
# Kinds of values that have no place in JSON.
BINARY = (bytes, bytearray, memoryview)

Row = dict[str, Any]


class MetadataTables:
    """The rows of the tables of a folder. They wait on disk, so that a long table takes no memory.

    Of several rows for one video the last one counts, and tables of subfolders come after the
    tables of the folders around them.

    Args:
        folder: the folder of videos.
        paths: the tables, relative to the folder.

    Attributes:
        notes: what people must know, one line each.

    Raises:
        UserError: a table is damaged, or is a Parquet file and pyarrow is missing.
    """

    def __init__(self, folder: Location, paths: Sequence[str]) -> None:
        self.notes: list[str] = []
        self._places: dict[str, tuple[int, int]] = {}
        with ExitStack() as opened:
            self._rows = opened.enter_context(temporary_file())
            for path in sorted(paths, key=lambda path: (path.count("/"), path)):
                self._add(folder, path)
            self._rows.flush()
            self._held = opened.pop_all()

    def close(self) -> None:
        """Deletes the rows."""
        self._held.close()

    def row_of(self, name: str) -> Row:
        """Returns what the tables say of a video; empty if they say nothing."""
        if name not in self._places:
            return {}
        start, size = self._places[name]
        self._rows.seek(start)
        return json.loads(self._rows.read(size))

    def unmatched(self, names: Collection[str]) -> list[str]:
        """Returns the names of rows that are not among the ``names`` of videos."""
        return [name for name in self._places if name not in names]

    def _add(self, folder: Location, path: str) -> None:
        """Adds the rows of a table."""
        rows = read_rows(folder / path)
        first = next(rows, None)
        if first is None:
            return
        column = next((name for name in NAMES if name in first), None)
        if column is None:
            self.notes.append(
                f"{path} names no videos, because it has no column {', '.join(NAMES)}: left out"
            )
            return
        counts: Counter[str] = Counter()
        for row in chain((first,), rows):
            name = row.pop(column, None)
            if not isinstance(name, str) or not name:
                counts[f"rows have no {column}: left out"] += 1
                continue
            name = name_in(folder, path, name)
            if name in self._places:
                counts["rows are of a video that has another row, which they replace"] += 1
            described, dropped = as_json(row)
            counts.update(f"values of {key!r} are bytes: left out" for key in dropped)
            content = json.dumps(described).encode()
            self._places[name] = self._rows.tell(), len(content)
            self._rows.write(content)
        self.notes.extend(f"{path}: {count} {what}" for what, count in counts.items())


def name_in(folder: Location, table: str, name: str) -> str:
    """Returns the path of a video in the folder, by its name in a table."""
    if is_address(name):
        return name.removeprefix(f"{folder}/")
    if name.startswith("/") and isinstance(folder, Path):
        path = Path(name)
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else name
    return normpath(str(PurePosixPath(table).parent / name))


def read_rows(path: Location) -> Iterator[Row]:
    """Yields the rows of a table.

    Raises:
        UserError: the table is damaged, or is a Parquet file and pyarrow is missing.
        RemoteError: a server cannot be reached.
    """
    readers = {".jsonl": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}
    try:
        yield from readers[suffix_of(path.name)](path)
    except RemoteError:
        raise
    except (UserError, OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read: {error}; mend it, or move it out of the folder"
        ) from error


def json_rows(path: Location) -> Iterator[Row]:
    """Yields the rows of a file with one JSON object on each line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = parse_plain(line)
                except UserError as error:
                    raise UserError(f"line {number}: {error}") from error
                if not isinstance(row, dict):
                    raise UserError(f"line {number}: it is no JSON object")
                yield row


def csv_rows(path: Location) -> Iterator[Row]:
    """Yields the rows of a file of values with commas between them. All values are text."""
    with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines, strict=True)
        for row in table:
            if None in row:
                raise UserError(f"line {table.line_num} has more values than the first line")
            yield {name: value for name, value in row.items() if value is not None}


def parquet_rows(path: Location) -> Iterator[Row]:
    """Yields the rows of a Parquet file."""
    with open_parquet(path) as file:
        from pyarrow import ArrowException

        try:
            for batch in file.iter_batches(BATCH):
                yield from batch.to_pylist()
        except ArrowException as error:
            raise UserError(f"it is a damaged Parquet file ({error})") from error


def decode(content: bytes) -> str:
    """Returns UTF-8 text without a mark of byte order.

    Raises:
        UserError: it is no such text.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8 text ({error.reason} at byte {error.start})") from error


def parse_plain(content: bytes) -> Any:
    """Returns the values of a JSON text, in which all numbers are finite.

    Raises:
        UserError: it is no such text.
    """
    try:
        return json.loads(decode(content), parse_constant=refuse_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is no JSON ({error})") from error


def refuse_number(name: str) -> float:
    """Raises ValueError for NaN and infinity, which are no JSON."""
    raise ValueError(f"{name} is no number")


def as_json(row: Mapping[str, Any]) -> tuple[Row, list[str]]:
    """Returns values of a row as JSON has them, and the names of those that JSON cannot hold."""
    dropped = [name for name, value in row.items() if isinstance(value, BINARY)]
    return {name: plain(row[name]) for name in row if name not in dropped}, dropped


def plain(value: Any) -> Any:
    """Returns a value as JSON has it. Numbers that are not finite become null, dates text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, BINARY):
        return None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (datetime.timedelta, decimal.Decimal)):
        return str(value)
    return value
