from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest

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


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 10**5, "1" * 5000])
def test_what_is_no_json_is_for_people(text: str | bytes) -> None:
    with pytest.raises(UserError, match="no JSON"):
        parse_json(text)
