"""Layers in a row: how a row runs, and the facts about the row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, pairwise
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wanvae.nn.conv import CausalConv
from wanvae.nn.interval import Interval
from wanvae.nn.kernels.pointwise import PointwiseFunction, apply
from wanvae.nn.region import Region
from wanvae.nn.streaming import State, Streaming, as_streaming, split_state, streaming_layers


class Row(Streaming):
    """A layer that runs inner layers one after another. State: one entry for each layer.

    A subclass provides ``layers``.
    """

    def layers(self) -> tuple[nn.Module, ...]:
        """Returns the layers in the order they run."""
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

    def count_output(self, frames: int, *, starts: bool) -> int:
        return count_output(self.layers(), frames, starts=starts)

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
    """Runs one step of several layers in a row. The state has one entry for each layer.

    Args:
        recompute: see ``pass_through_again``.
    """
    run = pass_through_again if recompute else pass_through
    x, pointwise, states = run(layers, x, state, region)
    return apply(pointwise, x), states


def pass_through(
    layers: Iterable[nn.Module], x: Tensor, state: State, region: Region | None = None
) -> tuple[Tensor, list[PointwiseFunction], tuple[State, ...]]:
    """Does the same as ``step_through``, but does not apply the pointwise layers at the end.

    Each convolution applies the pointwise layers before it while it copies its input.

    Returns:
        The output, the pointwise layers that are still to be applied to it, and the state.
    """
    layers = tuple(layers)
    states = split_state(state, len(layers))
    wanted = find_regions_between(layers, region)[1:]
    pointwise: list[PointwiseFunction] = []
    new_states = []
    for layer, layer_state, layer_region in zip(layers, states, wanted, strict=True):
        streaming = as_streaming(layer)
        if streaming is None:
            pointwise.append(layer)
            layer_state = ()
        elif isinstance(streaming, CausalConv):
            halfway = streaming.begin(x, layer_state, pointwise)
            del x  # freed before the convolution, unless somebody else holds it
            x, pointwise, layer_state = streaming.finish(halfway, layer_region, bias_apart=True)
            del halfway
        else:
            x, layer_state = streaming.step(apply(pointwise, x), layer_state, layer_region)
            pointwise = []
        new_states.append(layer_state)
    return x, pointwise, tuple(new_states)


def pass_through_again(
    layers: Iterable[nn.Module], x: Tensor, state: State, region: Region | None = None
) -> tuple[Tensor, list[PointwiseFunction], tuple[State, ...]]:
    """Does the same as ``pass_through``, and keeps less for the backward pass.

    Only the tensors between every two blocks are kept. The backward pass computes the tensors
    inside of them again.
    """
    layers = tuple(layers)
    states = split_state(state, len(layers))
    wanted = find_regions_between(layers, region)
    pointwise: list[PointwiseFunction] = []
    new_states: list[State] = []
    for start, stop in cut_into_twos(layers):
        part, first = layers[start:stop], as_streaming(layers[start])
        x, part_states = apply(pointwise, x), states[start:stop]
        pointwise = []
        if first is None or isinstance(first, CausalConv):
            x, pointwise, part_states = pass_through(part, x, part_states, wanted[stop])
        elif len(part) == 1:
            x, new_state = first.recomputed_step(x, part_states[0], wanted[stop])
            part_states = (new_state,)
        else:
            run = checkpoint(step_through, part, x, part_states, wanted[stop], use_reentrant=False)
            x, part_states = cast("tuple[Tensor, tuple[State, ...]]", run)
        new_states += part_states
    return x, pointwise, tuple(new_states)


def cut_into_twos(layers: Sequence[nn.Module]) -> Iterator[tuple[int, int]]:
    """Yields start and stop of parts: two blocks at most, or all layers between two blocks.

    A layer that computes its inner layers again one by one is a part alone.
    """
    start = 0
    while start < len(layers):
        stop = start + 1
        if is_between_blocks(layers[start]):
            while stop < len(layers) and is_between_blocks(layers[stop]):
                stop += 1
        elif stop < len(layers) and all(map(is_block, layers[start : stop + 1])):
            stop += 1
        yield start, stop
        start = stop


def is_between_blocks(layer: nn.Module) -> bool:
    """Returns whether a layer of a row is a convolution or pointwise, and keeps little itself."""
    streaming = as_streaming(layer)
    return streaming is None or isinstance(streaming, CausalConv)


def is_block(layer: nn.Module) -> bool:
    """Returns whether the backward pass computes a layer of a row again as a whole."""
    streaming = as_streaming(layer)
    return not is_between_blocks(layer) and streaming is not None and not streaming.has_blocks


def forward_masked(
    layers: Iterable[nn.Module], x: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes :meth:`Streaming.forward_masked` of layers in a row."""
    for layer in layers:
        streaming = as_streaming(layer)
        if streaming is None:
            x = layer(x)
        else:
            x, lengths = streaming.forward_masked(x, lengths)
    return x, lengths


