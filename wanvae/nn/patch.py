"""Squares of neighbouring pixels as channels, and back."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from wanvae.nn.region import Region, before_repeating, crop, repeated
from wanvae.nn.streaming import State, Streaming


class Patchify(Streaming):
    """``(B, C, T, H, W)`` to ``(B, C * size * size, T, H / size, W / size)``.

    The order of the channels is that of Wan2.2: (channel, column, row). No state.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        pattern = "b c t (h p) (w q) -> b (c q p) t h w"
        return rearrange(x, pattern, p=self.size, q=self.size), ()

    def input_region(self, region: Region) -> Region:
        return repeated(region, self.size)


class Unpatchify(Streaming):
    """The inverse of ``Patchify``.

    Args:
        rows_first: whether the order of the channels is (channel, row, column), that of
            ``torch.nn.PixelShuffle``, instead.
    """

    def __init__(self, size: int, *, rows_first: bool = False) -> None:
        super().__init__()
        self.size = size
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
