"""What networks consist of, for those who follow a signal through the layers themselves."""

from __future__ import annotations

from torch import nn

from motion.networks.resnet import Resnet1D, ResnetDecoder, ResnetEncoder
from wanvae.nn import ResConv1DBlock
from wanvae.nn.coder import Coder
from wanvae.nn.residual import SequentialResidual


def row_of(network: nn.Module) -> tuple[nn.Module, ...] | None:
    """The layers of a network that only runs them one after another; None if it does more."""
    if isinstance(network, nn.Sequential):
        return tuple(network)
    if isinstance(network, Coder):
        return network.layers()
    if isinstance(network, Resnet1D | ResnetEncoder | ResnetDecoder):
        return tuple(network.model)
    return None


def body_of(block: ResConv1DBlock | SequentialResidual) -> tuple[nn.Module, ...]:
    """The layers that a residual block runs one after another, beside its shortcut."""
    if isinstance(block, SequentialResidual):
        return tuple(block.residual)
    return block.layers()
