"""JSON files: what was written is read, and anything else is an error for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from wanvae.engine.json_files import append_line, read_value, write_lines, write_value
from wanvae.engine.json_lines import JsonLines
from wanvae.errors import UserError


@dataclass(frozen=True)
class Point:
    x: float
    names: tuple[str, ...] = ()


def read_lines(path: Path, cls: type[Point]) -> list[Point]:
    return list(JsonLines(path, cls, "write it again"))


POINTS = [Point(0.5, ("é", "b")), Point(2.0)]


def test_a_value_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_value(tmp_path / "a.json", POINTS[0], indent=2)
    assert read_value(tmp_path / "a.json", Point) == POINTS[0]
    assert (tmp_path / "a.json").read_text().startswith('{\n  "x": 0.5,')


def test_lines_are_read_as_they_were_written_and_appended(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", POINTS[:1])
    append_line(tmp_path / "a.jsonl", POINTS[1])
    assert read_lines(tmp_path / "a.jsonl", Point) == POINTS


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_value(tmp_path / "a.json", Point(math.nan))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"{", b'{"y": 1}\n', b'{"x": "1"}\n', b"\xff\n", b"[]\n"])
def test_anything_else_is_an_error_for_people(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (read_value, read_lines):
        with pytest.raises(UserError):
            read(path, Point)
