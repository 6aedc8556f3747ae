"""The start of a video VAE: an image VAE, new or given, that is applied to each frame."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from wanvae.errors import UserError
from wanvae.model import WanVAE
from wanvae.nn import CausalConv, Resample

# The log variance of untrained latents: with a variance of 1 the decoder would see only noise.
FIRST_LOGVAR = -8.0


@torch.no_grad()
def start_as_image_model(vae: WanVAE) -> None:
    """Makes a new model treat frames alone, with nearly certain latents.

    Training can change both.
    """
    treat_frames_alone(vae)
    vae.conv1.bias[vae.config.z_dim :] = FIRST_LOGVAR


@torch.no_grad()
def inflate(image_vae: WanVAE) -> WanVAE:
    """A video model that starts as ``image_vae``, an image model (``ndim: 2``), on each frame.

    The kernels of ``image_vae`` become the last temporal slice of the new kernels, as in the second
    stage of the Wan report (arXiv 2503.20314). So one frame has the same latents and the same
    reconstruction. Of each group of frames the last one is kept, and repeated. The new model has
    the dtype and the device of the encoder of ``image_vae``.

    Raises:
        UserError: ``image_vae`` is a video model.
    """
    if image_vae.config.ndim != 2:
        raise UserError("only an image model can be inflated, and this is a video model already")
    vae = WanVAE(replace(image_vae.config, ndim=3))
    vae.to(image_vae.device, image_vae.encode_dtype)
    treat_frames_alone(vae)
    tensors = vae.state_dict()
    for name, tensor in image_vae.state_dict().items():
        if ".time_conv." in name:
            continue  # only stored: an image model never runs it
        same = tensors[name].shape == tensor.shape
        (tensors[name] if same else tensors[name][:, :, -1:]).copy_(tensor)
    return vae.train(image_vae.training)


@torch.no_grad()
def treat_frames_alone(vae: WanVAE) -> None:
    """Makes all kernels look at the last frame only.

    Halving of time keeps the last frame of each pair, and doubling repeats it. Shortcuts across
    stages stay as they are, and average pairs of frames.
    """
    for layer in vae.modules():
        if isinstance(layer, CausalConv) and layer.ndim == 3:
            layer.weight[:, :, :-1] = 0
        if isinstance(layer, Resample) and isinstance(layer.time_conv, CausalConv):
            repeat_last_frame(layer.time_conv)


def repeat_last_frame(conv: CausalConv) -> None:
    """Makes each group of output channels a copy of the last input frame."""
    out_channels, in_channels = conv.weight.shape[:2]
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    identity = torch.eye(in_channels, device=conv.weight.device)
    conv.weight[:, :, -1, 0, 0] = identity.repeat(out_channels // in_channels, 1)
