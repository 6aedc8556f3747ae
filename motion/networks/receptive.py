"""What the outputs of a network depend on: receptive fields and effective kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import nn

from motion.config import RVQVAEConfig
from motion.networks.build import make_networks
from motion.networks.resnet import Repeat, Resnet1D
from motion.networks.structure import body_of, row_of
from wanvae.errors import UserError
from wanvae.nn import CausalConv, DenseBlock, Downsample, ResConv1DBlock, TimeAttentionBlock
from wanvae.nn.norm import GroupNorm
from wanvae.nn.resample import Upsample
from wanvae.nn.residual import SequentialResidual


@dataclass(frozen=True)
class ReceptiveField:
    """What a token depends on, and what its frames do.

    "Before" and "after" count what a token, or its frames, see besides itself, or themselves; None
    is everything there is. Away from the first token, which may have fewer frames.

    Attributes:
        frames_before, frames_after: frames that a token depends on, before its first and after its
            last frame.
        tokens_before, tokens_after: tokens that the frames of a token depend on.
        frames_of_token: how many it has.
    """

    frames_before: int | None
    frames_after: int | None
    tokens_before: int | None
    tokens_after: int | None
    frames_of_token: int

    @property
    def frames(self) -> int | None:
        """Frames that a token sees, its own included; None is all."""
        if self.frames_before is None or self.frames_after is None:
            return None
        return self.frames_before + self.frames_of_token + self.frames_after

    @property
    def lookahead(self) -> int | None:
        """How many frames a stream has to see after a frame until its token is known, at most.

        None is all: such a model cannot stream. Of a causal model only the rest of the token.
        """
        return None if self.frames_after is None else self.frames_of_token - 1 + self.frames_after


@dataclass(frozen=True)
class Span:
    """Positions from ``first`` to ``last``, both included, of an endless signal."""

    first: float
    last: float

    def before_convolution(self, reach: int, stride: int, before: int) -> Span:
        """What a window of ``reach`` positions sees that begins ``before`` its own."""
        first, last = (end * stride - before for end in (self.first, self.last))
        return Span(first, last + reach - 1)

    def halved(self, offset: int) -> Span:
        """``(position + offset) // 2`` of both ends."""
        ends = (self.first, self.last)
        first, last = (end if math.isinf(end) else (end + offset) // 2 for end in ends)
        return Span(first, last)

    def union(self, other: Span) -> Span:
        return Span(min(self.first, other.first), max(self.last, other.last))


EVERYTHING = Span(-math.inf, math.inf)


def effective_kernel(kernel_size: int, dilation: int) -> int:
    """Positions from the first to the last that a dilated kernel sees: ``(k - 1) * d + 1``."""
    return (kernel_size - 1) * dilation + 1


def effective_kernels(config: RVQVAEConfig) -> tuple[tuple[int, ...], ...]:
    """The effective kernels of the residual blocks of each stage of a Resnet1D encoder, in order.

    Raises:
        ValueError: the network is another.
    """
    if config.network != "resnet":
        raise UserError(f"the {config.network} network has no dilated kernels")
    resnets = [m for m in encoder_and_decoder(config)[0].modules() if isinstance(m, Resnet1D)]
    return tuple(
        tuple(effective_kernel(b.conv1.kernel_size[0], b.conv1.dilation[0]) for b in resnet.model)
        for resnet in resnets
    )


def receptive_field(config: RVQVAEConfig) -> ReceptiveField:
    """What tokens and frames of a model depend on, in evaluation mode; nothing is computed."""
    encoder, decoder = encoder_and_decoder(config)
    # Frames of token 1, which begin where those of token 0 end.
    first, last = config.first_frames, config.frames_of(2) - 1
    seen = input_span(encoder, Span(1, 1))
    used = input_span(decoder, Span(first, last))
    return ReceptiveField(
        frames_before=finite(first - seen.first),
        frames_after=finite(seen.last - last),
        tokens_before=finite(1 - used.first),
        tokens_after=finite(used.last - 1),
        frames_of_token=config.factor,
    )


def encoder_and_decoder(config: RVQVAEConfig) -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        return make_networks(config)


def finite(extent: float) -> int | None:
    return None if math.isinf(extent) else int(extent)


@singledispatch
def input_span(layer: nn.Module, span: Span) -> Span:
    """The inputs of a layer that a span of its outputs depends on.

    Layers that are neither in a row nor named below treat each position alone.
    """
    return span_before(row_of(layer) or (), span)


def span_before(layers: tuple[nn.Module, ...], span: Span) -> Span:
    for layer in reversed(layers):
        span = input_span(layer, span)
    return span


@input_span.register
def _(layer: CausalConv, span: Span) -> Span:
    reach = effective_kernel(layer.kernel_size[0], layer.dilation[0])
    before = layer.history if layer.causal else layer.padding[0][0]
    return span.before_convolution(reach, layer.stride[0], before)


@input_span.register
def _(layer: Repeat, span: Span) -> Span:
    return span.halved(0)


@input_span.register
def _(layer: Downsample, span: Span) -> Span:
    return span.before_convolution(reach=3, stride=2, before=2)


@input_span.register
def _(layer: Upsample, span: Span) -> Span:
    return span.halved(1).before_convolution(reach=3, stride=1, before=2)


@input_span.register(ResConv1DBlock)
@input_span.register(SequentialResidual)
def _(layer: ResConv1DBlock | SequentialResidual, span: Span) -> Span:
    return span_before(body_of(layer), span).union(input_span(layer.shortcut, span))


@input_span.register
def _(layer: DenseBlock, span: Span) -> Span:
    for part in reversed(layer.layers):
        span = span.union(input_span(part, span))
    return span


@input_span.register
def _(layer: TimeAttentionBlock, span: Span) -> Span:
    if not layer.causal:
        return EVERYTHING
    past = math.inf if layer.window is None else layer.window - 1
    return Span(span.first - past, span.last)


@input_span.register
def _(layer: GroupNorm, span: Span) -> Span:
    return EVERYTHING
