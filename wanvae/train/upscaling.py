"""Training of decoders that upscale: what the encoder sees, and how such a decoder starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from wanvae.config import WanVAEConfig, check_has, check_length, check_size
from wanvae.errors import UserError
from wanvae.model import WanVAE

Downscaling = Literal["area", "bicubic"]


def scale_down(video: Tensor, factor: int, downscaling: Downscaling) -> Tensor:
    """Returns a video ``(B, C, T, H, W)`` in [-1, 1] with frames of ``(H / factor, W / factor)``.

    Args:
        downscaling: "area" is the mean of squares of pixels; "bicubic" is smoother, with a filter
            against aliasing.
    """
    if factor == 1:
        return video
    if downscaling == "area":
        return F.avg_pool3d(video, (1, factor, factor))
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    size = [side // factor for side in frames.shape[2:]]
    small = F.interpolate(frames, size, mode="bicubic", antialias=True, align_corners=False)
    return rearrange(small.clamp(-1, 1), "(b t) c h w -> b c t h w", b=len(video))


@torch.no_grad()
def with_upscaling(vae: WanVAE, factor: int) -> WanVAE:
    """Returns a model that decodes ``factor`` times the size and starts as ``vae``.

    The filters of the last layer are repeated for each pixel of a square, so each pixel becomes a
    square of equal pixels. The new model has the dtype and the device of ``vae``.

    Raises:
        UserError: ``vae`` upscales already, or cannot.
    """
    if vae.config.upscale_factor > 1:
        raise UserError(
            f"model.upscale_factor is {factor}, but the decoder of the weights upscales by "
            f"{vae.config.upscale_factor} already: leave model.upscale_factor out"
        )
    if vae.config.alpha_decoder:
        raise UserError("a model with a decoder of alpha cannot get a decoder that upscales")
    if vae.config.patch_size > 1:
        raise UserError(
            f"model.upscale_factor is {factor}, but the model of the weights has patches, of "
            f"{vae.config.patch_size} pixels to a side, as Wan2.2 has: a decoder that upscales "
            "needs weights without patches, like the ones of Wan2.1 or Qwen-Image"
        )
    upscaling = WanVAE(replace(vae.config, upscale_factor=factor))
    upscaling.to(vae.device, vae.decode_dtype)
    tensors = vae.state_dict()
    for leaf in ("weight", "bias"):
        name = f"decoder.head.2.{leaf}"
        tensors[name] = tensors[name].repeat_interleave(factor**2, dim=0)
    upscaling.load_state_dict(tensors)
    return upscaling.train(vae.training)


def check_shape(config: WanVAEConfig, height: int, width: int) -> None:
    """Raises UserError if a model cannot learn from frames of this size in pixels.

    If the decoder upscales, the encoder gets the frames scaled down.
    """
    if config.upscale_factor == 1:
        check_size(config, height, width)
        return
    factor = config.decoded_spatial_factor
    if height % factor or width % factor:
        below = [n // factor * factor for n in (height, width)]
        above = [-(-n // factor) * factor for n in (height, width)]
        raise UserError(
            f"the decoder upscales by {config.upscale_factor}, so height and width of clips must "
            f"be multiples of {factor}, not {height}x{width}: choose {below[0]}x{below[1]} or "
            f"{above[0]}x{above[1]}"
        )


def check_clips(config: WanVAEConfig, clips: str, frames: int, height: int, width: int) -> None:
    """Raises UserError if a model cannot learn from clips of this shape.

    Args:
        clips: what they are, for the message.
        height, width: in pixels, as for ``check_shape``.
    """
    try:
        check_shape(config, height, width)
        check_length(config, frames)
    except UserError as error:
        raise UserError(f"{clips}: {error}") from None


def check_learns(config: WanVAEConfig) -> None:
    """Raises UserError if a model does not decode what it can be compared with."""
    check_has(config, "encoder")
    check_has(config, "decoder")
    if config.alpha_decoder:
        raise UserError(
            "a pair of decoders, of colour and of alpha, cannot be trained: the encoder of "
            "Wan-Alpha sees colour and alpha, but the encoder of this pair sees colour alone; "
            "train a model that encodes RGBA instead, as the config rgba.yaml does"
        )
    if config.in_channels != config.out_channels:
        raise UserError(
            f"this model encodes videos of {config.in_channels} channels, but decodes videos of "
            f"{config.out_channels} channels, so there is no original that it could learn from"
        )
