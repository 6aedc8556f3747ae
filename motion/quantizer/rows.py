"""Latents ``(B, C, T)`` as rows ``(N, C)`` without padding, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wanvae.errors import UserError
from wanvae.nn.masking import make_mask


def find_valid(
    latents: Tensor, length: int, lengths: Tensor | Sequence[int] | None, mask: Tensor | None
) -> Tensor | None:
    """Returns which latents ``(B, T)`` are no padding, by ``lengths`` or ``mask``; None is all.

    Args:
        latents: of B clips.
        length: T.

    Raises:
        UserError: both are given, the mask is no ``(B, T)`` of bool, or lengths are no B whole
            numbers from 0 to T.
    """
    if mask is not None and lengths is not None:
        raise UserError("lengths and mask both say what is padding; give one of them")
    if lengths is not None:
        return make_mask(check_lengths(lengths, latents, length), length)
    if mask is not None:
        expected = (len(latents), length)
        if not isinstance(mask, Tensor) or mask.shape != expected or mask.dtype != torch.bool:
            given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
            raise UserError(f"mask must be bool {expected}, (B, T), not {given}")
        return mask.to(latents.device)
    return None


def check_lengths(lengths: Tensor | Sequence[int], latents: Tensor, length: int) -> Tensor:
    """Returns the lengths of B clips of ``length`` latents as a tensor on their device."""
    given = torch.as_tensor(lengths, device=latents.device)
    fits = given.shape == latents.shape[:1] and not given.is_floating_point()
    if not fits or not ((given >= 0) & (given <= length)).all():
        raise UserError(
            f"lengths must be {len(latents)} whole numbers from 0 to {length}, one a clip, not "
            f"{given.tolist()}"
        )
    return given


def as_rows(latents: Tensor, valid: Tensor | None) -> Tensor:
    """Returns ``(B, C, T)`` as ``(N, C)`` where ``valid`` ``(B, T)``; None is everywhere."""
    rows = latents.movedim(1, 2)
    return rows.flatten(0, 1) if valid is None else rows[valid]


def place_rows(values: Tensor, shape: Sequence[int], valid: Tensor | None, absent: int) -> Tensor:
    """Returns rows ``(N, X)`` as ``(B, T, X)``, with ``absent`` where not ``valid`` ``(B, T)``."""
    if valid is None:
        return values.unflatten(0, shape)
    whole = values.new_full((*shape, values.shape[1]), absent)
    whole[valid] = values
    return whole


def make_mean_weights(taken: Tensor) -> Tensor:
    """Returns weights ``(N, Q)`` of a mean over rows, then over layers, where ``taken`` is 1.

    ``taken`` is 0 or 1. Layers that take no row do not count.
    """
    rows = taken.sum(0)
    return taken / (rows.clamp_min(1) * (rows > 0).sum().clamp_min(1))
