"""Squares of neighbouring pixels as channels, and back."""

from __future__ import annotations

from fractions import Fraction

from einops import rearrange
from torch import Tensor

from wanvae.nn.interval import Interval
from wanvae.nn.region import Region, before_repeating, crop, repeated
from wanvae.nn.streaming import State, Streaming


class Patches(Streaming):
    """A layer that only moves values between positions and channels.

    Args:
        size: side of the squares of positions that become the channels of one position.
        rows_first: whether the channels are in the order of ``torch.nn.PixelShuffle``, (channel,
            row, column), instead of Wan2.2's order, (channel, column, row).
    """

    def __init__(self, size: int, *, rows_first: bool = False) -> None:
        super().__init__()
        self.size = size
        self.channels = "(c p q)" if rows_first else "(c q p)"

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), lengths

    def input_interval(self, interval: Interval) -> Interval:
        return interval

    def time_factor(self) -> Fraction:
        return Fraction(1)

    def resamples(self) -> bool:
        return False  # pieces of any length are equally fast

    def multiply_adds(self, positions: int, frames: int) -> int:
        return 0


class Patchify(Patches):
    """``(B, C, T, H, W)`` to ``(B, C * size * size, T, H / size, W / size)``. No state."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        pattern = f"b c t (h p) (w q) -> b {self.channels} t h w"
        return rearrange(x, pattern, p=self.size, q=self.size), ()

    def input_region(self, region: Region) -> Region:
        return repeated(region, self.size)

    def space_factor(self) -> Fraction:
        return Fraction(1, self.size)


class Unpatchify(Patches):
    """The inverse of ``Patchify``."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        pattern = f"b {self.channels} t h w -> b c t (h p) (w q)"
        y = rearrange(x, pattern, p=self.size, q=self.size)
        if region is not None:
            y = crop(y, repeated(self.input_region(region), self.size), region)
        return y, ()

    def input_region(self, region: Region) -> Region:
        return before_repeating(region, self.size)

    def space_factor(self) -> Fraction:
        return Fraction(self.size)
