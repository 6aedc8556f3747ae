"""The streaming rule: a layer maps (input, state) to (output, state) and keeps nothing itself.

``step(x, None)`` starts a stream, ``step(x, state)`` continues it, and ``forward(x)`` is a stream
of one step. State is a nested tuple of tensors that mirrors the module tree: it can be saved,
moved, cloned, or held many times over for many streams at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from torch import Tensor, nn

State: TypeAlias = "tuple[Tensor | State, ...] | None"


class Streaming(nn.Module):
    """A layer that can process its input in consecutive pieces along time (dim 2)."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process the next piece of a stream; ``state=None`` starts a new one."""
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def forward(self, x: Tensor) -> Tensor:
        """Process a whole input at once."""
        return self.step(x, None)[0]

    def looks_across_time(self) -> bool:
        """Whether this layer needs all of time at once, so that it cannot be fed in pieces."""
        return False

    def refuse_to_continue(self, state: State) -> None:
        """Raise ValueError where a layer that needs all of time is fed a second piece."""
        if state is not None:
            raise ValueError(
                f"{type(self).__name__} looks across all of time and cannot continue a stream: "
                "process the clip whole, or choose a streamable layer (norm='rms' or 'layer')"
            )


class Sequential(Streaming, nn.Sequential):
    """Layers one after another; their states travel as a tuple."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return step_through(self, x, state)


def step_layer(layer: nn.Module, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One step of any layer: those that are not :class:`Streaming` treat each frame alone."""
    if isinstance(layer, Streaming):
        return layer.step(x, state)
    return layer(x), ()


def step_through(layers: Iterable[nn.Module], x: Tensor, state: State) -> tuple[Tensor, State]:
    """One step of several layers in a row; the state holds one entry a layer."""
    layers = tuple(layers)
    states = (None,) * len(layers) if state is None else state
    new_states = []
    for layer, layer_state in zip(layers, states, strict=True):
        x, layer_state = step_layer(layer, x, layer_state)
        new_states.append(layer_state)
    return x, tuple(new_states)


def unstreamable_layers(module: nn.Module) -> list[str]:
    """Names of the layers inside ``module`` that cannot be fed in pieces (empty: it can stream)."""
    return [
        f"{name or 'model'} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if isinstance(layer, Streaming) and layer.looks_across_time()
    ]