def input_region(layers: Iterable[nn.Module], region: Region) -> Region:
    """Returns the region that the first layer of a row reads for a region that the last writes."""
    for layer in reversed(streaming_layers(layers)):
        region = layer.input_region(region)
    return region


def find_regions_between(layers: Sequence[nn.Module], region: Region | None) -> list[Region | None]:
    """Returns the region that each layer of a row reads, then ``region``, which the last writes.

    If ``region`` is None, the whole image, all regions are None.
    """
    regions = [region]
    for layer in reversed(layers):
        region = None if region is None else input_region([layer], region)
        regions.insert(0, region)
    return regions


def cropped_layers(layers: Iterable[nn.Module]) -> tuple[Streaming, ...]:
    """Returns the layers of a row that are cropped one by one; a stage gives its inner layers."""
    return tuple(chain.from_iterable(layer.cropped_layers() for layer in streaming_layers(layers)))


def trace_regions(
    layers: Iterable[nn.Module], region: Region
) -> Iterator[tuple[Streaming, Region, Region]]:
    """Yields each of ``cropped_layers``, the region that it reads and the region that it writes.

    Args:
        region: the region that the last layer writes.
    """
    regions = [region]
    in_a_row = cropped_layers(layers)
    for layer in reversed(in_a_row):
        regions.append(layer.input_region(regions[-1]))
    for layer, (read, written) in zip(in_a_row, pairwise(reversed(regions)), strict=True):
        yield layer, read, written


def input_interval(layers: Iterable[nn.Module], interval: Interval) -> Interval:
    """Returns the input frames of a row that some frames of its output depend on."""
    for layer in reversed(streaming_layers(layers)):
        interval = layer.input_interval(interval)
    return interval


def time_factor(layers: Iterable[nn.Module]) -> Fraction:
    """Returns the frames of output of a row for each frame of input, after the first."""
    return math.prod((layer.time_factor() for layer in streaming_layers(layers)), start=Fraction(1))


def space_factor(layers: Iterable[nn.Module]) -> Fraction:
    """Returns the positions of output of a row along a side for each position of input."""
    return math.prod(
        (layer.space_factor() for layer in streaming_layers(layers)), start=Fraction(1)
    )


def count_output(layers: Iterable[nn.Module], frames: int, *, starts: bool) -> int:
    """Returns the frames that a row writes for the next ``frames`` frames of a stream.

    Args:
        starts: whether the stream starts with these frames.
    """
    for layer in streaming_layers(layers):
        frames = layer.count_output(frames, starts=starts)
    return frames


def multiply_adds(layers: Iterable[nn.Module], positions: int, frames: int) -> int:
    """Computes :meth:`Streaming.multiply_adds` of layers in a row."""
    streaming = streaming_layers(layers)
    total = 0
    for index, layer in enumerate(streaming):
        written = int(positions / space_factor(streaming[index + 1 :]) ** 2)
        total += layer.multiply_adds(written, frames)
        frames = layer.count_output(frames, starts=True)
    return total
