"""Self-attention with one head over the positions of images ``(B, C, H, W)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from wanvae.nn.kernels.pool import empty

# Attention scores that are computed at once; the kernels do not keep scores in memory.
LARGEST_SCORES = 2**24
# The kernels are fastest with at least this many queries.
FEWEST_QUERIES = 1024
HALF_DTYPES = (torch.bfloat16, torch.float16)
# Maps queries, keys and values to outputs.
AttentionFunction: TypeAlias = "Callable[[Tensor, Tensor, Tensor], Tensor]"


class Projections(Protocol):
    """The layers around the attention, each for ``(B, C, ...)`` with two more axes."""

    def norm(self, x: Tensor, /) -> Tensor:
        """Normalizes each position."""
        ...

    def to_qkv(self, x: Tensor, /) -> Tensor:
        """Computes queries, keys and values, ``(B, 3 * C, ...)``."""
        ...

    def project(self, x: Tensor, channels: slice) -> Tensor:
        """Computes some channels of ``to_qkv``."""
        ...

    def proj(self, x: Tensor, /) -> Tensor:
        """Computes the last projection."""
        ...


def attend_to(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Computes attention by PyTorch's operation, see ``Kernels``."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_at_once(layers: Projections, images: Tensor) -> Tensor:
    """Computes attention by PyTorch's operations."""
    return apply_at_once(F.scaled_dot_product_attention, layers, images)


def allocate_at_once(layers: Projections, images: Tensor) -> Tensor:
    """Allocates on the meta device what ``attend_at_once`` allocates on GPUs."""
    return apply_at_once(allocate_attention_of_gpu, layers, images)


def apply_at_once(attention: AttentionFunction, layers: Projections, images: Tensor) -> Tensor:
    """Computes self-attention; ``attention`` maps queries, keys, values to outputs."""
    q, k, v = map(to_tokens, layers.to_qkv(layers.norm(images)).chunk(3, dim=1))
    y = attention(q, k, v)
    return layers.proj(rearrange(y, "b 1 (h w) c -> b h w c", h=images.shape[2]).movedim(-1, 1))


def attend_in_blocks(layers: Projections, images: Tensor) -> Tensor:
    """Computes attention for a few images, or a few queries, at a time; no gradients."""
    return apply_in_blocks(F.scaled_dot_product_attention, layers, images)


def allocate_in_blocks(layers: Projections, images: Tensor) -> Tensor:
    """Allocates on the meta device what ``attend_in_blocks`` allocates on other devices."""
    return apply_in_blocks(allocate_attention, layers, images)


def apply_in_blocks(attention: AttentionFunction, layers: Projections, images: Tensor) -> Tensor:
    """Computes self-attention in blocks; ``attention`` maps queries, keys, values to outputs."""
    count, channels, *size = images.shape
    positions = size[0] * size[1]
    at_once = min(count, max(1, LARGEST_SCORES // positions**2))
    queries = max(FEWEST_QUERIES, LARGEST_SCORES // (at_once * positions))
    y = empty((count, channels, 1, positions), images.dtype, images.device)
    # These strides mark channels as innermost, also for one image. The kernels need this.
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
    """Allocates the outputs of an attention.

    On the meta device, PyTorch's attention would allocate the scores, which no kernel keeps. For
    half types, the kernels of CPUs copy keys and values into another order.
    """
    if q.dtype in HALF_DTYPES:
        k, v = k.clone(), v.clone()
    return q.clone()


def allocate_attention_of_gpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Allocates the outputs of an attention on a GPU, which for half types are first float32."""
    wide = q.to(torch.float32, copy=True)
    return wide.to(q.dtype)


def to_tokens(images: Tensor) -> Tensor:
    """Returns ``(B, C, H, W)`` as ``(B, 1, H * W, C)``: one head, a token for each position."""
    return rearrange(images, "b c h w -> b 1 (h w) c")
