"""Receptive fields and effective kernels of networks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from motion.config import RVQVAEConfig
from motion.networks.build import make_networks
from motion.networks.resnet import Resnet1D
from wanvae.errors import UserError
from wanvae.nn import ResConv1DBlock, Streaming
from wanvae.nn.interval import Interval


@dataclass(frozen=True)
class ReceptiveField:
    """The frames that a token depends on, and the tokens that its frames depend on.

    The numbers hold for every token except the first, which may have fewer frames. None is all
    frames, or all tokens.

    Attributes:
        frames_before, frames_after: number of frames that a token depends on, before its first
            frame and after its last frame.
        tokens_before, tokens_after: number of tokens before and after a token that the decoded
            frames of the token depend on.
        frames_of_token: number of frames of a token.
    """

    frames_before: int | None
    frames_after: int | None
    tokens_before: int | None
    tokens_after: int | None
    frames_of_token: int

    @property
    def frames(self) -> int | None:
        """Number of frames that a token sees, its own frames included; None is all."""
        if self.frames_before is None or self.frames_after is None:
            return None
        return self.frames_before + self.frames_of_token + self.frames_after

    @property
    def lookahead(self) -> int | None:
        """The most frames that must follow a frame before its token is known.

        None is all frames: such a model cannot stream. A causal model only needs the rest of the
        frames of the token.
        """
        return None if self.frames_after is None else self.frames_of_token - 1 + self.frames_after


def effective_kernel(kernel_size: int, dilation: int) -> int:
    """Returns the extent of a dilated kernel in positions: ``(k - 1) * d + 1``."""
    return (kernel_size - 1) * dilation + 1


def effective_kernels(config: RVQVAEConfig) -> tuple[tuple[int, ...], ...]:
    """Returns the effective kernels of the blocks of each stage of a Resnet1D encoder, in order.

    Raises:
        UserError: the network is not a Resnet1D.
    """
    if config.network != "resnet":
        raise UserError(f"the {config.network} network has no dilated kernels")
    encoder, _ = make_networks_on_meta(config)
    stages = [layer for layer in encoder.modules() if isinstance(layer, Resnet1D)]
    return tuple(tuple(map(find_effective_kernel, stage.blocks())) for stage in stages)


def find_effective_kernel(block: ResConv1DBlock) -> int:
    """Returns the effective kernel of the dilated convolution of a block."""
    return effective_kernel(block.conv1.kernel_size[0], block.conv1.dilation[0])


def receptive_field(config: RVQVAEConfig) -> ReceptiveField:
    """Returns the receptive field of a model in evaluation mode, without running the model."""
    encoder, decoder = make_networks_on_meta(config)
    # Frames of token 1, which begin after the frames of token 0.
    first, last = config.first_frames, config.frames_of(2) - 1
    seen = encoder.input_interval(Interval(1, 1))
    smoothing = config.smoothing
    used = decoder.input_interval(Interval(first - smoothing.before, last + smoothing.after))
    return ReceptiveField(
        frames_before=count_or_none(first - seen.first),
        frames_after=count_or_none(seen.last - last),
        tokens_before=count_or_none(1 - used.first),
        tokens_after=count_or_none(used.last - 1),
        frames_of_token=config.factor,
    )


def make_networks_on_meta(config: RVQVAEConfig) -> tuple[Streaming, Streaming]:
    with torch.device("meta"):
        return make_networks(config)


def count_or_none(extent: float) -> int | None:
    return None if math.isinf(extent) else int(extent)
