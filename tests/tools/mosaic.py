"""A model of the full size of Wan2.1 that shows pictures: squares of 8x8 pixels of one colour.

A random model has no pictures to look at. This one is computed instead of trained, and other
programs, which know only the full size, load it.
"""

from __future__ import annotations

import torch
from torch import nn

from wanvae import WanVAE, WanVAEConfig
from wanvae.nn import CausalConv, RMSNorm

COLOURS = 3
# The channel after the colours holds a constant, so that norms hardly depend on the colours.
CONSTANT = 20.0
# What residual blocks and attention add, by the standard deviation of their last weights.
NOISE = 5e-4
LAST_OF_BODY = "residual.6", "proj"
# Ends of the names of the layers that colours pass through besides residual blocks and heads.
PASSES = "shortcut", "time_conv", "resample.1", "conv1", "conv2"


@torch.no_grad()
def mosaic() -> WanVAE:
    """Returns the model in float32, always the same one."""
    torch.manual_seed(0)
    vae = WanVAE(WanVAEConfig()).eval()
    for name, layer in vae.named_modules():
        if isinstance(layer, CausalConv) and name.endswith(LAST_OF_BODY):
            nn.init.normal_(layer.weight, std=NOISE)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, CausalConv) and name.endswith(PASSES):
            average = name.startswith("encoder") and name.endswith("resample.1")
            pass_colours(layer, average=average)
    vae.encoder.conv1.bias[COLOURS] = vae.decoder.conv1.bias[COLOURS] = CONSTANT
    for coder in (vae.encoder, vae.decoder):
        norm, _, conv = coder.head
        assert isinstance(norm, RMSNorm) and isinstance(conv, CausalConv)
        undo_norm(norm, conv)
    return vae


def pass_colours(layer: CausalConv, *, average: bool = False) -> None:
    """Makes the first output channels copies of the first input channels: colours and constant.

    Of the frames that a kernel sees it takes the last. A layer that doubles the frames copies to
    both halves of its channels. Other channels stay as they are.

    Args:
        average: whether each position is the mean of four, in a layer that halves height and width.
    """
    weight, bias = layer.weight, layer.bias
    copies = weight.shape[0] // weight.shape[1] if weight.shape[2:] == (3, 1, 1) else 1
    channels = min(COLOURS + 1, *weight.shape[:2])
    for values, shifts in zip(weight.chunk(copies), bias.chunk(copies), strict=True):
        values[:channels] = shifts[:channels] = 0
        middle = values.shape[-1] // 2
        for channel in range(channels):
            kernel = values[channel, channel]
            taps = kernel if kernel.dim() == 2 else kernel[-1]
            if average:
                taps[:2, :2] = 1 / 4
            else:
                taps[middle, middle] = 1


def undo_norm(norm: RMSNorm, conv: CausalConv) -> None:
    """Makes norm, SiLU and convolution pass the colours on.

    The root of the sum of squares is about the constant, and SiLU halves small values.
    """
    small = 0.05
    norm.gamma.fill_(small)
    pass_colours(conv)
    conv.weight[:COLOURS] *= 2 * CONSTANT / (small * conv.weight.shape[1] ** 0.5)
