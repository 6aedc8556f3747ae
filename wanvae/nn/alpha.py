"""Two decoders of the same latents: one decodes colour, the other decodes alpha (Wan-Alpha).

Both run side by side, layer by layer, as one decoder. Between the first and the last layer the
batch holds the clips of the one decoder, then the clips of the other.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from wanvae.nn.coder import CoderSpec, Decoder
from wanvae.nn.interval import Interval
from wanvae.nn.patch import Unpatchify
from wanvae.nn.region import Region
from wanvae.nn.streaming import State, Streaming, require_streaming, split_state


class Beside(Streaming):
    """Two layers of one shape, for the two halves of the batch. State: one entry for each layer."""

    def __init__(self, first: Streaming, second: Streaming) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        states = split_state(state, 2)
        first, second = x.chunk(2)
        y, state_of_first = self.first.step(first, states[0], region)
        z, state_of_second = self.second.step(second, states[1], region)
        return torch.cat([y, z]), (state_of_first, state_of_second)

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2)
        of_first, of_second = lengths.chunk(2)
        y, of_first = self.first.forward_masked(first, of_first)
        z, of_second = self.second.forward_masked(second, of_second)
        return torch.cat([y, z]), torch.cat([of_first, of_second])

    def input_region(self, region: Region) -> Region:
        return self.first.input_region(region)

    def input_interval(self, interval: Interval) -> Interval:
        return self.first.input_interval(interval)

    def time_factor(self) -> Fraction:
        return self.first.time_factor()

    def count_output(self, frames: int, *, starts: bool) -> int:
        return self.first.count_output(frames, starts=starts)

    def space_factor(self) -> Fraction:
        return self.first.space_factor()

    def resamples(self) -> bool:
        return self.first.resamples()

    def multiply_adds(self, positions: int, frames: int) -> int:
        of_first = self.first.multiply_adds(positions, frames)
        return of_first + self.second.multiply_adds(positions, frames)


class EachPosition(Streaming):
    """A layer that treats each position alone, but changes the batch or the channels."""

    def input_region(self, region: Region) -> Region:
        return region

    def input_interval(self, interval: Interval) -> Interval:
        return interval

    def time_factor(self) -> Fraction:
        return Fraction(1)

    def space_factor(self) -> Fraction:
        return Fraction(1)

    def multiply_adds(self, positions: int, frames: int) -> int:
        return 0


class Fork(EachPosition):
    """Gives each half of a doubled batch the same clips. No state."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        return torch.cat([x, x]), ()

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), torch.cat([lengths, lengths])


class JoinAlpha(EachPosition):
    """Adds the second half of the batch to the first half as one more channel. No state.

    The new channel is the mean of all channels, each limited to [-1, 1], as in Wan-Alpha.
    """

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        colour, alpha = x.chunk(2)
        return torch.cat([colour, alpha.clamp(-1, 1).mean(1, keepdim=True)], dim=1), ()

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), lengths.chunk(2)[0]


class AlphaDecoder(Decoder):
    """A decoder of colour, and inside it a decoder ``alpha`` of the same layers.

    Maps latents to ``(B, out_channels, T, H, W)``, where the last channel is alpha. The decoder of
    alpha decodes as many channels as there are of colour; alpha is their mean.
    """

    def __init__(
        self,
        spec: CoderSpec,
        in_channels: int,
        out_channels: int,
        unpatchify: Unpatchify | None = None,
    ) -> None:
        super().__init__(spec, in_channels, out_channels - 1, unpatchify)
        self.alpha = Decoder(spec, in_channels, out_channels - 1, unpatchify)
        # Tuples are no submodules, so each parameter has one name. The layers stay the same
        # objects for each call, because compiled code and states belong to these objects.
        self._core = (Fork(), *lay_beside(super().core(), self.alpha.core()))
        self._shell = (*lay_beside(super().shell(), self.alpha.shell()), JoinAlpha())

    def core(self) -> tuple[nn.Module, ...]:
        return self._core

    def shell(self) -> tuple[nn.Module, ...]:
        return self._shell


def lay_beside(some: tuple[nn.Module, ...], others: tuple[nn.Module, ...]) -> list[Beside]:
    """Returns each layer of a row beside the layer of another row."""
    pairs = zip(require_streaming(some), require_streaming(others), strict=True)
    return [Beside(first, second) for first, second in pairs]
