"""The input of a causal convolution: past frames, then new frames after pointwise layers.

Tensors are ``(B, C, T, ...)``. Each function that joins applies the layers ``pointwise`` to ``x``,
and puts the result after the frames ``past``. ``past`` may be None.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wanvae.nn.kernels.pointwise import apply, apply_into
from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.precision import native_dtype


def concatenate(past: Tensor | None, x: Tensor, pointwise: Sequence[nn.Module]) -> Tensor:
    """Joins by PyTorch's operations."""
    x = apply(pointwise, x)
    return x if past is None else torch.cat([past, x], dim=2)


def join_in_place(past: Tensor | None, x: Tensor, pointwise: Sequence[nn.Module]) -> Tensor:
    """Joins without a copy of the new frames, in the dtype of ``x``; no gradients."""
    return write_joined(past, x, pointwise, x.dtype)


def join_in_native_dtype(past: Tensor | None, x: Tensor, pointwise: Sequence[nn.Module]) -> Tensor:
    """Joins as ``join_in_place``, in float32 if the CPU only emulates the dtype of ``x``."""
    return write_joined(past, x, pointwise, native_dtype(x.dtype))


def allocate_joined(past: Tensor | None, x: Tensor, pointwise: Sequence[nn.Module]) -> Tensor:
    """Allocates the result of ``join_in_native_dtype`` without values."""
    length = 0 if past is None else past.shape[2]
    shape = (*x.shape[:2], length + x.shape[2], *x.shape[3:])
    return empty(shape, native_dtype(x.dtype), x.device)


def write_joined(
    past: Tensor | None, x: Tensor, pointwise: Sequence[nn.Module], dtype: torch.dtype
) -> Tensor:
    """Joins in memory of the pool, in ``dtype``."""
    length = 0 if past is None else past.shape[2]
    shape = (*x.shape[:2], length + x.shape[2], *x.shape[3:])
    joined = empty(shape, dtype, x.device)
    if past is not None:
        joined[:, :, :length].copy_(past)
    apply_into(pointwise, x, joined[:, :, length:])
    return joined


def clone(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies by PyTorch, because a view of the last frames would keep all frames in memory."""
    return x.to(dtype, copy=True)


def clone_to_pool(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies to memory of the pool."""
    return empty(x.shape, dtype, x.device).copy_(x)
