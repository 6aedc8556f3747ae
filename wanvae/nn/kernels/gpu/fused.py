"""The operations of layers on GPUs: what lies between two convolutions is one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.convolution import allocate_convolution, convolve_by_pytorch
from wanvae.nn.kernels.gpu.operators import OPERATORS
from wanvae.nn.kernels.gpu.plain import norm_activate_backward
from wanvae.nn.kernels.history import put_after
from wanvae.nn.kernels.pointwise import PointwiseFunction, apply
from wanvae.nn.kernels.pointwise import add as add_by_pytorch
from wanvae.nn.kernels.precision import output_dtype
from wanvae.nn.kernels.steps import Steps, find_steps


def join(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> tuple[Tensor, Tensor]:
    """Joins past and new frames, as ``wanvae.nn.kernels.history`` says; no gradients."""
    steps = find_steps(pointwise)
    if steps is None:
        x, steps = apply(pointwise, x), Steps()
    return OPERATORS.join(past, x, steps.bias, steps.gamma, steps.activation, history, history)


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """Computes Wan's norm over channels; no gradients."""
    return OPERATORS.join(None, x, None, gamma, "none", 0, 0)[0]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolves by PyTorch; a 1-conv is a matrix product, which adds the bias on its way."""
    alone = max(weight.shape[2:]) == max(stride) == 1 and not any(padding)
    if not alone or x.stride(1) != 1:
        return convolve_by_pytorch(x, weight, bias, stride, padding, dilation)
    y = F.linear(x.to(output_dtype(weight)).movedim(1, -1), weight.flatten(1), bias)
    return y.movedim(-1, 1)


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves small images instead of doubled images, with 4/9 of the multiply-adds."""
    dtype = output_dtype(weight)
    kernels = OPERATORS.make_phases(weight.to(dtype))
    phases = F.conv2d(x.to(dtype), kernels, padding=1)
    return OPERATORS.interleave(phases, bias)


def allocate_doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Allocates on the meta device what ``convolve_doubled`` allocates on other devices."""
    kernels = OPERATORS.make_phases(weight)
    phases = allocate_convolution(x, kernels, None, (1, 1), (1, 1), (1, 1))
    return OPERATORS.interleave(phases, bias)


def pair_frames(x: Tensor, pointwise: Sequence[PointwiseFunction]) -> Tensor:
    """Makes two frames of the channels of each frame; no gradients."""
    steps = find_steps(pointwise)
    if steps is None or not steps.only_adds:
        x, steps = apply(pointwise, x), Steps()
    return OPERATORS.interleave_frames(x, steps.bias)


def add(y: Tensor, pointwise: Sequence[PointwiseFunction], shortcut: Tensor) -> Tensor:
    """Returns ``pointwise(y) + shortcut``, written to ``y``; no gradients."""
    if y.dtype != shortcut.dtype or y.shape != shortcut.shape:
        return add_by_pytorch(y, pointwise, shortcut)
    steps = find_steps(pointwise)
    if steps is None or not steps.only_adds:
        y, steps = apply(pointwise, y), Steps()
    return OPERATORS.add_(y, steps.bias, shortcut)


class NormActivate(torch.autograd.Function):
    """``activation(norm(x))``. It keeps ``x`` alone, and the backward pass computes the rest again.

    Second derivatives are PyTorch's.
    """

    @staticmethod
    def forward(x: Tensor, gamma: Tensor, activation: str) -> Tensor:
        return OPERATORS.join(None, x, None, gamma, activation, 0, 0)[0]

    # Apart from ``forward``, because the transforms of torch.func need it so.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        x, gamma, ctx.activation = inputs
        ctx.save_for_backward(x, gamma)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gamma = ctx.saved_tensors
        # Gradients are on here only if somebody will differentiate the result.
        again = torch.is_grad_enabled()
        differentiate = norm_activate_backward if again else OPERATORS.norm_activate_backward
        of_x, of_gamma = differentiate(grad, x, gamma, ctx.activation)
        return of_x, of_gamma, None


def concatenate(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> tuple[Tensor, None]:
    """Joins past and new frames with gradients."""
    steps = find_steps(pointwise)
    if steps is None or steps.gamma is None or steps.bias is not None:
        x = apply(pointwise, x)
    else:
        x = NormActivate.apply(x, steps.gamma, steps.activation)
    return put_after(past, x, history), None
