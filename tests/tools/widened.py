"""The small model that ships with the package, at the full size of Wan2.1: the same function.

A random model of the full size has no pictures to look at. This one has, and other programs that
know only the full size load it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wanvae import WanVAE, WanVAEConfig
from wanvae.demo import demo_weights
from wanvae.model import AnyVAE

# Layers whose output is several tensors in a row.
PARTS = {"to_qkv": 3, "time_conv": 2}


def widened_demo() -> WanVAE:
    """Returns the model in float32. New channels are zero everywhere."""
    small: AnyVAE = WanVAE.from_pretrained(demo_weights(), dtype=torch.float32)
    full = WanVAE(WanVAEConfig()).eval()
    ratio = full.config.dim / small.config.dim
    known = small.state_dict()
    with torch.no_grad():
        for name, target in full.state_dict().items():
            layer = name.split(".")[-2]
            parts = 1 if name.startswith("encoder") and layer == "time_conv" else 0
            fill(target, rescale(name, known[name], ratio), parts or PARTS.get(layer, 1))
    return full


def rescale(name: str, values: Tensor, ratio: float) -> Tensor:
    """Returns values that mean the same among ``ratio`` times as many channels.

    A norm divides by the root of the mean of all channels, and attention by the root of their
    number.
    """
    if name.endswith("gamma"):
        return values / ratio**0.5
    if ".to_qkv." in name:
        query, key, value = values.chunk(3)
        return torch.cat([query * ratio**0.5, key, value])
    return values


def fill(target: Tensor, values: Tensor, parts: int) -> None:
    """Writes values to the first channels of a larger tensor, and zeros to the others."""
    target.zero_()
    for of_target, of_values in zip(target.chunk(parts), values.chunk(parts), strict=True):
        of_target[tuple(slice(0, size) for size in of_values.shape)] = of_values
