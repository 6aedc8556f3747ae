"""The layers of tiny autoencoders (TAEHV), for ``(B, C, T, H, W)``.

Their convolutions see single frames, or a few frames as channels of one. The weights keep the
shapes of the published files, ``(O, frames * C, height, width)``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction

import torch
from einops import rearrange
from torch import Tensor, nn

from wanvae.nn.conv import CausalConv
from wanvae.nn.interval import Interval
from wanvae.nn.kernels.convolution import Convolve
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.region import Region, before_repeating, crop, repeated
from wanvae.nn.residual import SequentialResidual
from wanvae.nn.sequential import Sequential
from wanvae.nn.streaming import Pointwise, State, as_streaming


class SoftClamp(Pointwise):
    """``3 * tanh(x / 3)``: keeps latents within [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Affine(Pointwise):
    """``x * scale + shift``, one number for all channels, or one for each channel."""

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        self.scale = tuple(scale)
        self.shift = tuple(shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * spread(self.scale, x) + spread(self.shift, x)


def spread(values: Sequence[float], x: Tensor) -> Tensor | float:
    """Returns numbers for the channels of ``x``.

    The device writes them itself. A copy from the host would not be allowed in a CUDA graph.
    """
    if len(values) == 1:
        return values[0]
    return torch.cat([x.new_full((1, 1, 1, 1), value) for value in values])


class WithLogvar(Pointwise):
    """Moments of latents without spread: the latents, then ``logvar`` in as many channels."""

    def __init__(self, logvar: float) -> None:
        super().__init__()
        self.logvar = logvar

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x, self.logvar)], dim=1)


class FlatConv(CausalConv):
    """A convolution whose weight ``(O, frames * C, size, size)`` has no axis of time.

    Space is padded evenly; with a stride of 2, by one at the top and the left.

    Args:
        size: height and width of the kernel.
        stride: stride along height and width.
        frames: frames that the kernel sees.
        pooled: whether each group of ``frames`` frames becomes one frame. Then the earliest frame
            is the first among the channels of the weight, otherwise the latest.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        frames: int = 1,
        pooled: bool = False,
        bias: bool = True,
    ) -> None:
        strides = (frames if pooled else 1, stride, stride)
        super().__init__(3, in_channels, out_channels, (frames, size, size), strides, bias=bias)
        self.padding = [(after, before) for before, after in self.padding]
        self.pooled = pooled
        by_time = self.weight.data
        by_time = by_time if pooled else by_time.flip(2)
        self.weight = nn.Parameter(by_time.movedim(2, 1).flatten(1, 2).contiguous())

    @property
    def kernel(self) -> Tensor:
        frames = self.kernel_size[0]
        if frames == 1:
            return self.weight.unsqueeze(2)
        by_frame = self.weight.unflatten(1, (frames, -1))
        return (by_frame if self.pooled else by_frame.flip(1)).movedim(1, 2)

    def count_output(self, frames: int, *, starts: bool) -> int:
        # A group of frames is pooled from the start of a stream on.
        return frames // self.stride[0]


class DoublingConv(FlatConv):
    """Doubles height and width by repetition, then convolves each frame, 3x3 and without bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, bias=False)

    def _convolve(
        self,
        convolve: Convolve,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        region: Region | None,
    ) -> Tensor:
        images = rearrange(x, "b c t h w -> (b t) c h w")
        y = kernels_for(images).convolve_doubled(images, self.weight, bias)
        if region is not None:
            # Zeros are padded on all sides. Sides inside the image are wrong and are cut off.
            y = crop(y, repeated(self.input_region(region), 2), region)
        return rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])

    def input_region(self, region: Region) -> Region:
        return before_repeating(super().input_region(region), 2)

    def space_factor(self) -> Fraction:
        return Fraction(2)


