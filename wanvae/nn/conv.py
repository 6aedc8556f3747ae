"""One causal convolution for every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.interval import Interval
from wanvae.nn.kernels.convolution import Convolve
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.kernels.pointwise import AddBias, PointwiseFunction
from wanvae.nn.masking import zero_padding
from wanvae.nn.region import Region
from wanvae.nn.streaming import State, Streaming, get_tensors

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class ConvInput:
    """The input of a convolution, halfway through its step.

    Attributes:
        joined: the past, then the new frames.
        last: the frames for the next piece; None if nobody has copied them yet.
        dtype: the dtype of the frames for the next piece.
        convolve: how to convolve what the backward pass can make again; None otherwise.
    """

    joined: Tensor
    last: Tensor | None
    dtype: torch.dtype
    convolve: Convolve | None = None


class CausalConv(Streaming):
    """Convolution of rank ``ndim`` that, along time, sees only the present and the past.

    Each axis is padded with zeros by ``(kernel - 1) * dilation + 1 - stride``, so an axis of length
    ``n * stride`` becomes ``n``. Along time (dim 2 of 1D and 3D inputs) all zeros come before the
    first frame. In a stream, the last frames of the piece before replace these zeros. Along space
    the zeros are split evenly, and an odd zero is at the end. For example, a 3x3 convolution of
    stride 2 pads right and bottom by one, as Wan's downsampling does.

    Args:
        ndim: 1 for ``(B, C, T)``, 2 for ``(B, C, H, W)``, 3 for ``(B, C, T, H, W)``.
        kernel_size, stride, dilation: one number for all axes, or one number for each axis.
        causal: False pads time like space (the usual "same" padding). Such a layer sees the future
            and cannot stream.
        bias: whether the convolution adds a bias.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        *,
        causal: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if ndim not in LAYERS:
            raise UserError(f"ndim must be 1, 2 or 3, not {ndim}")
        self.ndim = ndim
        self.kernel_size = expand_to_axes(kernel_size, ndim)
        self.stride = expand_to_axes(stride, ndim)
        self.dilation = expand_to_axes(dilation, ndim)
        axes = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        padding = [(k - 1) * d + 1 - s for k, s, d in axes]
        if min(padding) < 0:
            raise UserError(f"stride {self.stride} skips inputs of a {self.kernel_size} kernel")
        self.causal = causal and ndim != 2
        self.history = padding[0] if self.causal else 0
        if self.causal:
            padding[0] = 0
        self.padding = [(p // 2, p - p // 2) for p in padding]
        layer = LAYERS[ndim](in_channels, out_channels, self.kernel_size, bias=bias)
        self.weight, self.bias = layer.weight, layer.bias

    @property
    def kernel(self) -> Tensor:
        """The weight as the convolution takes it, ``(O, C, ...)``."""
        return self.weight

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        y, _, state = self.finish(self.begin(x, state), region)
        return y, state

    def begin(
        self, x: Tensor, state: State, pointwise: Sequence[PointwiseFunction] = ()
    ) -> ConvInput:
        """Does the first half of a step: puts the past before ``x``.

        The caller can free ``x`` and a state that it gives away before the second half.

        Args:
            pointwise: layers that treat each position alone. They are applied to ``x`` on its way,
                which saves copies.
        """
        if self.looks_across_time():
            self.refuse_to_continue(state)
        kernels = kernels_for(x)
        if not self.history:
            convolve = kernels.convolve_after(x, pointwise)
            if convolve is not None:
                return ConvInput(x, None, x.dtype, convolve)
            convolve = kernels.remember(None, x, pointwise, 0)
            joined = kernels.join(None, x, pointwise, 0)[0] if pointwise else x
            return ConvInput(joined, None, x.dtype, convolve)
        if x.shape[2] % self.stride[0]:
            raise UserError(
                f"a stride of {self.stride[0]} needs a multiple of it in time, not {x.shape[2]}"
            )
        if state is None and x.shape[2] == 1:
            history = self.history - 1 if kernels.fixed_state_shapes else 0
            joined, _ = kernels.join(None, x, pointwise, history)
            last = joined if joined.dtype == x.dtype else None
            # Only the new frame is convolved, see ``finish``.
            return ConvInput(joined, last, x.dtype, kernels.remember(None, x, pointwise, 0))
        past = None if state is None else get_tensors(state)[0]
        joined, last = kernels.join(past, x, pointwise, self.history)
        convolve = kernels.remember(past, x, pointwise, self.history)
        return ConvInput(joined, last, x.dtype, convolve)

    def finish(
        self, halfway: ConvInput, region: Region | None = None, *, bias_apart: bool = False
    ) -> tuple[Tensor, list[PointwiseFunction], State]:
        """Does the second half of a step: convolves.

        Args:
            bias_apart: whether the layers after the convolution may add the bias, where the device
                has kernels for that.

        Returns:
            The output, the pointwise layers that are still to be applied to it, and the state.
        """
        x, kernel, bias = halfway.joined, self.kernel, self.bias
        kernels = kernels_for(x)
        pointwise: list[PointwiseFunction] = []
        if bias is not None and bias_apart and kernels.bias_apart:
            pointwise, bias = [AddBias(bias)], None
        convolve = halfway.convolve or kernels.convolve
        seen = x
        if self.history and x.shape[2] <= self.history:
            # The first frame of a stream. Only the last slice of the kernel sees more than zeros: a
            # third of the work.
            seen, kernel = x[:, :, -1:], kernel[:, :, -1:]
        y = self._convolve(convolve, seen, kernel, bias, region)
        if not self.history:
            return y, pointwise, ()
        last = halfway.last
        if last is None:
            last = kernels.clone(x[:, :, -self.history :], halfway.dtype)
        return y, pointwise, (last,)

    def start(self, x: Tensor) -> tuple[Tensor]:
        """Returns the state before the first frame: as many zero frames as the layer looks back."""
        return (x.new_zeros(*x.shape[:2], self.history, *x.shape[3:]),)

    def looks_across_time(self) -> bool:
        return not self.causal and self.ndim != 2 and self.kernel_size[0] > 1

    def input_region(self, region: Region) -> Region:
        windows = zip(region, self._windows(), strict=True)
        rows, columns = (span.before_convolution(*window) for span, window in windows)
        return rows, columns

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # Zeros follow the end of a clip, as they do if the clip comes alone.
        x = zero_padding(x, lengths) if self.looks_across_time() else x
        return self(x), lengths // self._time_stride

    def input_interval(self, interval: Interval) -> Interval:
        if self.ndim == 2:
            return interval
        before = self.history if self.causal else self.padding[0][0]
        reach = (self.kernel_size[0] - 1) * self.dilation[0] + 1
        return interval.before_convolution(reach, self.stride[0], before)

    def time_factor(self) -> Fraction:
        return Fraction(1, self._time_stride)

    def space_factor(self) -> Fraction:
        return Fraction(1, self.stride[-1] if self.ndim > 1 else 1)

    def multiply_adds(self, positions: int, frames: int) -> int:
        size, frames = self.weight.numel(), frames // self._time_stride
        if not self.history:
            return size * positions * frames
        # The first frame sees only the last slice of the kernel.
        return positions * (size // self.kernel_size[0] + size * (frames - 1))

    @property
    def _time_stride(self) -> int:
        return 1 if self.ndim == 2 else self.stride[0]

    def _windows(self) -> list[tuple[int, int, int]]:
        """Returns extent, stride and padding at the start, along height and along width."""
        axes = zip(self.kernel_size, self.dilation, self.stride, self.padding, strict=True)
        return [((k - 1) * d + 1, s, before) for k, d, s, (before, _) in axes][-2:]

    def _convolve(
        self,
        convolve: Convolve,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        region: Region | None,
    ) -> Tensor:
        padding = list(self.padding)
        if region is not None:
            windows = zip(region, self._windows(), strict=True)
            padding[-2:] = [span.padding(*window) for span, window in windows]
        uniform, cuts = [], []
        axes = zip(padding, weight.shape[2:], self.stride, self.dilation, x.shape[2:], strict=True)
        for (before, after), kernel, stride, dilation, size in axes:
            # PyTorch pads both ends equally: pad by the larger number, and cut the output.
            skipped = -(-max(0, after - before) // stride)
            uniform.append(before + skipped * stride)
            cuts.append(
                (skipped, (size + before + after - (kernel - 1) * dilation - 1) // stride + 1)
            )
        y = convolve(x, weight, bias, self.stride, uniform, self.dilation)
        for axis, (start, length) in enumerate(cuts, start=2):
            y = y if y.shape[axis] == length else y.narrow(axis, start, length)
        return y

    def extra_repr(self) -> str:
        out_channels, in_channels = self.weight.shape[:2]
        return (
            f"{in_channels}, {out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, causal={self.causal}"
        )


def expand_to_axes(value: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Returns one number for each of ``ndim`` axes, from one number for all or one for each."""
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) != ndim:
        raise UserError(f"{values} has {len(values)} entries for {ndim} axes")
    return values


def use_channels_last(module: nn.Module) -> None:
    """Stores the weights of all convolutions in ``module`` with channels innermost.

    Values do not change. Convolutions then compute and return their outputs in this layout, which
    is faster on CPUs and GPUs.
    """
    for layer in module.modules():
        if isinstance(layer, CausalConv):
            weight = layer.weight.data
            layer.weight.data = weight.movedim(1, -1).contiguous().movedim(-1, 1)
