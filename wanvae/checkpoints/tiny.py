"""Checkpoints of tiny autoencoders (TAEHV): the architecture, and what their latents are.

The names are ``encoder.0.weight``, ``decoder.1.weight``, ...; the numbers count the layers, those
without parameters too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wanvae.checkpoints.finding import Family
from wanvae.checkpoints.latent_statistics import WAN21_MEAN, WAN21_STD, WAN22_MEAN, WAN22_STD
from wanvae.errors import UserError
from wanvae.tiny_config import LatentScale, TinyVAEConfig

TINY = Family(
    "a tiny autoencoder (TAEHV)",
    # Layers that make one frame of several, or several of one.
    re.compile(r"(encoder|decoder)\.\d+\.conv\.weight"),
    ("encoder.", "decoder."),
)
# Layers of the larger decoders.
SUPER_MARK = re.compile(r"decoder\.\d+\.conv\.3\.weight")
# The channels of the latents of Wan2.1 and Wan2.2, and their statistics.
FAMILIES = {
    16: ("Wan2.1", WAN21_MEAN, WAN21_STD),
    48: ("Wan2.2", WAN22_MEAN, WAN22_STD),
}


def infer_tiny_config(tensors: Mapping[str, Tensor]) -> tuple[TinyVAEConfig, str]:
    """Infers the architecture from the names and shapes of tensors.

    Returns:
        The config, and a note on the statistics of its latents.

    Raises:
        UserError: the tensors are no tiny autoencoder of Wan; the message says what they are.
    """
    if any(SUPER_MARK.fullmatch(name) for name in tensors):
        raise UserError(
            "this is the larger (super) form of a tiny autoencoder, which is not read; use the "
            "plain form, like taew2_2.pth"
        )
    if not any(name.startswith("decoder.") for name in tensors):
        raise UserError(
            "this tiny autoencoder has no decoder, only an encoder, which is not read; use a file "
            "with both"
        )
    blocks, layers = read_stages(tensors, "decoder")
    width, z_dim, *_ = shape_of(tensors, "decoder.1.weight")
    channels = shape_of(tensors, f"decoder.{last_index(tensors, 'decoder')}.weight")[0]
    if z_dim not in FAMILIES:
        raise UserError(
            f"this tiny autoencoder has latents of {z_dim} channels, so it belongs to another "
            "model than Wan: latents of Wan2.1 have 16, latents of Wan2.2 have 48"
        )
    family, mean, std = FAMILIES[z_dim]
    grows = tuple(factor_of(tensors, f"decoder.{index}", 0) for index in layers)
    encoder_dim, pools = None, tuple(sorted(grows, reverse=True))
    if any(name.startswith("encoder.") for name in tensors):
        encoder_dim = shape_of(tensors, "encoder.0.weight")[0]
        _, pooling = read_stages(tensors, "encoder")
        pools = tuple(factor_of(tensors, f"encoder.{index}", 1) for index in pooling)
    config = TinyVAEConfig(
        z_dim=z_dim,
        encoder_dim=encoder_dim,
        # A convolution follows each layer that grows time.
        decoder_dims=(width, *(shape_of(tensors, f"decoder.{n + 1}.weight")[0] for n in layers)),
        blocks=blocks,
        pools=pools,
        grows=grows,
        patch_size=patch_of(channels),
        latents_mean=mean,
        latents_std=std,
    )
    note = (
        f"latent statistics: taken from {family}, because this tiny autoencoder has latents of "
        f"{z_dim} channels"
    )
    return config, note


def with_network_latents(
    config: TinyVAEConfig, tensors: Mapping[str, Tensor], path: Path
) -> tuple[TinyVAEConfig, str]:
    """Returns ``config`` with how its network has latents, and a note.

    Files of both kinds have the same names and shapes. So the name of the file decides, and then
    the dtype: ``taew2_1`` and ``taew2_2`` are published in float16, LightX2V's files are not.
    """
    kind: LatentScale
    if "lighttae" in path.name.lower():
        kind, reason = "raw", "lighttae is in the name of the file"
    elif "tae" in path.name.lower():
        kind, reason = "normalized", "tae is in the name of the file"
    elif any(tensor.dtype == torch.float16 for tensor in tensors.values()):
        kind, reason = "normalized", "the file is float16, as taew2_1 and taew2_2 are"
    else:
        kind, reason = "raw", "the file is not float16, as lighttaew2_1 and lighttaew2_2 are not"
    note = f"network latents: taken as {kind}, because {reason}"
    return replace(config, network_latents=kind), note


def read_stages(names: Iterable[str], half: str) -> tuple[int, list[int]]:
    """Returns the number of blocks of each stage, and the layers that resample time.

    Raises:
        UserError: the stages differ.
    """
    names = list(names)
    resampling = indices(names, rf"{half}\.(\d+)\.conv\.weight")
    blocks = indices(names, rf"{half}\.(\d+)\.conv\.0\.weight")
    if not resampling or not blocks or len(blocks) % len(resampling):
        raise UserError(
            f"the {half} of this tiny autoencoder has {len(blocks)} blocks for {len(resampling)} "
            "stages, which is none of the known forms"
        )
    return len(blocks) // len(resampling), resampling


def indices(names: Iterable[str], pattern: str) -> list[int]:
    """Returns the numbers that a pattern finds in names, sorted."""
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(pattern, name)))


def last_index(names: Iterable[str], half: str) -> int:
    """Returns the number of the last layer that has a weight."""
    return max(indices(names, rf"{half}\.(\d+)\.weight"), default=0)


def factor_of(tensors: Mapping[str, Tensor], layer: str, axis: int) -> int:
    """Returns the frames that a layer makes one frame of (axis 1), or makes of one (axis 0)."""
    shape = shape_of(tensors, f"{layer}.conv.weight")
    return shape[axis] // shape[1 - axis]


def patch_of(channels: int) -> int:
    """Returns the side of the squares of RGB pixels that have so many values."""
    for side in (1, 2, 4):
        if channels == 3 * side**2:
            return side
    raise UserError(f"this tiny autoencoder decodes {channels} channels: no squares of RGB pixels")


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Returns the shape of the weight of a 2D convolution.

    Raises:
        UserError: it is missing, or has another number of axes.
    """
    if name not in tensors:
        raise UserError(f"{name} is missing, but tells the architecture")
    shape = tuple(tensors[name].shape)
    if len(shape) != 4 or 0 in shape:
        raise UserError(f"{name} is {shape}, not the weight of a 2D convolution")
    return shape
