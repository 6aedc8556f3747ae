"""Steps of layers on the meta device that run once, and are then repeated by their memory alone.

A layer keeps nothing itself. So a step with inputs of the same shapes takes the same memory again.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wanvae.execution.meter import MemoryMeter
from wanvae.execution.nested import map_nested
from wanvae.nn import State, Streaming
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.region import Region


@dataclass(frozen=True)
class Form:
    """What a tensor is besides its values: a view of a storage of ``size`` elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> Form:
        """Returns the form of a tensor."""
        size = x.untyped_storage().nbytes() // x.itemsize
        return cls(tuple(x.shape), x.stride(), int(x.storage_offset()), size, x.dtype)

    def allocate(self) -> Tensor:
        """Returns a tensor of this form on the meta device."""
        if self.size == math.prod(self.shape):
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        storage = torch.empty(self.size, dtype=self.dtype, device="meta")
        return storage.as_strided(self.shape, self.stride, self.offset)


# The forms of the tensors of a state, in the same nested tuples.
StateForm: TypeAlias = "tuple[Form | StateForm, ...] | None"


@dataclass(frozen=True)
class Result:
    """What a step returns, and how many bytes it takes at most, the results included."""

    output: Form
    state: StateForm
    taken: int


class Rehearsal:
    """Steps of layers on the meta device. Each runs once for inputs of the same form."""

    def __init__(self) -> None:
        self._results: dict[Hashable, Result | None] = {}

    def step(
        self, meter: MemoryMeter, layer: Streaming, x: Tensor, state: State, region: Region | None
    ) -> tuple[Tensor, State]:
        """Returns what the step of ``layer`` returns; ``meter`` sees no difference."""
        form = find_form(state)
        key = layer, kernels_for(x), Form.of(x), form, region
        result = self._results.get(key)
        if result is None:
            (y, next_state), taken = meter.measure(partial(layer.step, x, state, region))
            # A result that shares memory with anything takes less, so such a step is not repeated.
            if share_nothing(x, state, y, next_state):
                self._results[key] = Result(Form.of(y), find_form(next_state), taken)
            return y, next_state
        meter.count_for_now(result.taken)
        next_state = state if result.state == form else allocate_state(result.state)
        return result.output.allocate(), next_state


def find_form(state: State) -> StateForm:
    """Returns the forms of the tensors of a state."""
    return map_nested(Form.of, state)


def allocate_state(form: StateForm) -> State:
    """Returns a state of this form on the meta device."""
    return map_nested(Form.allocate, form)


def share_nothing(x: Tensor, state: State, y: Tensor, next_state: State) -> bool:
    """Returns whether the results of a step share no memory with each other or the inputs."""
    before, after = find_storages([x, state]), find_storages([y, next_state])
    return len(set(after)) == len(after) and not set(after) & set(before)


def find_storages(tensors: object) -> list[int]:
    """Returns the identity of the storage of each tensor in nested tuples and lists."""
    return [id(leaf.untyped_storage()) for leaf in tree_leaves(tensors) if leaf is not None]
