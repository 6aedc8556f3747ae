"""The streaming rule: a layer maps (input, state) to (output, state) and keeps nothing itself.

``step(x, None)`` starts a stream, ``step(x, state)`` continues it, and ``forward(x)`` is a stream
of one step. State is a nested tuple of tensors that mirrors the module tree: it can be saved,
moved, cloned, or held many times over for many streams at once.

A step can also make a part of its output only, a region of each frame: then ``x`` is the part of
its input that ``input_region`` tells, and its state is that of this part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wanvae.errors import UserError
from wanvae.nn.region import Region

State: TypeAlias = "tuple[Tensor | State, ...] | None"
Step: TypeAlias = "Callable[[Tensor, State, Region | None], tuple[Tensor, State]]"


class Streaming(nn.Module):
    """A layer that can process its input in consecutive pieces along time (dim 2)."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        """Process the next piece of a stream; ``state=None`` starts a new one.

        Args:
            region: make this part of each output frame, of ``input_region(region)`` in ``x``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def recomputed_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, State]:
        """As ``step``, but the backward pass computes what is inside again.

        Less memory, more time, the same dropout and gradients (Chen et al., arXiv 1604.06174).
        """
        return checkpoint(self.step, x, state, region, use_reentrant=False)

    def forward(self, x: Tensor) -> Tensor:
        """Process a whole input at once."""
        return self.step(x, None)[0]

    def input_region(self, region: Region) -> Region:
        """The part of its input that the layer needs for a part of its output."""
        raise NotImplementedError(f"{type(self).__name__} has no input_region")

    def looks_across_time(self) -> bool:
        """Whether this layer needs all of time at once, so that it cannot be fed in pieces."""
        return False

    def looks_across_space(self) -> bool:
        """Whether this layer needs whole frames, so that it cannot be fed in regions."""
        return False

    def refuse_to_continue(self, state: State) -> None:
        """Raise ValueError where a layer that needs all of time is fed a second piece."""
        if state is not None:
            raise UserError(
                f"{type(self).__name__} looks across all of time and cannot continue a stream: "
                "process the clip whole, or choose a streamable layer (norm='rms' or 'layer')"
            )


def step_layer(
    layer: nn.Module, x: Tensor, state: State, region: Region | None = None
) -> tuple[Tensor, State]:
    """One step of any layer: those that are not :class:`Streaming` treat each position alone."""
    if isinstance(layer, Streaming):
        return layer.step(x, state, region)
    return layer(x), ()


def input_region(layer: nn.Module, region: Region) -> Region:
    """The part of its input that any layer needs for a part of its output."""
    return layer.input_region(region) if isinstance(layer, Streaming) else region


def unstreamable_layers(module: nn.Module) -> list[str]:
    """Names of the layers inside ``module`` that cannot be fed in pieces (empty: it can stream)."""
    return [
        f"{name or 'model'} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if isinstance(layer, Streaming) and layer.looks_across_time()
    ]


def needs_whole_frames(module: nn.Module) -> bool:
    """Whether some layer inside ``module`` cannot be fed in regions."""
    return any(
        isinstance(layer, Streaming) and layer.looks_across_space() for layer in module.modules()
    )
