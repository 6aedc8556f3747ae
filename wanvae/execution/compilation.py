"""Compiled steps: what people ask of ``torch.compile``, and the step it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from wanvae.nn import State
from wanvae.nn.sequential import step_through

Backend: TypeAlias = "str | Callable[..., Any]"
CompilerOptions: TypeAlias = "Mapping[str, str | int | bool | Callable[..., Any]]"


@dataclass(frozen=True)
class Compilation:
    """The options of ``torch.compile``; the defaults compile once for each new shape.

    Attributes:
        fullgraph, dynamic, backend, mode, disable: as ``torch.compile`` takes them.
        options: pairs of names and values.
    """

    fullgraph: bool = False
    dynamic: bool | None = False
    backend: Backend = "inductor"
    mode: str | None = None
    options: tuple[tuple[str, str | int | bool | Callable[..., Any]], ...] | None = None
    disable: bool = False


@cache
def compiled_step(compilation: Compilation) -> Callable[..., tuple[Tensor, tuple[State, ...]]]:
    """Returns ``step_through``, compiled."""
    return torch.compile(
        step_through,
        fullgraph=compilation.fullgraph,
        dynamic=compilation.dynamic,
        backend=compilation.backend,
        mode=compilation.mode,
        options=None if compilation.options is None else dict(compilation.options),
        disable=compilation.disable,
    )
