"""Halving and doubling of space and time between the stages of a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from wanvae.nn.conv import CausalConv
from wanvae.nn.streaming import State, Streaming


class Upsample2x(nn.Module):
    """Nearest-neighbour doubling of ``(B, C, H, W)`` in both axes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest-exact")


class Resample(Streaming):
    """Changes the size of each frame, and of time if ``temporal``.

    ``resample`` works on each frame alone and ``time_conv`` along time (Wan's names). In 1D there
    is no space, and what remains of the convolution over it is a 1-conv. The first frame of a
    stream stands for itself: resampling of time passes it through.
    """

    def __init__(self, ndim: int, resize: nn.Module, conv: CausalConv) -> None:
        super().__init__()
        self.ndim = ndim
        self.resample = nn.Sequential(resize, conv)

    def _per_frame(self, x: Tensor) -> Tensor:
        if self.ndim != 3:
            return self.resample(x)
        y = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])


class Downsample(Resample):
    """Halves space, and time if ``temporal``: 1 + 2n frames become 1 + n, later 2n become n.

    State: the last frame after the spatial convolution.
    """

    def __init__(self, ndim: int, dim: int, *, temporal: bool) -> None:
        kernel, stride = (1, 1) if ndim == 1 else (3, 2)
        conv = CausalConv(min(ndim, 2), dim, dim, kernel, stride)
        super().__init__(ndim, nn.Identity(), conv)
        self.time_conv = None
        if temporal:
            kernel, stride = along_time(ndim, 3), along_time(ndim, 2)
            self.time_conv = CausalConv(ndim, dim, dim, kernel, stride)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        x = self._per_frame(x)
        if self.time_conv is None:
            return x, ()
        if state is not None:
            return self.time_conv.step(x, state)
        first, rest = x[:, :, :1], x[:, :, 1:]
        if rest.shape[2] == 0:
            return first, (first,)
        y, state = self.time_conv.step(rest, (first,))
        return torch.cat([first, y], dim=2), state


class Upsample(Resample):
    """Doubles space, and time if ``temporal``: 1 + n frames become 1 + 2n, later n become 2n.

    State: that of ``time_conv``, which never sees the first frame: its history starts as zeros.
    """

    def __init__(self, ndim: int, in_dim: int, out_dim: int, *, temporal: bool) -> None:
        conv = CausalConv(min(ndim, 2), in_dim, out_dim, 1 if ndim == 1 else 3)
        super().__init__(ndim, nn.Identity() if ndim == 1 else Upsample2x(), conv)
        self.time_conv = None
        if temporal:
            self.time_conv = CausalConv(ndim, in_dim, 2 * in_dim, along_time(ndim, 3))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.time_conv is None:
            return self._per_frame(x), ()
        if state is not None:
            x, state = self._double_time(x, state)
            return self._per_frame(x), state
        first, rest = x[:, :, :1], x[:, :, 1:]
        state = self.time_conv.start(x)
        if rest.shape[2] == 0:
            return self._per_frame(first), state
        rest, state = self._double_time(rest, state)
        return self._per_frame(torch.cat([first, rest], dim=2)), state

    def _double_time(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.time_conv.step(x, state)
        # The first half of the channels is the earlier frame.
        return rearrange(y, "b (two c) t ... -> b c (t two) ...", two=2), state


def along_time(ndim: int, size: int) -> tuple[int, ...]:
    """A kernel or stride of ``size`` in time and 1 in space."""
    if ndim == 2:
        raise ValueError("a 2D network has no time to resample")
    return (size,) + (1,) * (ndim - 1)
