"""Squares of neighbouring pixels as channels, and back."""

from __future__ import annotations

from fractions import Fraction

from einops import rearrange
from torch import Tensor

from wanvae.nn.interval import Interval
from wanvae.nn.region import Region, before_repeating, crop, repeated
from wanvae.nn.streaming import State, Streaming


class Patches(Streaming):
    """A layer that only moves values between positions and channels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

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
    """``(B, C, T, H, W)`` to ``(B, C * size * size, T, H / size, W / size)``.

    The channels are in Wan2.2's order: (channel, column, row). No state.
    """

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        pattern = "b c t (h p) (w q) -> b (c q p) t h w"
        return rearrange(x, pattern, p=self.size, q=self.size), ()

    def input_region(self, region: Region) -> Region:
        return repeated(region, self.size)

    def space_factor(self) -> Fraction:
        return Fraction(1, self.size)


class Unpatchify(Patches):
    """The inverse of ``Patchify``.

    Args:
        rows_first: whether the channels are in the order of ``torch.nn.PixelShuffle`` instead:
            (channel, row, column).
    """

    def __init__(self, size: int, *, rows_first: bool = False) -> None:
        super().__init__(size)
        self.rows_first = rows_first

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        channels = "(c p q)" if self.rows_first else "(c q p)"
        pattern = f"b {channels} t h w -> b c t (h p) (w q)"
        y = rearrange(x, pattern, p=self.size, q=self.size)
        if region is not None:
            y = crop(y, repeated(self.input_region(region), self.size), region)
        return y, ()

    def input_region(self, region: Region) -> Region:
        return before_repeating(region, self.size)

    def space_factor(self) -> Fraction:
        return Fraction(self.size)
