"""Dataclasses to JSON and back, strictly.

A dataclass whose fields had other names before says so in ``RENAMED``, a class variable that maps
each old name to the new one. Old names are still read, with a warning.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from wanvae.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def to_json_dict(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance, with tuples as lists, as JSON has them."""
    return json.loads(json.dumps(asdict(value)))


def changed_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance, as JSON has them, that differ from their defaults."""
    values = to_json_dict(value)
    return {
        name: changed_fields(own) if is_dataclass(own) else values[name]
        for name, own in changed_values(value).items()
    }


def changed_values(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance, as they are, that differ from their defaults."""
    changed = {}
    for field in fields(value):
        own, factory = getattr(value, field.name), field.default_factory
        if own != (field.default if factory is MISSING else factory()):
            changed[field.name] = own
    return changed


def describe_replaced(
    weights: str, given: Any, used: Any, *, besides: Collection[str] = ()
) -> Iterator[str]:
    """Yields a line on the options of an architecture that weights replace, if there are any.

    Args:
        weights: their name.
        given, used: the architecture as the options say it, and as it is.
        besides: options that are left out.
    """
    replaced = [*replaced_options(given, used, "model.", besides=besides)]
    if replaced:
        yield f"the architecture is the one of {weights}: {', '.join(replaced)}"


def replaced_options(
    given: Any, used: Any, prefix: str, *, besides: Collection[str] = ()
) -> Iterator[str]:
    """Yields the options of a dataclass that are neither their defaults nor what is used instead.

    Such as "model.dim is 4, not 64"; so for dataclasses inside.

    Args:
        given, used: two instances of the dataclass.
        prefix: what the names begin with, like "model.".
        besides: options that are left out.
    """
    for name, value in changed_values(given).items():
        ours = getattr(used, name)
        if name in besides:
            continue
        if is_dataclass(value) and type(value) is type(ours):
            yield from replaced_options(value, ours, f"{prefix}{name}.")
        elif value != ours:
            yield f"{prefix}{name} is {ours!r}, not {value!r}"


def from_json_dict(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """The inverse of ``to_json_dict``; fields that have defaults may be absent.

    Lists become tuples and whole numbers floats where the type hints say so; nothing else is
    converted. Hints may be bool, int, float, str, Literal, ``tuple[X, ...]``, ``X | None``,
    dataclasses of these, and ``Mapping[str, Any]`` for any object.

    Raises:
        UserError: keys are unknown or missing, or a value has another type; the message names
            them. The dataclass may raise more errors itself.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{cls.__name__} must be an object of named values, not {mapping!r}")
    mapping, old = with_new_names(cls, mapping)
    if old:
        warnings.warn(f"{cls.__name__}: {renaming_note(old)}", stacklevel=2)
    required = {
        f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING
    }
    refuse_keys(cls, "unknown", mapping.keys() - {f.name for f in fields(cls)})
    refuse_keys(cls, "missing", required - mapping.keys())
    hints = hints_of(cls)
    return cls(**{name: from_json(hints[name], value, name) for name, value in mapping.items()})


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Returns the type of each field of a dataclass, evaluated once because that is slow."""
    return get_type_hints(cls)


def with_new_names(cls: type, mapping: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """``mapping`` by the names that the fields of ``cls`` have today.

    Returns:
        The mapping, and the old names that were in it, each with its new name. A name that is given
        both as old and new stays old, for the caller to refuse.
    """
    old = {
        name: new
        for name, new in renamed_fields(cls).items()
        if name in mapping and new not in mapping
    }
    return {old.get(name, name): value for name, value in mapping.items()}, old


def renamed_fields(cls: type) -> Mapping[str, str]:
    """New names of fields of ``cls`` by their old ones."""
    return getattr(cls, "RENAMED", {})


def renamed_options(cls: type) -> dict[str, str]:
    """As ``renamed_fields``, with the dataclasses inside: ``{"model.old": "model.new"}``."""
    options = dict(renamed_fields(cls))
    for name, hint in hints_of(cls).items():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                inside = renamed_options(inner).items()
                options |= {f"{name}.{old}": f"{name}.{new}" for old, new in inside}
    return options


def renaming_note(renamed: Mapping[str, str]) -> str:
    """One line for people about old names that were read."""
    return "; ".join(f"{old} is called {new} now" for old, new in renamed.items())


def refuse_keys(cls: type, problem: str, keys: set[str]) -> None:
    if keys:
        raise UserError(f"{cls.__name__} has {problem} keys: {', '.join(sorted(keys))}")


def from_json(hint: Any, value: Any, name: str) -> Any:
    """``value`` as the type ``hint``; a UserError with ``name`` if it does not fit."""
    options = get_args(hint)
    if get_origin(hint) in (Union, UnionType) and NoneType in options:
        if value is None:
            return None
        (hint,) = (option for option in options if option is not NoneType)
        return from_json(hint, value, name)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
        return from_json_dict(hint, value)
    if get_origin(hint) is Mapping and isinstance(value, Mapping):
        return value
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(from_json(options[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if get_origin(hint) is Literal and value in options:
        return value
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if hint in (bool, int, float, str) and type(value) is hint:
        return value
    expected = hint.__name__ if isinstance(hint, type) and not options else hint
    raise UserError(f"{name} must be {expected}, not {value!r}")


def parse_json(text: str | bytes) -> Any:
    """Returns the values in a JSON text; bytes are read as UTF-8.

    Raises:
        UserError: the bytes are not UTF-8 text, or the text is not JSON or too deeply nested.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"its metadata is no JSON: not UTF-8 text ({error}); download or save it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"its metadata is no JSON ({error}); download or save it again") from error


def check(condition: bool, name: str, value: object, expected: str) -> None:
    """Raises a UserError, "``name`` must be ``expected``", unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{name} must be {expected}, not {value!r}")


def check_option(name: str, value: object, kind: object) -> None:
    """Raises a UserError if ``kind``, a Literal, does not allow ``value``."""
    options = get_args(kind)
    check(value in options, name, value, " or ".join(options))
