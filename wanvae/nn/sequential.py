"""Layers one after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from wanvae.nn.conv import CausalConv
from wanvae.nn.kernels.pointwise import apply
from wanvae.nn.region import Region
from wanvae.nn.streaming import State, Streaming, input_region


class Sequential(Streaming, nn.Sequential):
    """Layers one after another; their states travel as a tuple."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        return step_through(self, x, state, region)

    def input_region(self, region: Region) -> Region:
        return regions_between(tuple(self), region)[0]


def step_through(
    layers: Iterable[nn.Module],
    x: Tensor,
    state: State,
    region: Region | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, State]:
    """One step of several layers in a row; the state holds one entry a layer.

    Layers that are not :class:`Streaming` treat each position alone; the convolution after them
    applies them on its way to its input.

    Args:
        recompute: for the backward pass keep only what goes from layer to layer and compute what
            is inside them again.
    """
    layers = tuple(layers)
    states = (None,) * len(layers) if state is None else state
    wanted = regions_between(layers, region)[1:]
    pointwise: list[nn.Module] = []
    new_states = []
    for layer, layer_state, layer_region in zip(layers, states, wanted, strict=True):
        if not isinstance(layer, Streaming):
            pointwise.append(layer)
            layer_state = ()
        elif isinstance(layer, CausalConv):
            x, layer_state = layer.step(x, layer_state, layer_region, pointwise)
            pointwise = []
        else:
            step = layer.recomputed_step if recompute else layer.step
            x, layer_state = step(apply(pointwise, x), layer_state, layer_region)
            pointwise = []
        new_states.append(layer_state)
    return apply(pointwise, x), tuple(new_states)


def regions_between(layers: Sequence[nn.Module], region: Region | None) -> list[Region | None]:
    """What the first layer reads, what each next one does, and ``region``, the last one's output.

    Where that is all of the image (None), so is the rest.
    """
    regions = [region]
    for layer in reversed(layers):
        region = None if region is None else input_region(layer, region)
        regions.insert(0, region)
    return regions
