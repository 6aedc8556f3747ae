"""Compiled steps: what people ask of ``torch.compile``, and the step it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from wanvae.nn import State
from wanvae.nn.sequential import step_through

# How many times a step may be compiled: each size takes a few, for the encoder and the decoder, the
# first step and later ones. PyTorch's own limit is 8, after which nothing more is compiled.
RECOMPILE_LIMIT = 256


@dataclass(frozen=True)
class Compilation:
    """Options of ``torch.compile``, as pairs of names and values that can be hashed."""

    pairs: tuple[tuple[str, Any], ...]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Compilation:
        """Compilation with these options of ``torch.compile``, the options of a backend too.

        Unless they say otherwise each size is compiled for itself, and so may many sizes.
        """
        usual: dict[str, Any] = {"dynamic": False}
        # Releases of PyTorch before the option know one limit for the whole process alone.
        if "recompile_limit" in signature(torch.compile).parameters:
            usual["recompile_limit"] = RECOMPILE_LIMIT
        options = {**usual, **options}
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
