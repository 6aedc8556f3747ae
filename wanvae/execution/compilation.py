"""Compiled steps: the options of ``torch.compile``, and the compiled step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from wanvae.nn import State
from wanvae.nn.sequential import step_through


@dataclass(frozen=True)
class Compilation:
    """Options of ``torch.compile``, as pairs of names and values that can be hashed."""

    pairs: tuple[tuple[str, Any], ...]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Compilation:
        """Returns a compilation with options of ``torch.compile``, also options of a backend."""
        hashable = (
            (name, tuple(value.items()) if isinstance(value, Mapping) else value)
            for name, value in options.items()
        )
        return cls(tuple(sorted(hashable, key=lambda pair: pair[0])))

    @property
    def options(self) -> dict[str, Any]:
        """The options, for ``torch.compile``."""
        return {
            name: dict(value) if name == "options" and value is not None else value
            for name, value in self.pairs
        }


@cache
def compiled_step(compilation: Compilation) -> Callable[..., tuple[Tensor, tuple[State, ...]]]:
    """Returns ``step_through``, compiled."""
    return torch.compile(step_through, **compilation.options)
