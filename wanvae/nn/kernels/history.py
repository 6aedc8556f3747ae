"""The input of a causal convolution: past frames, then new frames after pointwise layers.

Tensors are ``(B, C, T, ...)``. Each function that joins applies the layers ``pointwise`` to ``x``,
and puts the result after ``history`` frames: the frames ``past``, which may be None, and zeros
before them if ``past`` has fewer frames. It returns the joined frames. A function that also copies
the last ``history`` frames, for the next piece, returns this copy too; others return None.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from wanvae.nn.kernels.pointwise import PointwiseFunction, apply, apply_into
from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.precision import native_dtype


def concatenate(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> tuple[Tensor, None]:
    """Joins by PyTorch's operations."""
    return put_after(past, apply(pointwise, x), history), None


def put_after(past: Tensor | None, x: Tensor, history: int) -> Tensor:
    """Returns ``x`` after ``history`` frames, by PyTorch's operations."""
    parts = [x] if past is None else [past, x]
    missing = history - (0 if past is None else past.shape[2])
    if missing:
        parts.insert(0, x.new_zeros(*x.shape[:2], missing, *x.shape[3:]))
    return torch.cat(parts, dim=2) if len(parts) > 1 else x


def forget(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> None:
    """Says that what is joined is kept where it is needed again."""


def join_in_place(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> tuple[Tensor, None]:
    """Joins without a copy of the new frames, in the dtype of ``x``; no gradients."""
    return write_joined(past, x, pointwise, history, x.dtype), None


def join_in_native_dtype(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> tuple[Tensor, None]:
    """Joins as ``join_in_place``, in float32 if the CPU only emulates the dtype of ``x``."""
    return write_joined(past, x, pointwise, history, native_dtype(x.dtype)), None


def allocate_joined(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> tuple[Tensor, None]:
    """Allocates the result of ``join_in_native_dtype`` without values."""
    return allocate_after(x, history, native_dtype(x.dtype)), None


def write_joined(
    past: Tensor | None,
    x: Tensor,
    pointwise: Sequence[PointwiseFunction],
    history: int,
    dtype: torch.dtype,
) -> Tensor:
    """Joins in memory of the pool, in ``dtype``."""
    joined = allocate_after(x, history, dtype)
    length = 0 if past is None else past.shape[2]
    joined[:, :, : history - length] = 0
    if past is not None:
        joined[:, :, history - length : history].copy_(past)
    apply_into(pointwise, x, joined[:, :, history:])
    return joined


def allocate_after(x: Tensor, history: int, dtype: torch.dtype) -> Tensor:
    """Allocates room for ``x`` after ``history`` frames, in memory of the pool."""
    return empty((*x.shape[:2], history + x.shape[2], *x.shape[3:]), dtype, x.device)


def clone(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies by PyTorch, because a view of the last frames would keep all frames in memory."""
    return x.to(dtype, copy=True)


def clone_to_pool(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies to memory of the pool."""
    return empty(x.shape, dtype, x.device).copy_(x)


def pair_frames(x: Tensor, pointwise: Sequence[PointwiseFunction]) -> Tensor:
    """Returns ``(B, C, 2 * T, ...)``, where the channels of ``(B, 2 * C, T, ...)`` are two frames.

    The first half of the channels is the earlier frame. Channels become innermost. The layers
    ``pointwise`` are applied to ``x`` first.
    """
    pairs = rearrange(apply(pointwise, x), "b (two c) t ... -> b (t two) ... c", two=2)
    return pairs.movedim(-1, 1)
