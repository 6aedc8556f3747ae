"""One causal convolution for every rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanvae.nn.streaming import State, Streaming

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MEMORY_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class CausalConv(Streaming):
    """Convolution of rank ``ndim`` that, along time, sees only the present and the past.

    Each axis is padded with zeros by ``(kernel - 1) * dilation + 1 - stride``, so an axis of length
    ``n * stride`` becomes ``n``. Along time (dim 2 of 1D and 3D inputs) all of it comes before the
    first frame, and in a stream those zeros are replaced by the last frames of the piece before.
    Along space it is split evenly, the odd one at the end: a 3x3 stride-2 convolution pads right
    and bottom by one, as Wan's downsampling does.

    Args:
        ndim: 1 for ``(B, C, T)``, 2 for ``(B, C, H, W)``, 3 for ``(B, C, T, H, W)``.
        kernel_size, stride, dilation: one number for all axes, or one an axis.
        causal: with False time is padded like space (the usual "same" padding): such a layer sees
            the future and cannot stream.
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
    ) -> None:
        super().__init__()
        if ndim not in LAYERS:
            raise ValueError(f"ndim must be 1, 2 or 3, not {ndim}")
        self.ndim = ndim
        self.kernel_size = per_axis(kernel_size, ndim)
        self.stride = per_axis(stride, ndim)
        self.dilation = per_axis(dilation, ndim)
        axes = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        padding = [(k - 1) * d + 1 - s for k, s, d in axes]
        if min(padding) < 0:
            raise ValueError(f"stride {self.stride} skips inputs of a {self.kernel_size} kernel")
        self.causal = causal and ndim != 2
        self.history = padding[0] if self.causal else 0
        if self.causal:
            padding[0] = 0
        self.symmetric_padding = tuple(p // 2 for p in padding)
        # What an uneven axis needs beyond that at its end, in the order of F.pad: last axis first.
        self.extra_padding = [n for p in reversed(padding) for n in (0, p % 2)]
        layer = LAYERS[ndim](in_channels, out_channels, self.kernel_size)
        self.weight, self.bias = layer.weight, layer.bias

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.looks_across_time():
            self.refuse_to_continue(state)
        if not self.history:
            return self._convolve(x, self.weight), ()
        if x.shape[2] % self.stride[0]:
            raise ValueError(
                f"a stride of {self.stride[0]} needs a multiple of it in time, not {x.shape[2]}"
            )
        if state is None and x.shape[2] == 1:
            # Only the last slice of the kernel sees more than zeros: a third of the work.
            padding = [0, 0] * (self.ndim - 1) + [self.history - 1, 0]
            return self._convolve(x, self.weight[:, :, -1:]), (F.pad(x, padding),)
        past = self.start(x) if state is None else state
        x = torch.cat([*past, x], dim=2)
        # A copy, for a view would keep the whole piece alive.
        return self._convolve(x, self.weight), (x[:, :, -self.history :].clone(),)

    def start(self, x: Tensor) -> tuple[Tensor]:
        """The state before the first frame: as many zero frames as the layer looks back."""
        return (x.new_zeros(x.shape[0], x.shape[1], self.history, *x.shape[3:]),)

    def looks_across_time(self) -> bool:
        return not self.causal and self.ndim != 2 and self.kernel_size[0] > 1

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = self.symmetric_padding
        if any(self.extra_padding):
            # Convolutions pad both ends alike, so uneven padding is added beforehand.
            before = [n for p in reversed(padding) for n in (p, p)]
            x = F.pad(x, [a + b for a, b in zip(before, self.extra_padding, strict=True)])
            padding = (0,) * self.ndim
        if needs_onednn(x):
            return torch.mkldnn_convolution(
                x, weight, self.bias, padding, self.stride, self.dilation, 1
            )
        convolve = CONVOLUTIONS[self.ndim]
        return convolve(x, weight, self.bias, self.stride, padding, self.dilation)

    def extra_repr(self) -> str:
        out_channels, in_channels = self.weight.shape[:2]
        return (
            f"{in_channels}, {out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, causal={self.causal}"
        )


def needs_onednn(x: Tensor) -> bool:
    """Whether PyTorch, left alone, might convolve ``x`` with its naive 3D kernel.

    On a CPU it does for a batch of one with few channels, 5 to 20 times slower than through oneDNN.
    """
    return (
        x.dim() == 5
        and x.shape[0] == 1
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
    )


def per_axis(value: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """``value`` for each of ``ndim`` axes."""
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) != ndim:
        raise ValueError(f"{values} has {len(values)} entries for {ndim} axes")
    return values


def use_channels_last(module: nn.Module) -> None:
    """Store the weights of all 2D and 3D convolutions in ``module`` with channels innermost.

    Values do not change. Convolutions then run, and give their outputs, in that layout, the faster
    one on CPUs and GPUs.
    """
    for layer in module.modules():
        if isinstance(layer, CausalConv) and layer.ndim in MEMORY_FORMATS:
            memory_format = MEMORY_FORMATS[layer.ndim]
            layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)
