"""Halving and doubling of space and time between the stages of a network."""

from __future__ import annotations

from fractions import Fraction

import torch
from einops import rearrange
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.conv import CausalConv
from wanvae.nn.interval import Interval
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.region import Region, before_repeating, crop, repeated
from wanvae.nn.streaming import State, Streaming


class StoredConv(nn.Module):
    """The weights of a 1-conv that checkpoints hold, but that no result depends on.

    They are kept so that nothing is lost from file to file. They are not parameters, because
    nothing trains them.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_dim, in_dim, 1, 1, 1))
        self.register_buffer("bias", torch.zeros(out_dim))


class Resample(Streaming):
    """A layer that changes the size of each frame, and the number of frames if ``temporal``.

    ``resample`` works on each frame alone, and ``time_conv`` along time. These are Wan's names;
    ``resample.1`` holds the parameters of the convolution of each frame. In 1D there is no space,
    and the convolution over space becomes a 1-conv. Resampling of time passes the first frame of a
    stream through unchanged. So with ``frames_alone``, where each frame is the first frame of a
    stream of its own, ``time_conv`` is only stored.
    """

    def __init__(self, ndim: int, conv: CausalConv) -> None:
        super().__init__()
        self.ndim = ndim
        self.resample = nn.Sequential(nn.Identity(), conv)
        self.time_conv: CausalConv | StoredConv | None = None

    @property
    def along_time(self) -> CausalConv | None:
        """The convolution that resamples time; None if the number of frames stays the same."""
        return self.time_conv if isinstance(self.time_conv, CausalConv) else None

    @property
    def conv(self) -> CausalConv:
        """The convolution of each frame."""
        conv = self.resample[1]
        assert isinstance(conv, CausalConv)
        return conv

    def resize(self, images: Tensor, region: Region | None) -> Tensor:
        """Resamples frames ``(B, C, H, W)``, or in 1D positions ``(B, C, T)``."""
        raise self._unanswered("resize")

    def _per_frame(self, x: Tensor, region: Region | None) -> Tensor:
        if self.ndim != 3:
            return self.resize(x, region)
        y = self.resize(rearrange(x, "b c t h w -> (b t) c h w"), region)
        return rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])


class Downsample(Resample):
    """Halves space, and time if ``temporal``: 1 + 2n frames become 1 + n, later 2n become n.

    State: the last frame after the spatial convolution.
    """

    def __init__(self, ndim: int, dim: int, *, temporal: bool, frames_alone: bool = False) -> None:
        kernel, stride = (1, 1) if ndim == 1 else (3, 2)
        super().__init__(ndim, CausalConv(min(ndim, 2), dim, dim, kernel, stride))
        if temporal and frames_alone:
            self.time_conv = StoredConv(dim, dim)
        elif temporal:
            kernel, stride = in_time(ndim, 3), in_time(ndim, 2)
            self.time_conv = CausalConv(ndim, dim, dim, kernel, stride)

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        x, conv = self._per_frame(x, region), self.along_time
        if conv is None:
            return x, ()
        if state is not None:
            return conv.step(x, state)
        first, rest = x[:, :, :1], x[:, :, 1:]
        if rest.shape[2] == 0:
            return first, (first.clone(),)
        y, state = conv.step(rest, (first,))
        return torch.cat([first, y], dim=2), state

    def input_region(self, region: Region) -> Region:
        return self.conv.input_region(region)

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), lengths if self.along_time is None else 1 + (lengths - 1) // 2

    def input_interval(self, interval: Interval) -> Interval:
        if self.along_time is None:
            return interval
        return interval.before_convolution(reach=3, stride=2, before=2)

    def time_factor(self) -> Fraction:
        return Fraction(1) if self.along_time is None else Fraction(1, 2)

    def space_factor(self) -> Fraction:
        return self.conv.space_factor()

    def multiply_adds(self, positions: int, frames: int) -> int:
        total = self.conv.multiply_adds(positions, frames)
        if self.along_time is not None:
            # The first frame counts as two frames, because it stands for a pair.
            total += self.along_time.multiply_adds(positions, frames + 1)
        return total

    def resize(self, images: Tensor, region: Region | None) -> Tensor:
        return self.conv.step(images, None, region)[0]


class Upsample(Resample):
    """Doubles space, and time if ``temporal``: 1 + n frames become 1 + 2n, later n become 2n.

    State: the state of ``time_conv``, which starts with zeros and never sees the first frame.
    """

    def __init__(
        self,
        ndim: int,
        in_dim: int,
        out_dim: int,
        *,
        temporal: bool,
        frames_alone: bool = False,
    ) -> None:
        super().__init__(ndim, CausalConv(min(ndim, 2), in_dim, out_dim, 1 if ndim == 1 else 3))
        if temporal and frames_alone:
            self.time_conv = StoredConv(in_dim, 2 * in_dim)
        elif temporal:
            self.time_conv = CausalConv(ndim, in_dim, 2 * in_dim, in_time(ndim, 3))

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        conv = self.along_time
        if conv is None:
            return self._per_frame(x, region), ()
        if state is not None:
            x, state = self._double_time(conv, x, state)
            return self._per_frame(x, region), state
        first, rest = x[:, :, :1], x[:, :, 1:]
        state = conv.start(x)
        if rest.shape[2] == 0:
            return self._per_frame(first, region), state
        rest, state = self._double_time(conv, rest, state)
        return self._per_frame(torch.cat([first, rest], dim=2), region), state

    def input_region(self, region: Region) -> Region:
        return before_repeating(self.conv.input_region(region), 2)

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), lengths if self.along_time is None else 1 + 2 * (lengths - 1)

    def input_interval(self, interval: Interval) -> Interval:
        if self.along_time is None:
            return interval
        return interval.divided(2, offset=1).before_convolution(reach=3, stride=1, before=2)

    def time_factor(self) -> Fraction:
        return Fraction(1 if self.along_time is None else 2)

    def space_factor(self) -> Fraction:
        return Fraction(1 if self.ndim == 1 else 2)

    def multiply_adds(self, positions: int, frames: int) -> int:
        if self.along_time is None:
            return self.conv.multiply_adds(positions, frames)
        read = positions // int(self.space_factor()) ** 2
        doubled = self.conv.multiply_adds(positions, 2 * frames - 1)
        return doubled + self.along_time.multiply_adds(read, frames)

    def resize(self, images: Tensor, region: Region | None) -> Tensor:
        if self.ndim == 1:
            return self.conv(images)
        y = kernels_for(images).convolve_doubled(images, self.conv.weight, self.conv.bias)
        if region is None:
            return y
        # The convolution pads zeros on all sides. Sides inside the image are wrong and are cut off.
        return crop(y, repeated(self.input_region(region), 2), region)

    def _double_time(self, conv: CausalConv, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, pointwise, state = conv.finish(conv.begin(x, state), bias_apart=True)
        return kernels_for(y).pair_frames(y, pointwise), state


def in_time(ndim: int, size: int) -> tuple[int, ...]:
    """Returns a kernel or stride of ``size`` in time and 1 in space."""
    if ndim == 2:
        raise UserError("a 2D network has no time to resample")
    return (size,) + (1,) * (ndim - 1)
