"""The networks of the published motion tokenizers: dilated residual blocks between resamplings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from torch import Tensor, nn

from motion.config import MotionNorm, ResnetConfig
from wanvae.errors import UserError
from wanvae.nn import CausalConv, ResConv1DBlock, Sequential, State, Streaming, TimeAttentionBlock
from wanvae.nn.interval import Interval
from wanvae.nn.norm import NormKind
from wanvae.nn.region import Region
from wanvae.nn.residual import ActivationKind
from wanvae.nn.sequential import Row

NORMS: dict[MotionNorm | None, NormKind] = {
    None: "none",
    "LN": "layer",
    "GN": "group",
    "BN": "batch",
}
# Stride and kernel of the convolution that halves time, in all published models.
STRIDE = 2
STRIDED_KERNEL = 4
# What Jukebox (Dhariwal et al., arXiv 2005.00341) calls the two convolutions of a residual block,
# the layers 1 and 3 of a list, in a list of blocks with one of two names.
JUKEBOX_NAME = re.compile(r"(?:model|blocks)\.(\d+)\.model\.([13])\.(weight|bias)$")
JUKEBOX_CONVOLUTIONS = {"1": "conv1", "3": "conv2"}


class Resnet1D(Row):
    """Residual blocks with growing dilation, from ``(B, n_in, T)`` to the same shape.

    Block number ``d`` has the dilation ``dilation_growth_rate ** d``. Parameter names
    (``model.0.conv1``, ...) come from the published models. ``load_state_dict`` also reads the
    names of Jukebox (``model.0.model.1``, ``blocks.0.model.1``, ...), whose blocks are ours with
    relu and no norm, if ``res_scale`` and ``m_conv`` of Jukebox are 1; there the smallest dilation
    comes first unless ``reverse_dilation`` is given.

    Args:
        n_in: number of channels.
        n_depth: number of blocks.
        reverse_dilation: whether the largest dilation comes first.
        activation: "relu", "silu" or "gelu".
        norm: None, or "LN", "GN" or "BN" for layer, group or batch norm.
        dropout: probability of dropping a value at the end of each block, while training.
        causal: whether convolutions see only the past, so that the network can stream. The
            published networks have False.
    """

    def __init__(
        self,
        n_in: int,
        n_depth: int,
        dilation_growth_rate: int = 1,
        reverse_dilation: bool = True,
        activation: ActivationKind = "relu",
        norm: MotionNorm | None = None,
        dropout: float = 0.0,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise UserError(f"norm must be None, 'LN', 'GN' or 'BN', not {norm!r}")
        dilations = [dilation_growth_rate**depth for depth in range(n_depth)]
        if reverse_dilation:
            dilations.reverse()
        self.model = Sequential(
            *(
                ResConv1DBlock(
                    n_in, n_in, dilation, activation, NORMS[norm], dropout, causal=causal
                )
                for dilation in dilations
            )
        )
        self.register_load_state_dict_pre_hook(read_jukebox_names)

    def blocks(self) -> tuple[ResConv1DBlock, ...]:
        """Returns the residual blocks in the order they run."""
        return tuple(block for block in self.model if isinstance(block, ResConv1DBlock))

    def layers(self) -> tuple[nn.Module, ...]:
        return self.model.layers()


def read_jukebox_names(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *others: object
) -> None:
    """Gives the parameters of a Resnet1D that Jukebox names our names, before they are loaded.

    Args:
        module: the Resnet1D.
        state_dict: the tensors of a whole model.
        prefix: what their names begin with in this Resnet1D.
        others: what else PyTorch gives to such functions.
    """
    own = {name: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    for name, new in zip(own, rename_jukebox(own), strict=True):
        state_dict[new] = state_dict.pop(name)


def rename_jukebox(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors with our names where Jukebox names the convolutions of residual blocks."""
    return {
        JUKEBOX_NAME.sub(
            lambda found: f"model.{found[1]}.{JUKEBOX_CONVOLUTIONS[found[2]]}.{found[3]}", name
        ): tensor
        for name, tensor in tensors.items()
    }


class Repeat(Streaming):
    """A layer that repeats each frame of ``(B, C, T)`` ``times`` times: nearest upsampling."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        return x.repeat_interleave(self.times, dim=2), ()

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), lengths * self.times

    def input_region(self, region: Region) -> Region:
        return region

    def input_interval(self, interval: Interval) -> Interval:
        return interval.divided(self.times)

    def time_factor(self) -> Fraction:
        return Fraction(self.times)

    def count_output(self, frames: int, *, starts: bool) -> int:
        return frames * self.times

    def space_factor(self) -> Fraction:
        return Fraction(1)

    def multiply_adds(self, positions: int, frames: int) -> int:
        return 0


class ResnetEncoder(Row):
    """The encoder from motion ``(B, channels, 2 ** down_t * n)`` to latents ``(B, code_dim, n)``.

    A 3-conv, ReLU, stages of a strided 4-conv and a :class:`Resnet1D`, attention if the config has
    it, and a 3-conv, as in MoMask (Guo et al., arXiv 2312.00063) and T2M-GPT (Zhang et al.,
    2301.06052), with their parameter names where there is no attention.
    """

    def __init__(self, config: ResnetConfig, channels: int, code_dim: int) -> None:
        super().__init__()
        width, causal = config.width, config.causal
        stages = (
            Sequential(
                CausalConv(1, width, width, STRIDED_KERNEL, STRIDE, causal=causal),
                make_resnet(config, growth),
            )
            for growth in config.dilation_growth_rate
        )
        self.model = Sequential(
            CausalConv(1, channels, width, 3, causal=causal),
            nn.ReLU(),
            *stages,
            *make_attention(config),
            CausalConv(1, width, code_dim, 3, causal=causal),
        )

    def layers(self) -> tuple[nn.Module, ...]:
        return self.model.layers()


class ResnetDecoder(Row):
    """The decoder from latents ``(B, code_dim, n)`` to motion ``(B, channels, 2 ** down_t * n)``.

    The mirror of :class:`ResnetEncoder`: each stage is a :class:`Resnet1D`, a :class:`Repeat` that
    doubles the frames, and a 3-conv.
    """

    def __init__(self, config: ResnetConfig, code_dim: int, channels: int) -> None:
        super().__init__()
        width, causal = config.width, config.causal
        stages = (
            Sequential(
                make_resnet(config, growth),
                Repeat(STRIDE),
                CausalConv(1, width, width, 3, causal=causal),
            )
            for growth in reversed(config.dilation_growth_rate)
        )
        self.model = Sequential(
            CausalConv(1, code_dim, width, 3, causal=causal),
            nn.ReLU(),
            *make_attention(config),
            *stages,
            CausalConv(1, width, width, 3, causal=causal),
            nn.ReLU(),
            CausalConv(1, width, channels, 3, causal=causal),
        )

    def layers(self) -> tuple[nn.Module, ...]:
        return self.model.layers()


def make_resnet(config: ResnetConfig, growth: int) -> Resnet1D:
    return Resnet1D(
        config.width,
        config.depth,
        growth,
        config.reverse_dilation,
        config.activation,
        config.norm,
        config.dropout,
        causal=config.causal,
    )


def make_attention(config: ResnetConfig) -> list[nn.Module]:
    """Returns the attention at the smallest resolution, or no layer."""
    if not config.attention:
        return []
    window = config.attention_window
    return [TimeAttentionBlock(config.width, causal=config.causal, window=window)]