class MemoryBlock(SequentialResidual):
    """Three 3x3 convolutions, the first of which also sees the frame before; ReLU after the sum."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            [
                FlatConv(dim, dim, 3, frames=2),
                nn.ReLU(),
                FlatConv(dim, dim, 3),
                nn.ReLU(),
                FlatConv(dim, dim, 3),
            ],
            post_activation=nn.ReLU(),
            name="conv",
        )


class TimePool(Sequential):
    """Makes one frame of each group of ``frames`` frames."""

    def __init__(self, dim: int, frames: int) -> None:
        pool = FlatConv(dim, dim, 1, frames=frames, pooled=True, bias=False)
        super().__init__(OrderedDict(conv=pool))


class TimeGrow(Sequential):
    """Makes ``frames`` frames of each frame.

    Args:
        skipped: frames that are left out at the start of a stream.
    """

    def __init__(self, dim: int, frames: int, *, skipped: int = 0) -> None:
        super().__init__(OrderedDict(conv=FlatConv(dim, frames * dim, 1, bias=False)))
        self.frames = frames
        self.skipped = skipped

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        y, new_state = super().step(x, state, region)
        if self.frames > 1:
            # The first channels are the earliest frame. Channels stay innermost.
            y = rearrange(y, "b (f c) t h w -> b (t f) h w c", f=self.frames).movedim(-1, 1)
        return (y if state is not None else y[:, :, self.skipped :]), new_state

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), lengths * self.frames - self.skipped

    def input_interval(self, interval: Interval) -> Interval:
        return interval.divided(self.frames, offset=self.skipped)

    def time_factor(self) -> Fraction:
        return Fraction(self.frames)

    def count_output(self, frames: int, *, starts: bool) -> int:
        return frames * self.frames - (self.skipped if starts else 0)


def encoder_layers(
    channels: int, dim: int, z_dim: int, pools: Sequence[int], blocks: int
) -> list[nn.Module]:
    """Returns the layers of an encoder. Each of its stages halves height and width.

    Args:
        channels: channels of the pixels, or of squares of pixels.
        dim: channels inside.
        pools: frames that each stage makes one frame of.
        blocks: blocks of each stage.
    """
    layers: list[nn.Module] = [FlatConv(channels, dim, 3), nn.ReLU()]
    for frames in pools:
        layers += [TimePool(dim, frames), FlatConv(dim, dim, 3, stride=2, bias=False)]
        layers += [MemoryBlock(dim) for _ in range(blocks)]
    return [*layers, FlatConv(dim, z_dim, 3)]


def decoder_layers(
    z_dim: int, dims: Sequence[int], channels: int, grows: Sequence[int], blocks: int, skipped: int
) -> list[nn.Module]:
    """Returns the layers of a decoder. Each of its stages doubles height and width.

    Args:
        dims: channels of each stage, and after the last one.
        channels: channels of the pixels, or of squares of pixels.
        grows: frames that each stage makes of one frame.
        blocks: blocks of each stage.
        skipped: frames that are left out at the start of a video. The last stage does so, because
            nothing after it looks back.
    """
    layers: list[nn.Module] = [SoftClamp(), FlatConv(z_dim, dims[0], 3), nn.ReLU()]
    for stage, frames in enumerate(grows):
        dim, last = dims[stage], stage == len(grows) - 1
        layers += [MemoryBlock(dim) for _ in range(blocks)]
        # Published files double at this place. Growing first gives the same with less work.
        layers += [nn.Identity(), TimeGrow(dim, frames, skipped=skipped if last else 0)]
        layers.append(DoublingConv(dim, dims[stage + 1]))
    return [*layers, nn.ReLU(), FlatConv(dims[-1], channels, 3)]


def in_streaming_rows(layers: Sequence[nn.Module]) -> tuple[Sequential, ...]:
    """Returns the layers in rows of one streaming layer each, with the pointwise layers before it.

    Pointwise layers at the end belong to the last row.
    """
    rows: list[list[nn.Module]] = [[]]
    for layer in layers:
        if rows[-1] and as_streaming(rows[-1][-1]) is not None:
            rows.append([])
        rows[-1].append(layer)
    if len(rows) > 1 and as_streaming(rows[-1][-1]) is None:
        rows[-2:] = [rows[-2] + rows[-1]]
    return tuple(Sequential(*row) for row in rows)
