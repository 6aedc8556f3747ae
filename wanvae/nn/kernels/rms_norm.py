"""Wan's norm over channels: ``x / max(||x||, 1e-12) * sqrt(C) * gamma``.

``x`` is ``(B, C, ...)``, ``gamma`` ``(C, 1, ...)``. The norm is computed in at least float32 and
has the dtype of ``x``, under autocast too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.precision import wide_dtype


class ScaledNorm(nn.Module):
    """The base of the layer that computes this norm, so that kernels know the layer.

    Attributes:
        gamma: the scale of each channel, ``(C, 1, ...)``.
    """

    gamma: nn.Parameter


def rms_norm_by_squares(x: Tensor, gamma: Tensor) -> Tensor:
    """Normalizes by the sum of squares; the gradient is finite if all channels are zero."""
    wide = x.to(wide_dtype(x))
    return scale(wide, inverse_norm(wide), gamma).to(x.dtype)


def rms_norm_by_vector_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """Normalizes by a vector norm if channels are innermost; no gradients.

    If channels are not innermost, a vector norm is many times slower on CPUs, and the sum of
    squares is used.
    """
    wide = x.to(wide_dtype(x))
    if wide.stride(1) != 1:
        return scale(wide, inverse_norm(wide), gamma).to(x.dtype)
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return scale(wide, norm.clamp_min(1e-12).reciprocal(), gamma).to(x.dtype)


def allocate_rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """Allocates on the meta device what ``rms_norm_by_vector_norm`` allocates on other devices."""
    wide = x.to(wide_dtype(x))
    batch, _, *axes = wide.shape
    # The norm and its inverse, the scaled gamma, and the input before and after gamma scales it.
    small = [empty((batch, 1, *axes), wide.dtype, x.device) for _ in range(2)]
    small.append(empty(gamma.shape, wide.dtype, x.device))
    before, after = (empty(wide.shape, wide.dtype, x.device) for _ in range(2))
    del before, small[1:]
    return after.to(x.dtype)


def inverse_norm(x: Tensor) -> Tensor:
    """Returns ``1 / max(||x||, 1e-12)``, from the sum of squares, ``(B, 1, ...)``."""
    return x.square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt()


def scale(x: Tensor, inverse: Tensor, gamma: Tensor) -> Tensor:
    """Returns ``x * inverse * sqrt(C) * gamma``, where ``inverse`` is ``1 / ||x||``."""
    return x * inverse * (math.sqrt(x.shape[1]) * gamma.to(x.dtype))
