"""Attention in training, whose gradients have gradients of their own.

PyTorch's fast attention keeps no scores, but its gradients cannot be differentiated again, as a
penalty of gradients needs it. Here they can. Queries, keys and values are kept, and the backward
pass runs the fast attention again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.attention import Projections, apply_at_once
from wanvae.nn.kernels.precision import wide_dtype


class Attention(torch.autograd.Function):
    """The attention of queries to keys and values; all three are kept."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    # Apart from ``forward``, because the transforms of torch.func need it so.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        find = find_gradients_by_definition if torch.is_grad_enabled() else find_gradients
        with torch.autocast(q.device.type, enabled=False):
            return *find(grad, q, k, v, mask), None


def attend_with_gradients(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes attention ``(B, heads, N, C)`` of ``(B, heads, N, C)``.

    Args:
        mask: whether a query sees a key, ``(N, N)`` or a shape that expands to the scores.
    """
    return Attention.apply(q, k, v, mask)


def attend_to_positions_with_gradients(layers: Projections, images: Tensor) -> Tensor:
    """Computes self-attention over the positions of images ``(B, C, H, W)``."""
    return apply_at_once(attend_with_gradients, layers, images)


def find_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """Returns the gradients of queries, keys and values by the fast attention; no gradients."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        y = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
    return torch.autograd.grad(y, leaves, grad)


def find_gradients_by_definition(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """Returns what ``find_gradients`` does; their own gradients pass through it. Keeps scores."""
    dtypes, wide = [x.dtype for x in (q, k, v)], wide_dtype(q)
    grad, q, k, v = (x.to(wide) for x in (grad, q, k, v))
    scale = 1 / math.sqrt(q.shape[-1])
    scores = scale * (q @ k.mT)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    shares = scores.softmax(-1)
    if mask is not None:  # a query that sees no key has no shares
        shares = shares.masked_fill(~mask, 0)
    of_shares = grad @ v.mT
    of_scores = scale * shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True))
    found = of_scores @ k, of_scores.mT @ q, shares.mT @ grad
    return tuple(x.to(dtype) for x, dtype in zip(found, dtypes, strict=True))
