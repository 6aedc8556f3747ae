"""How a video VAE starts that is trained from nothing: as an image VAE applied to each frame."""

from __future__ import annotations

import torch
from torch import nn

from wanvae.model import WanVAE
from wanvae.nn import CausalConv, Downsample, Upsample

# The log variance of untrained latents: with a variance of 1 the decoder would see only noise.
FIRST_LOGVAR = -8.0


@torch.no_grad()
def start_as_image_model(vae: WanVAE) -> None:
    """Make a new model treat frames alone, with nearly certain latents.

    Every 3D kernel keeps its last temporal slice only. Halving of time keeps the last frame of each
    pair, and doubling repeats it. All of it can be trained away.
    """
    for layer in vae.modules():
        if isinstance(layer, CausalConv) and layer.ndim == 3:
            layer.weight[:, :, :-1] = 0
        if isinstance(layer, Downsample | Upsample) and layer.time_conv is not None:
            repeat_last_frame(layer.time_conv)
    vae.conv1.bias[vae.config.z_dim :] = FIRST_LOGVAR


def repeat_last_frame(conv: CausalConv) -> None:
    """Make each group of output channels a copy of the input's last frame."""
    out_channels, in_channels = conv.weight.shape[:2]
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    identity = torch.eye(in_channels, device=conv.weight.device)
    conv.weight[:, :, -1, 0, 0] = identity.repeat(out_channels // in_channels, 1)
