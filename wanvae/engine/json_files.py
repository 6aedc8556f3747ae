"""JSON files of dataclasses: one value in a file, or one value on each line.

``json_lines`` reads files with one value on each line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wanvae.engine.config import changed_fields, from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.engine.storage.remote_path import Location

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def read_json(path: Location) -> Any:
    """Returns the content of a JSON file.

    Raises:
        UserError: the content is not JSON, or not text.
        OSError: the file cannot be read.
    """
    return parse_json(path.read_bytes())


def read_value(path: Location, cls: type[T]) -> T:
    """Returns the dataclass ``cls`` that a JSON file holds.

    Raises:
        UserError: the file holds something else.
        OSError: the file cannot be read.
    """
    return from_json_dict(cls, read_json(path))


def write_value(path: Location, value: object, *, indent: int | None = None) -> None:
    """Writes a dataclass to a JSON file, which is complete or does not appear.

    Raises:
        ValueError: a number is not finite.
        FileError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        text = json.dumps(to_json_dict(value), indent=indent, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Location, values: Iterable[object], *, whole: bool = True) -> None:
    """Writes dataclasses, each as one JSON object on a line; the file is complete or not there.

    Args:
        whole: write all fields, and not only those that differ from their defaults.
    """
    as_json = to_json_dict if whole else changed_fields
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(as_json(value)) + "\n" for value in values)


def append_line(path: Path, value: Any) -> None:
    """Appends a dataclass to a file with one JSON object on each line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(value)) + "\n")
