from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from wanvae.engine.command_line.arguments import parse_config
from wanvae.engine.config import from_json_dict, parse_json, to_json_dict
from wanvae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    width: int
    kind: Literal["a", "b"] = "a"
    steps: tuple[bool, ...] = ()
    scales: tuple[float, ...] = ()
    limit: int | None = None
    name: str = ""
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")


VALUES = [
    Outer(width=1),
    Outer(width=2, kind="b", steps=(True, False), scales=(0.1, 1.0), limit=3, name="é"),
    Outer(width=3, inner=Inner(rate=1e-7)),
]


@pytest.mark.parametrize("value", VALUES)
def test_round_trip_through_json_text(value: Outer) -> None:
    mapping = to_json_dict(value)
    assert json.loads(json.dumps(mapping)) == mapping
    assert from_json_dict(Outer, mapping) == value


def test_absent_fields_take_their_defaults_and_whole_numbers_become_floats() -> None:
    value = from_json_dict(Outer, {"width": 4, "scales": [1], "inner": {"rate": 2}})
    assert value == Outer(width=4, scales=(1.0,), inner=Inner(rate=2.0))
    assert type(value.scales[0]) is float


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"width": 1, "wide": 2, "tall": 3}, "Outer has unknown keys: tall, wide"),
        ({}, "Outer has missing keys: width"),
        ({"width": "1"}, "width must be int, not '1'"),
        ({"width": True}, "width must be int, not True"),
        ({"width": 1.0}, "width must be int, not 1.0"),
        ({"width": None}, "width must be int, not None"),
        ({"width": 1, "kind": "c"}, "kind must be .*'a', 'b'.*, not 'c'"),
        ({"width": 1, "steps": [True, 1]}, r"steps\[1\] must be bool, not 1"),
        ({"width": 1, "steps": "no"}, "steps must be .*tuple.*, not 'no'"),
        ({"width": 1, "limit": "3"}, "limit must be int, not '3'"),
        ({"width": 1, "inner": {"rat": 1}}, "Inner has unknown keys: rat"),
        ({"width": 1, "inner": 5}, "inner must be Inner, not 5"),
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"width": 1, "scales": [10**400]}, r"scales\[0\] must be float, not 1000"),
        ([1], r"Outer must be an object of named values, not \[1\]"),
    ],
)
def test_what_does_not_fit_is_named(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json_dict(Outer, mapping)


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """Settings.

    Attributes:
        width: was called size.
        rate: a rate.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"size": "width"}

    width: int = 1
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Settings of settings.

    Attributes:
        inner: the inner ones.
        absent: others.
    """

    inner: Renamed = field(default_factory=Renamed)
    absent: Renamed | None = None


def test_old_names_are_read_and_said_once() -> None:
    with pytest.warns(UserWarning, match="^Renamed: size is called width now$") as warnings:
        value = from_json_dict(Holder, {"inner": {"size": 3, "rate": 1}})
    assert value == Holder(inner=Renamed(width=3, rate=1.0))
    assert len(warnings) == 1
    with pytest.raises(ValueError, match="Renamed has unknown keys: size"):
        from_json_dict(Renamed, {"size": 3, "width": 4})


@pytest.mark.parametrize(
    ("yaml", "options", "said"),
    [
        ("inner: {width: 3, rate: 1e-3}", [], []),
        ("inner: {size: 3, rate: 1e-3}", [], ["inner.size is called inner.width now"]),
        ("inner: {rate: 1e-3}", ["--inner.size=3"], ["inner.size is called inner.width now"]),
        ("inner: {rate: 1e-3}", ["--inner.size", "3"], ["inner.size is called inner.width now"]),
        ("inner: {size: 9, rate: 1e-3}", ["--inner.width=3"], ["inner.size is called inner.w"]),
    ],
)
def test_old_names_are_options(tmp_path, capsys, yaml, options, said) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml)
    value = parse_config(Holder, "program", "Runs.", [f"--config={path}", *options])
    assert value == Holder(inner=Renamed(width=3, rate=1e-3))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    assert all(
        line.startswith(f"program: {start}") for line, start in zip(lines, said, strict=True)
    )


def test_a_name_given_as_old_and_new_is_refused(tmp_path, capsys) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("inner: {size: 3, width: 4}")
    with pytest.raises(SystemExit):
        parse_config(Holder, "program", "Runs.", [f"--config={path}"])
    assert "size" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 10**5, "1" * 5000])
def test_what_is_no_json_is_for_people(text: str | bytes) -> None:
    with pytest.raises(UserError, match="no JSON"):
        parse_json(text)
