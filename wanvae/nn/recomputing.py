"""Layers whose inner tensors are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

Output = TypeVar("Output")


def compute_twice(
    layers: Sequence[nn.Module], function: Callable[..., Output], *args: object
) -> Output:
    """Returns ``function(*args)``, which runs again in the backward pass.

    Less memory, more time, the same dropout and gradients (Chen et al., arXiv 1604.06174).

    Args:
        layers: what ``function`` runs. Their buffers, such as the statistics of batch norm, change
            in the first run alone.
    """
    has_buffers = any(True for layer in layers for _ in layer.buffers())
    contexts = partial(make_contexts, layers) if has_buffers else noop_context_fn
    output = checkpoint(function, *args, use_reentrant=False, context_fn=contexts)
    return cast("Output", output)


def make_contexts(
    layers: Sequence[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Returns the contexts of the first run and of the runs after it."""
    return nullcontext(), RestoringBuffers(layers)


class RestoringBuffers(AbstractContextManager[None]):
    """Gives the buffers of layers back the values that they had before.

    It is entered once for each backward pass, so again for second derivatives.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._buffers = [buffer for layer in layers for buffer in layer.buffers()]
        self._values: list[torch.Tensor] = []

    def __enter__(self) -> None:
        self._values = [buffer.clone() for buffer in self._buffers]

    def __exit__(self, *exception: object) -> None:
        with torch.no_grad():
            for buffer, value in zip(self._buffers, self._values, strict=True):
                buffer.copy_(value)
        self._values = []
