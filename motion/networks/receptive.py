"""What the outputs of a network depend on: receptive fields and effective kernels."""

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


def effective_kernel(kernel_size: int, dilation: int) -> int:
    """Positions from the first to the last that a dilated kernel sees: ``(k - 1) * d + 1``."""
    return (kernel_size - 1) * dilation + 1


def effective_kernels(config: RVQVAEConfig) -> tuple[tuple[int, ...], ...]:
    """The effective kernels of the residual blocks of each stage of a Resnet1D encoder, in order.

    Raises:
        UserError: the network is not a Resnet1D.
    """
    if config.network != "resnet":
        raise UserError(f"the {config.network} network has no dilated kernels")
    encoder, _ = make_networks_on_meta(config)
    stages = [layer for layer in encoder.modules() if isinstance(layer, Resnet1D)]
    return tuple(tuple(map(find_effective_kernel, stage.blocks())) for stage in stages)


def find_effective_kernel(block: ResConv1DBlock) -> int:
    """The effective kernel of the dilated convolution of a block."""
    return effective_kernel(block.conv1.kernel_size[0], block.conv1.dilation[0])


def receptive_field(config: RVQVAEConfig) -> ReceptiveField:
    """What tokens and frames of a model depend on, in evaluation mode; nothing is computed."""
    encoder, decoder = make_networks_on_meta(config)
    # Frames of token 1, which begin after the frames of token 0.
    first, last = config.first_frames, config.frames_of(2) - 1
    seen = encoder.input_interval(Interval(1, 1))
    used = decoder.input_interval(Interval(first, last))
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
