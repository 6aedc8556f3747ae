"""Compiled steps: the options of ``torch.compile``, and the compiled step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any, TypeAlias

import torch
from torch import Tensor

from wanvae.execution.nested import copy_tensors
from wanvae.nn import State, Streaming
from wanvae.nn.sequential import step_through

# Runs a step of all layers of a stage, for an input and the states of the layers; None starts a
# stream.
StepOfStage: TypeAlias = Callable[
    [Sequence[Streaming], Tensor, "tuple[State, ...] | None"], "tuple[Tensor, tuple[State, ...]]"
]
# Modes of ``torch.compile`` that record CUDA graphs.
MODES_WITH_GRAPHS = ("max-autotune", "reduce-overhead")

# How often a step may be compiled. Each size needs a few compilations: encoder and decoder, first
# step and later steps. After PyTorch's own limit of 8, new sizes run without compilation.
RECOMPILE_LIMIT = 256


@dataclass(frozen=True)
class Compilation:
    """Options of ``torch.compile``, as pairs of names and values that can be hashed."""

    pairs: tuple[tuple[str, Any], ...]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Compilation:
        """Returns a compilation with options of ``torch.compile``, also options of a backend.

        By default each size is compiled for itself, up to ``RECOMPILE_LIMIT`` times.
        """
        usual: dict[str, Any] = {"dynamic": False}
        # An older PyTorch has only one limit for the whole process.
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

    @property
    def records_graphs(self) -> bool:
        """Whether PyTorch records CUDA graphs, whose results the next step overwrites."""
        options = self.options
        of_backend = options.get("options") or {}
        return options.get("mode") in MODES_WITH_GRAPHS or bool(of_backend.get("triton.cudagraphs"))


@cache
def compiled_step(compilation: Compilation) -> StepOfStage:
    """Returns ``step_through``, compiled. Its results belong to the caller."""
    step: StepOfStage = torch.compile(step_through, **compilation.options)
    if not compilation.records_graphs:
        return step

    def step_and_copy(
        layers: Sequence[Streaming], x: Tensor, states: tuple[State, ...] | None
    ) -> tuple[Tensor, tuple[State, ...]]:
        return copy_tensors(step(layers, x, states))

    return step_and_copy
