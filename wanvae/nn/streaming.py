"""The streaming rule: a layer maps (input, state) to (output, state) and keeps nothing itself.

``step(x, None)`` starts a stream, ``step(x, state)`` continues it, and ``forward(x)`` is a stream
of one step. State is a nested tuple of tensors that mirrors the module tree: it can be saved,
moved, cloned, or held many times over for many streams at once.

A step can also compute a part of its output only, a region of each frame: ``x`` is then the part of
the input that ``input_region`` names, and the state belongs to this part.

Whatever else has to be known to plan, tile or mask a layer, the layer itself answers. A row of
layers has two kinds of layers. A :class:`Streaming` layer answers. A pointwise layer
(:func:`as_streaming` tells) treats each position alone, so that nothing needs to be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import TypeAlias, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wanvae.errors import UserError
from wanvae.nn.interval import Interval
from wanvae.nn.region import Region

State: TypeAlias = "tuple[Tensor | State, ...] | None"
Step: TypeAlias = "Callable[[Tensor, State, Region | None], tuple[Tensor, State]]"


class Streaming(nn.Module):
    """A layer that can process its input in consecutive pieces along time (dim 2).

    A subclass answers every method that raises NotImplementedError here.
    """

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        """Process the next piece of a stream; ``state=None`` starts a new one.

        Args:
            region: compute this part of each output frame, from ``input_region(region)`` in ``x``.
        """
        raise self._unanswered("step")

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

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Process whole clips ``(B, C, T, ...)`` of ``lengths`` ``(B,)`` frames each.

        The frames after the end of a clip are padding and may hold anything. The layer sees of each
        clip what it sees when the clip comes alone.

        Returns:
            The output, with anything after the end of each clip, and its lengths ``(B,)``.
        """
        raise self._unanswered("forward_masked")

    def input_region(self, region: Region) -> Region:
        """The part of its input that the layer needs for a part of its output."""
        raise self._unanswered("input_region")

    def input_interval(self, interval: Interval) -> Interval:
        """The frames of its input that some frames of its output depend on."""
        raise self._unanswered("input_interval")

    def time_factor(self) -> Fraction:
        """Frames of output for each frame of input, after the first frame."""
        raise self._unanswered("time_factor")

    def space_factor(self) -> Fraction:
        """Positions of output along a side for each position of input."""
        raise self._unanswered("space_factor")

    def resamples(self) -> bool:
        """Whether the layers before and after run at different resolutions.

        They then suit pieces of different length.
        """
        return self.time_factor() != 1 or self.space_factor() != 1

    def multiply_adds(self, positions: int, frames: int) -> int:
        """Multiply-adds of a stream's first ``frames`` frames of input.

        Args:
            positions: positions that are computed of each output frame.
        """
        raise self._unanswered("multiply_adds")

    def cropped_layers(self) -> tuple[Streaming, ...]:
        """The layers inside that are cropped one by one; itself, where it is cropped as one."""
        return (self,)

    def looks_across_time(self) -> bool:
        """Whether this layer needs all of time at once, so that it cannot be fed in pieces."""
        return False

    def looks_across_space(self) -> bool:
        """Whether this layer needs whole frames, so that it cannot be fed in regions."""
        return False

    def refuse_to_continue(self, state: State) -> None:
        """Raise UserError where a layer that needs all of time is fed a second piece."""
        if state is not None:
            raise UserError(
                f"{type(self).__name__} looks across all of time and cannot continue a stream: "
                "process the clip whole, or choose a streamable layer (norm='rms' or 'layer')"
            )

    def _unanswered(self, name: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} has no {name}")


class Pointwise(nn.Module):
    """A layer that treats each position alone; a subclass has ``forward`` and nothing else."""


# Layers of PyTorch that treat each position alone.
TORCH_POINTWISE = (
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
)


def as_streaming(layer: nn.Module) -> Streaming | None:
    """The layer; None if it is pointwise: :class:`Pointwise` or one of ``TORCH_POINTWISE``.

    Raises:
        TypeError: the layer is neither streaming nor pointwise.
    """
    if isinstance(layer, Streaming):
        return layer
    if isinstance(layer, Pointwise) or type(layer) in TORCH_POINTWISE:
        return None
    raise TypeError(
        f"{type(layer).__name__} does not say what it sees: a layer is a subclass of Streaming, or "
        "of Pointwise if it treats each position alone"
    )


def streaming_layers(layers: Iterable[nn.Module]) -> tuple[Streaming, ...]:
    """The layers that are not pointwise."""
    return tuple(streaming for layer in layers if (streaming := as_streaming(layer)) is not None)


def step_layer(
    layer: nn.Module, x: Tensor, state: State, region: Region | None = None
) -> tuple[Tensor, State]:
    """One step of a streaming or a pointwise layer."""
    streaming = as_streaming(layer)
    return (layer(x), ()) if streaming is None else streaming.step(x, state, region)


def split_state(state: State, count: int) -> tuple[State, ...]:
    """The states of ``count`` layers, from the state of the layer that holds them."""
    return (None,) * count if state is None else cast("tuple[State, ...]", state)


def get_tensors(state: State) -> tuple[Tensor, ...]:
    """The tensors that a layer keeps in its state."""
    return () if state is None else cast("tuple[Tensor, ...]", state)


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
