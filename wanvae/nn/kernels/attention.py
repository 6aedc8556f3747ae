"""Self-attention with one head over the positions of images ``(B, C, H, W)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from wanvae.nn.kernels.pool import empty

# Scores of the queries that are attended for at once; kernels do not keep scores in memory.
LARGEST_SCORES = 2**24
# Kernels are at their fastest from so many queries on.
FEWEST_QUERIES = 1024
HALF_DTYPES = (torch.bfloat16, torch.float16)


class Projections(Protocol):
    """The layers around the attention, each for ``(B, C, ...)`` with two more axes."""

    def norm(self, x: Tensor, /) -> Tensor:
        """Normalizes each position."""
        ...

    def to_qkv(self, x: Tensor, /) -> Tensor:
        """Queries, keys and values, ``(B, 3 * C, ...)``."""
        ...

    def project(self, x: Tensor, channels: slice) -> Tensor:
        """Some channels of what ``to_qkv`` gives."""
        ...

    def proj(self, x: Tensor, /) -> Tensor:
        """The last projection."""
        ...


def attend_at_once(layers: Projections, images: Tensor) -> Tensor:
    """Attention by PyTorch's operations."""
    q, k, v = map(to_tokens, layers.to_qkv(layers.norm(images)).chunk(3, dim=1))
    y = F.scaled_dot_product_attention(q, k, v)
    return layers.proj(rearrange(y, "b 1 (h w) c -> b h w c", h=images.shape[2]).movedim(-1, 1))


def attend_in_blocks(layers: Projections, images: Tensor) -> Tensor:
    """Attention of a few images at a time, and of large images a few queries; no gradients."""
    return apply_in_blocks(F.scaled_dot_product_attention, layers, images)


def allocate_in_blocks(layers: Projections, images: Tensor) -> Tensor:
    """On the meta device, the memory that ``attend_in_blocks`` takes on other devices."""
    return apply_in_blocks(allocate_attention, layers, images)


def apply_in_blocks(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor], layers: Projections, images: Tensor
) -> Tensor:
    """Self-attention in blocks, where ``attention`` maps queries, keys and values to outputs."""
    count, channels, *size = images.shape
    positions = size[0] * size[1]
    at_once = min(count, max(1, LARGEST_SCORES // positions**2))
    queries = max(FEWEST_QUERIES, LARGEST_SCORES // (at_once * positions))
    y = empty((count, channels, 1, positions), images.dtype, images.device)
    # These strides say, of a single image too, that channels are innermost; kernels need that.
    in_a_row = images.movedim(1, -1).flatten(1, 2).unsqueeze(1).movedim(-1, 1)
    for some, output in zip(in_a_row.split(at_once), y.split(at_once), strict=True):
        normed = layers.norm(some)
        k, v = map(to_tokens, layers.project(normed, slice(channels, None)).chunk(2, dim=1))
        for block, place in zip(normed.split(queries, 3), output.split(queries, 3), strict=True):
            q = to_tokens(layers.project(block, slice(channels)))
            place.copy_(layers.proj(attention(q, k, v).movedim(-1, 1)))
            if y.is_meta:
                break  # one block shows how much memory it takes
    return y.unflatten(3, size).squeeze(2)


def allocate_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Memory for the outputs of an attention.

    PyTorch would allocate the scores on the meta device, which no kernel keeps. The kernels of CPUs
    reorder keys and values of half types.
    """
    if q.dtype in HALF_DTYPES:
        k, v = k.clone(), v.clone()
    return torch.empty_like(q)


def to_tokens(images: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, 1, H * W, C)``: one head, a token for each position."""
    return rearrange(images, "b c h w -> b 1 (h w) c")
