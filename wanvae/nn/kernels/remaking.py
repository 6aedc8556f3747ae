"""Norm, activation and history in training: what the backward pass needs is made again.

The input of a causal convolution is past frames, then new frames after a norm and an activation.
PyTorch keeps several tensors of this size for the backward pass. Here only ``x`` is kept, which
a residual block keeps anyway, and the backward pass computes the rest again, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wanvae.nn.kernels.gpu.plain import ACTIVATIONS, DERIVATIVES, norm_activate_backward
from wanvae.nn.kernels.history import concatenate, put_after, write_joined
from wanvae.nn.kernels.pointwise import PointwiseFunction, cut_into_blocks
from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.precision import wide_dtype
from wanvae.nn.kernels.rms_norm import rms_norm_by_squares, rms_norm_by_vector_norm
from wanvae.nn.kernels.steps import Steps, find_steps

ACTIVATIONS_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda grad, y: grad,
    "silu": lambda grad, y: torch.ops.aten.silu_backward(grad, y),
    "relu": lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
}
# Vectors of at least this norm become 1 long, see ``inverse_norm``.
SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Recipe:
    """How to make the input of a convolution again.

    Attributes:
        past: the frames before; None is no frame.
        x: the new frames, before norm and activation.
        gamma: of Wan's norm; None does not normalize.
        activation: a name in ``ACTIVATIONS``.
        history: frames before the new ones. Zeros stand for frames that ``past`` lacks.
    """

    past: Tensor | None
    x: Tensor
    gamma: Tensor | None
    activation: str
    history: int

    @property
    def zeros(self) -> int:
        """The number of frames of zeros before the first frame."""
        return self.history - (0 if self.past is None else self.past.shape[2])

    def make(self) -> Tensor:
        """Makes the input; no gradients."""

        def run(x: Tensor) -> Tensor:
            if self.gamma is not None:
                x = rms_norm_by_vector_norm(x, self.gamma)
            return ACTIVATIONS[self.activation](x)

        return write_joined(self.past, self.x, [run], self.history, self.x.dtype)

    def make_by_pytorch(self) -> Tensor:
        """Makes the input by PyTorch's operations, through which gradients pass."""
        x = self.x if self.gamma is None else rms_norm_by_squares(self.x, self.gamma)
        return put_after(self.past, ACTIVATIONS[self.activation](x), self.history)


def find_recipe(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> Recipe | None:
    """Returns how to make the input of a convolution; None if ``pointwise`` has other layers."""
    steps: Steps | None = find_steps(pointwise)
    if steps is None or steps.bias is not None or steps.only_adds:
        return None
    return Recipe(past, x, steps.gamma, steps.activation, history)


def join_and_remake(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> tuple[Tensor, None]:
    """Joins as ``concatenate``, but keeps ``x`` alone for the backward pass where it can."""
    recipe = find_recipe(past, x, pointwise, history)
    if recipe is None:
        return concatenate(past, x, pointwise, history)
    return Join.apply(past, x, recipe.gamma, recipe.activation, history), None


def rms_norm_and_remake(x: Tensor, gamma: Tensor) -> Tensor:
    """Computes Wan's norm over channels, and keeps ``x`` alone for the backward pass."""
    return Join.apply(None, x, gamma, "none", 0)


class Join(torch.autograd.Function):
    """The input of a convolution, made by a recipe; ``x`` and ``gamma`` are kept."""

    @staticmethod
    def forward(
        past: Tensor | None, x: Tensor, gamma: Tensor | None, activation: str, history: int
    ) -> Tensor:
        return Recipe(past, x, gamma, activation, history).make()

    # Apart from ``forward``, because the transforms of torch.func need it so.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        past, x, gamma, ctx.activation, ctx.history = inputs
        ctx.save_for_backward(x, gamma)
        ctx.length = 0 if past is None else past.shape[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma = ctx.saved_tensors
        of_past = grad[:, :, ctx.history - ctx.length : ctx.history] if ctx.length else None
        of_output = grad[:, :, ctx.history :]
        if torch.is_grad_enabled():
            of_x, of_gamma = find_gradients_by_pytorch(of_output, x, gamma, ctx.activation)
        else:
            of_x, of_gamma = find_gradients(of_output, x, gamma, ctx.activation)
        return of_past, of_x, of_gamma, None, None


def find_gradients_by_pytorch(
    grad: Tensor, x: Tensor, gamma: Tensor | None, activation: str
) -> tuple[Tensor, Tensor | None]:
    """Returns the gradients of ``x`` and ``gamma``; their own gradients pass through it."""
    if gamma is not None:
        return norm_activate_backward(grad, x, gamma, activation)
    wide = x.to(wide_dtype(x))
    return (grad * DERIVATIVES[activation](wide)).to(x.dtype), None


def find_gradients(
    grad: Tensor, x: Tensor, gamma: Tensor | None, activation: str
) -> tuple[Tensor, Tensor | None]:
    """Returns the gradients of ``x`` and ``gamma``, block by block; no gradients."""
    of_x = empty(x.shape, x.dtype, x.device)
    dtype = wide_dtype(x)
    scales = None if gamma is None else math.sqrt(x.shape[1]) * gamma.to(dtype)
    of_scales = None if scales is None else torch.zeros_like(scales)
    for block in cut_into_blocks(x):
        wide, of_output = x[block].to(dtype), grad[block].to(dtype)
        if scales is None or of_scales is None:
            of_x[block] = ACTIVATIONS_BACKWARD[activation](of_output, wide)
            continue
        norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        inverse = norm.clamp_min(SMALLEST_NORM).reciprocal_()
        direction = wide * inverse
        of_output = ACTIVATIONS_BACKWARD[activation](of_output, direction * scales)
        of_scales += sum_over_positions(of_output * direction).view(scales.shape)
        of_direction = of_output * scales
        along = (of_direction * direction).sum(1, keepdim=True)
        # Where the norm is limited, it does not depend on ``x``.
        along.mul_(norm > SMALLEST_NORM)
        of_x[block] = of_direction.addcmul_(direction, along, value=-1).mul_(inverse)
    if gamma is None or of_scales is None:
        return of_x, None
    return of_x, (math.sqrt(x.shape[1]) * of_scales).to(gamma.dtype)


def sum_over_positions(x: Tensor) -> Tensor:
    """Returns the sum of each channel, ``(C,)``."""
    return x.sum([axis for axis in range(x.dim()) if axis != 1])
