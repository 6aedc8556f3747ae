"""The streaming rule: a layer maps (input, state) to (output, state) and keeps nothing itself.

``step(x, None)`` starts a stream, ``step(x, state)`` continues it, and ``forward(x)`` is a stream
of one step. State is a nested tuple of tensors that mirrors the module tree: it can be saved,
moved, cloned, or held many times over for many streams at once.

A step can also compute only a region of each output frame. Then ``x`` is the region of the input
that ``input_region`` returns, and the state belongs to this region.

A layer itself states all other facts that planning, tiling and masking need. There are two kinds of
layers. A :class:`Streaming` layer has a method for each fact. A pointwise layer treats each
position alone, so its facts are known (:func:`as_streaming` tells the kinds apart).
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, ClassVar, TypeAlias, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wanvae.errors import UserError
from wanvae.nn.interval import Interval
from wanvae.nn.region import Region

State: TypeAlias = "tuple[Tensor | State, ...] | None"


class Streaming(nn.Module):
    """A layer that can process its input in consecutive pieces along time (dim 2).

    A subclass implements every method that raises NotImplementedError here.

    Attributes:
        has_blocks: whether ``recomputed_step`` computes inner layers again one by one.
    """

    has_blocks: ClassVar[bool] = False

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        """Returns the output for the next piece of a stream, and the next state.

        Args:
            x: the next piece.
            state: the state after the piece before; None starts a stream.
            region: the region of each output frame to compute; ``x`` is then the region
                ``input_region(region)`` of the input. None computes whole frames.
        """
        raise self._unanswered("step")

    def recomputed_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, State]:
        """Does the same as ``step``, but the backward pass computes inner tensors again.

        Less memory, more time, the same dropout and gradients (Chen et al., arXiv 1604.06174).
        """
        return checkpoint(self.step, x, state, region, use_reentrant=False)

    def forward(self, x: Tensor) -> Tensor:
        """Processes a whole input at once."""
        return self.step(x, None)[0]

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Processes whole clips ``(B, C, T, ...)`` of ``lengths`` ``(B,)`` frames each.

        Frames after the end of a clip are padding and may have any values. The output for each clip
        equals the output for this clip alone.

        Returns:
            The output, with any values after the end of each clip, and its lengths ``(B,)``.
        """
        raise self._unanswered("forward_masked")

    def input_region(self, region: Region) -> Region:
        """Returns the region of the input that the layer needs for a region of the output."""
        raise self._unanswered("input_region")

    def input_interval(self, interval: Interval) -> Interval:
        """Returns the frames of the input that some frames of the output depend on."""
        raise self._unanswered("input_interval")

    def time_factor(self) -> Fraction:
        """Returns the frames of output for each frame of input, after the first frame."""
        raise self._unanswered("time_factor")

    def count_output(self, frames: int, *, starts: bool) -> int:
        """Returns the frames of output for the next ``frames`` frames of input of a stream.

        The first frame of a stream stays one frame, unless a layer says otherwise.

        Args:
            starts: whether the stream starts with these frames.
        """
        first = 1 if starts else 0
        return first + int((frames - first) * self.time_factor())

    def space_factor(self) -> Fraction:
        """Returns the positions of output along a side for each position of input."""
        raise self._unanswered("space_factor")

    def resamples(self) -> bool:
        """Returns whether the layers before and after run at different resolutions.

        Then pieces of different lengths suit them.
        """
        return self.time_factor() != 1 or self.space_factor() != 1

    def multiply_adds(self, positions: int, frames: int) -> int:
        """Returns the multiply-adds for the first ``frames`` input frames of a stream.

        Args:
            positions: number of positions of each output frame that are computed.
        """
        raise self._unanswered("multiply_adds")

    def cropped_layers(self) -> tuple[Streaming, ...]:
        """Returns the inner layers that are cropped one by one, or the layer itself."""
        return (self,)

    def looks_across_time(self) -> bool:
        """Returns whether this layer needs all frames at once and cannot take pieces."""
        return False

    def looks_across_space(self) -> bool:
        """Returns whether this layer needs whole frames and cannot take regions."""
        return False

    def refuse_to_continue(self, state: State) -> None:
        """Raises UserError if a layer that needs all frames at once gets a second piece."""
        if state is not None:
            raise UserError(
                f"{type(self).__name__} looks across all of time and cannot continue a stream: "
                "process the clip whole, or choose a streamable layer (norm='rms' or 'layer')"
            )

    def _unanswered(self, name: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} has no {name}")


class Pointwise(nn.Module):
    """A layer that treats each position alone. A subclass only has ``forward``."""


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
    """Returns the layer; None if it is a :class:`Pointwise` or one of ``TORCH_POINTWISE``.

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
    """Returns the layers that are not pointwise."""
    return tuple(streaming for layer in layers if (streaming := as_streaming(layer)) is not None)


def require_streaming(layers: Iterable[nn.Module]) -> tuple[Streaming, ...]:
    """Returns the layers; raises TypeError if one is not ``Streaming``."""
    streaming = []
    for layer in layers:
        if not isinstance(layer, Streaming):
            raise TypeError(f"{type(layer).__name__} is not Streaming, so it cannot stream")
        streaming.append(layer)
    return tuple(streaming)


def step_layer(
    layer: nn.Module, x: Tensor, state: State, region: Region | None = None
) -> tuple[Tensor, State]:
    """Runs one step of a streaming or a pointwise layer."""
    streaming = as_streaming(layer)
    return (layer(x), ()) if streaming is None else streaming.step(x, state, region)


def give_away(state: State) -> State:
    """Returns a state in lists, which the next step empties while it runs.

    So each tensor is freed as soon as its layer no longer needs it, and not after the whole step.
    The caller keeps no tensor of the state.
    """
    return cast("State", give_parts(state))


def give_parts(state: Any) -> Any:
    """Returns nested tuples as nested lists."""
    return [*map(give_parts, state)] if isinstance(state, (tuple, list)) else state


def split_state(state: State, count: int) -> tuple[State, ...]:
    """Returns the states of ``count`` inner layers, from the state of the layer around them."""
    return (None,) * count if state is None else cast("tuple[State, ...]", take(state))


def get_tensors(state: State) -> tuple[Tensor, ...]:
    """Returns the tensors of the state of a layer."""
    return () if state is None else cast("tuple[Tensor, ...]", take(state))


def take(state: State) -> Any:
    """Returns the parts of a state; a state that was given away is empty afterwards."""
    if not isinstance(state, list):
        return state
    parts = tuple(state)
    state.clear()
    return parts


def unstreamable_layers(module: nn.Module) -> list[str]:
    """Returns names of layers in ``module`` that cannot take pieces; empty if all can stream."""
    return [
        f"{name or 'model'} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if isinstance(layer, Streaming) and layer.looks_across_time()
    ]


def needs_whole_frames(module: nn.Module) -> bool:
    """Returns whether some layer inside ``module`` needs whole frames."""
    return any(
        isinstance(layer, Streaming) and layer.looks_across_space() for layer in module.modules()
    )
