"""Building blocks shared by the video and the motion model.

Blocks take 1D ``(B, C, T)``, 2D ``(B, C, H, W)`` or 3D ``(B, C, T, H, W)`` tensors, chosen by
``ndim``, and follow the streaming rule of :mod:`wanvae.nn.streaming`.
"""

from wanvae.nn.alpha import AlphaDecoder
from wanvae.nn.attention import AttentionBlock, TimeAttentionBlock
from wanvae.nn.coder import Decoder, Encoder
from wanvae.nn.conv import CausalConv, use_channels_last
from wanvae.nn.norm import NormKind, RMSNorm, make_norm
from wanvae.nn.patch import Patchify, Unpatchify
from wanvae.nn.resample import Downsample, Resample, Upsample
from wanvae.nn.residual import (
    ActivationKind,
    BlockKind,
    BlockSpec,
    BottleneckBlock,
    DenseBlock,
    DenseResidualBlock,
    PreActivationBlock,
    ResConv1DBlock,
    Residual,
    ResidualBlock,
    StandardBlock,
    make_activation,
    make_block,
)
from wanvae.nn.sequential import Sequential
from wanvae.nn.stage import AverageDown, DuplicateUp, ResidualStage
from wanvae.nn.streaming import State, Streaming, needs_whole_frames, unstreamable_layers

__all__ = [
    "ActivationKind",
    "AlphaDecoder",
    "AttentionBlock",
    "AverageDown",
    "BlockKind",
    "BlockSpec",
    "BottleneckBlock",
    "CausalConv",
    "Decoder",
    "DenseBlock",
    "DenseResidualBlock",
    "Downsample",
    "DuplicateUp",
    "Encoder",
    "NormKind",
    "Patchify",
    "PreActivationBlock",
    "RMSNorm",
    "ResConv1DBlock",
    "Resample",
    "Residual",
    "ResidualBlock",
    "ResidualStage",
    "Sequential",
    "StandardBlock",
    "State",
    "Streaming",
    "TimeAttentionBlock",
    "Unpatchify",
    "Upsample",
    "make_activation",
    "make_block",
    "make_norm",
    "needs_whole_frames",
    "unstreamable_layers",
    "use_channels_last",
]
