"""Layers one after another: how a row of layers runs, and the facts about the row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, pairwise

from torch import Tensor, nn

from wanvae.nn.conv import CausalConv
from wanvae.nn.interval import Interval
from wanvae.nn.kernels.pointwise import apply
from wanvae.nn.region import Region
from wanvae.nn.streaming import State, Streaming, as_streaming, states_inside, streaming_layers


class Row(Streaming):
    """A layer that only runs others one after another. State: one entry a layer.

    A subclass provides ``layers``.
    """

    def layers(self) -> tuple[nn.Module, ...]:
        """The layers in the order they run."""
        raise self._unanswered("layers")

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        return step_through(self.layers(), x, state, region)

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return forward_masked(self.layers(), x, lengths)

    def input_region(self, region: Region) -> Region:
        return input_region(self.layers(), region)

    def input_interval(self, interval: Interval) -> Interval:
        return input_interval(self.layers(), interval)

    def time_factor(self) -> Fraction:
        return time_factor(self.layers())

    def space_factor(self) -> Fraction:
        return space_factor(self.layers())

    def resamples(self) -> bool:
        return any(layer.resamples() for layer in streaming_layers(self.layers()))

    def multiply_adds(self, positions: int, frames: int) -> int:
        return multiply_adds(self.layers(), positions, frames)


class Sequential(Row, nn.Sequential):
    """Layers one after another."""

    def layers(self) -> tuple[nn.Module, ...]:
        return tuple(self)


def step_through(
    layers: Iterable[nn.Module],
    x: Tensor,
    state: State,
    region: Region | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, tuple[State, ...]]:
    """One step of several layers in a row; the state holds one entry a layer.

    A convolution applies the pointwise layers before it on the way to its input.

    Args:
        recompute: keep only what goes from layer to layer, and compute the inside of the layers
            again in the backward pass.
    """
    layers = tuple(layers)
    states = states_inside(state, len(layers))
    wanted = regions_between(layers, region)[1:]
    pointwise: list[nn.Module] = []
    new_states = []
    for layer, layer_state, layer_region in zip(layers, states, wanted, strict=True):
        streaming = as_streaming(layer)
        if streaming is None:
            pointwise.append(layer)
            layer_state = ()
        elif isinstance(streaming, CausalConv):
            x, layer_state = streaming.step(x, layer_state, layer_region, pointwise)
            pointwise = []
        else:
            step = streaming.recomputed_step if recompute else streaming.step
            x, layer_state = step(apply(pointwise, x), layer_state, layer_region)
            pointwise = []
        new_states.append(layer_state)
    return apply(pointwise, x), tuple(new_states)


def forward_masked(
    layers: Iterable[nn.Module], x: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """:meth:`Streaming.forward_masked` of layers in a row."""
    for layer in layers:
        streaming = as_streaming(layer)
        if streaming is None:
            x = layer(x)
        else:
            x, lengths = streaming.forward_masked(x, lengths)
    return x, lengths


def input_region(layers: Iterable[nn.Module], region: Region) -> Region:
    """What the first of some layers in a row reads for a region of the last one's output."""
    for layer in reversed(streaming_layers(layers)):
        region = layer.input_region(region)
    return region


def regions_between(layers: Sequence[nn.Module], region: Region | None) -> list[Region | None]:
    """What the first layer reads, what each next one reads, and ``region``, which the last writes.

    Where ``region`` is the whole image (None), all of them are.
    """
    regions = [region]
    for layer in reversed(layers):
        region = None if region is None else input_region([layer], region)
        regions.insert(0, region)
    return regions


def cropped_layers(layers: Iterable[nn.Module]) -> tuple[Streaming, ...]:
    """The layers in a row that are cropped one by one; a stage gives the layers inside it."""
    return tuple(chain.from_iterable(layer.cropped_layers() for layer in streaming_layers(layers)))


def regions_of_layers(
    layers: Iterable[nn.Module], region: Region
) -> Iterator[tuple[Streaming, Region, Region]]:
    """Each of ``cropped_layers``, with the region that it reads and the region that it writes.

    Args:
        region: what the last layer writes.
    """
    regions = [region]
    in_a_row = cropped_layers(layers)
    for layer in reversed(in_a_row):
        regions.append(layer.input_region(regions[-1]))
    for layer, (read, written) in zip(in_a_row, pairwise(reversed(regions)), strict=True):
        yield layer, read, written


def input_interval(layers: Iterable[nn.Module], interval: Interval) -> Interval:
    """The input frames of layers in a row that some frames of their output depend on."""
    for layer in reversed(streaming_layers(layers)):
        interval = layer.input_interval(interval)
    return interval


def time_factor(layers: Iterable[nn.Module]) -> Fraction:
    """Frames that leave layers in a row for each that enters, after the first."""
    return math.prod((layer.time_factor() for layer in streaming_layers(layers)), start=Fraction(1))


def space_factor(layers: Iterable[nn.Module]) -> Fraction:
    """Positions along a side that leave layers in a row for each that enters."""
    return math.prod(
        (layer.space_factor() for layer in streaming_layers(layers)), start=Fraction(1)
    )


def resampled(frames: int, factor: Fraction, *, starts: bool) -> int:
    """How many frames come of so many; the first frame of a stream stands for itself."""
    first = 1 if starts else 0
    return first + int((frames - first) * factor)


def multiply_adds(layers: Iterable[nn.Module], positions: int, frames: int) -> int:
    """:meth:`Streaming.multiply_adds` of layers in a row."""
    streaming = streaming_layers(layers)
    total = 0
    for index, layer in enumerate(streaming):
        written = int(positions / space_factor(streaming[index + 1 :]) ** 2)
        total += layer.multiply_adds(written, frames)
        frames = resampled(frames, layer.time_factor(), starts=True)
    return total
