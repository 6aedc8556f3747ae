"""Taps of convolutions that training windows never reach.

The outer taps of a dilated convolution see nothing but padding if the dilation is at least as large
as the number of positions of a window. They get no gradient, so they would keep the random numbers
they start with, and add noise to all motion that is longer than a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from motion.config import RVQVAEConfig
from wanvae.nn import CausalConv, Streaming
from wanvae.nn.residual import RowResidual
from wanvae.nn.sequential import Row
from wanvae.nn.streaming import as_streaming


@dataclass(frozen=True, eq=False)
class UnreachedTaps:
    """Taps of a convolution that see only padding in every window.

    Attributes:
        convolution: the convolution.
        taps: their places in the kernel, from the past to the future.
        frames: the shortest window that all taps of the convolution reach into.
    """

    convolution: CausalConv
    taps: tuple[int, ...]
    frames: int

    @property
    def weights(self) -> Tensor:
        """A copy of their weights, ``(O, C, taps)``."""
        return self.convolution.weight[:, :, list(self.taps)]

    @torch.no_grad()
    def zero(self) -> None:
        """Sets their weights to zero."""
        self.convolution.weight[:, :, list(self.taps)] = 0


def find_unreached_taps(
    config: RVQVAEConfig, encoder: Streaming, decoder: Streaming, window: int
) -> list[UnreachedTaps]:
    """Returns the taps of encoder and decoder that windows of so many frames never reach.

    Only convolutions of residual blocks and between them are searched. Only they can be dilated.
    """
    tokens = config.tokens_of(window)
    places = [
        *find_convolutions([encoder], config.frames_of(tokens)),
        *find_convolutions([decoder], tokens),
    ]
    frames = config.frames_of(tokens)
    found = []
    for convolution, length in places:
        taps = tuple(
            tap
            for tap in range(convolution.kernel_size[0])
            if not reaches(convolution, tap, length)
        )
        if taps:
            needed = length
            while not all(reaches(convolution, tap, needed) for tap in taps):
                needed += 1
            # Positions are as far apart here as in the window.
            found.append(UnreachedTaps(convolution, taps, -(-needed * frames // length)))
    return found


def find_convolutions(layers: Iterable[nn.Module], length: int) -> Iterator[tuple[CausalConv, int]]:
    """Yields the convolutions of layers in a row, each with the number of positions it reads."""
    for layer in layers:
        streaming = as_streaming(layer)
        if streaming is None:
            continue
        if isinstance(streaming, CausalConv):
            yield streaming, length
        elif isinstance(streaming, Row):
            yield from find_convolutions(streaming.layers(), length)
        elif isinstance(streaming, RowResidual):
            yield from find_convolutions(streaming.body_layers(), length)
        length = streaming.count_output(length, starts=True)


def reaches(convolution: CausalConv, tap: int, length: int) -> bool:
    """Returns whether a tap sees any of ``length`` positions, and not only padding."""
    before = convolution.history if convolution.causal else convolution.padding[0][0]
    first, stride = tap * convolution.dilation[0] - before, convolution.stride[0]
    places = range(first, first + length // stride * stride, stride)
    return any(0 <= place < length for place in places)
