"""Gradients of quantized latents, whose values are steps without a gradient of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# The smallest length of a vector that is divided by.
SMALLEST = 1e-6


class StraightThrough(torch.autograd.Function):
    """A straight-through estimator for quantized latents and the commitment loss.

    The gradient of quantized latents passes to ``latents`` unchanged, once for all layers (Bengio
    et al., arXiv 1308.3432).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, latents: Tensor, quantized: Tensor, loss: Tensor, loss_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(loss_gradient)
        return quantized.view_as(quantized), loss.view_as(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_quantized: Tensor, of_loss: Tensor) -> tuple:
        (loss_gradient,) = ctx.saved_tensors
        gradient = of_quantized + (of_loss * loss_gradient).to(of_quantized.dtype)
        return gradient, None, None, None


class Rotation(torch.autograd.Function):
    """The rotation trick for quantized latents ``(B, C, T)`` (Fifty et al., arXiv 2410.06424).

    Quantized latents are seen as the latents, turned and scaled by a matrix that is a constant: the
    gradient is turned back and scaled alike. The turn is the shortest one, from the direction u of
    the latents to the direction v of the quantized: I - 2 w w^T + 2 v u^T, where w is the direction
    of u + v (equation 4 there). The values of the quantized latents stay as they are. Each group of
    channels has a turn of its own.
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, quantized: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(latents, quantized)
        ctx.groups = groups
        return quantized.view_as(quantized)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        source, target, given = (
            tensor.unflatten(1, (ctx.groups, -1)) for tensor in (*ctx.saved_tensors, gradient)
        )
        lengths = [tensor.norm(dim=2, keepdim=True) for tensor in (source, target)]
        scale = lengths[1] / lengths[0].clamp_min(SMALLEST)
        source, target = (
            tensor / length.clamp_min(SMALLEST)
            for tensor, length in zip((source, target), lengths, strict=True)
        )
        between = F.normalize(source + target, dim=2, eps=SMALLEST)
        turned = (
            given
            - 2 * between * (between * given).sum(2, keepdim=True)
            + 2 * source * (target * given).sum(2, keepdim=True)
        )
        return (scale * turned).flatten(1, 2), None, None


def estimate(
    latents: Tensor, quantized: Tensor, loss: Tensor, loss_gradient: Tensor, groups: int | None
) -> tuple[Tensor, Tensor]:
    """Returns ``quantized`` and ``loss`` with gradients for ``latents``, all ``(B, C, T)``.

    Args:
        loss_gradient: the gradient of ``loss``.
        groups: the groups of channels, for the rotation trick; None is straight through.
    """
    if groups is None:
        return StraightThrough.apply(latents, quantized, loss, loss_gradient)
    nothing = torch.zeros_like(quantized)
    _, loss = StraightThrough.apply(latents, nothing, loss, loss_gradient)
    return Rotation.apply(latents, quantized, groups), loss
