"""Layers whose inner tensors are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    """Returns the contexts of the first and of the second run."""
    return nullcontext(), restoring_buffers(layers)


@contextmanager
def restoring_buffers(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Gives the buffers of layers back the values that they had before."""
    buffers = [buffer for layer in layers for buffer in layer.buffers()]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
