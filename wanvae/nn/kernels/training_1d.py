"""1D convolutions in training on CPUs: matrix products, with a backward pass of their own.

They apply the activation before the convolution while they copy its input to where they pad it, and
keep only what was there before the activation. The backward pass does both again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wanvae.nn.kernels import training_1d_frames as alone
from wanvae.nn.kernels import training_1d_taps as taps
from wanvae.nn.kernels import training_1d_winograd as winograd
from wanvae.nn.kernels.convolution import EXACT_DTYPES, Convolve, convolve_on_cpu
from wanvae.nn.kernels.gpu.plain import ACTIVATIONS
from wanvae.nn.kernels.gradients import convolve_by_recipe
from wanvae.nn.kernels.pointwise import PointwiseFunction
from wanvae.nn.kernels.precision import in_native_dtype_of_weights, output_dtype
from wanvae.nn.kernels.remaking import Join, Recipe, find_gradients_by_pytorch
from wanvae.nn.kernels.steps import find_steps

# With fewer channels, PyTorch's convolution is as fast.
FEWEST_CHANNELS = 48


class Sweep(NamedTuple):
    """How a kernel goes over a clip: its stride, padding and dilation in frames."""

    stride: int
    padding: int
    dilation: int


def convolve_after(x: Tensor, pointwise: Sequence[PointwiseFunction]) -> Convolve | None:
    """Returns a convolution that applies ``pointwise`` to its input ``x``; None if it cannot."""
    steps = find_steps(pointwise)
    if x.dim() != 3 or steps is None or steps.bias is not None or steps.gamma is not None:
        return None
    return partial(convolve_activated, steps.activation)


def convolve_activated(
    activation: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolves the activation of ``x`` ``(B, C, T)``."""
    sweep = Sweep(stride[0], padding[0], dilation[0])
    wide = min(weight.shape[:2]) >= FEWEST_CHANNELS and output_dtype(weight) in EXACT_DTYPES
    if wide and taps.suits(weight.shape[2], *sweep):
        return RowConvolution.apply(x.to(weight.dtype), weight, bias, activation, sweep)
    axes = stride, padding, dilation
    if activation == "none":
        return in_native_dtype_of_weights(convolve_on_cpu)(x, weight, bias, *axes)
    joined = Join.apply(None, x, None, activation, 0)
    return convolve_by_recipe(Recipe(None, x, None, activation, 0), joined, weight, bias, *axes)


class RowConvolution(torch.autograd.Function):
    """A 1D convolution of ``activation(x)`` by matrix products; ``x`` and ``weight`` are kept."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, sweep: Sweep
    ) -> Tensor:
        rows, kernel = x.mT.contiguous(), weight.mT.contiguous()
        if winograd.suits(rows, kernel, *sweep):
            return winograd.convolve(rows, kernel, bias, activation, *sweep[1:]).mT
        if alone.suits(weight.shape[2], *sweep[:2]):
            y = alone.convolve(rows.flatten(0, 1), kernel[:, 0], bias, activation)
            return y.view(*rows.shape[:2], -1).mT
        return taps.convolve(rows, kernel, bias, activation, *sweep).mT

    # Apart from ``forward``, because the transforms of torch.func need it so.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.activation, ctx.sweep = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        find = find_gradients_twice if torch.is_grad_enabled() else find_gradients
        of_x, of_weight = find(grad, x, weight, ctx.activation, ctx.sweep, ctx.needs_input_grad[:2])
        of_bias = grad.sum((0, 2)) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None, None


def find_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    activation: str,
    sweep: Sweep,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of ``x`` and ``weight`` where ``wanted``; no gradients."""
    grad, rows, kernel = (each.mT.contiguous() for each in (grad, x, weight))
    if winograd.suits(rows, kernel, *sweep):
        found = winograd.find_gradients(grad, rows, kernel, activation, *sweep[1:], wanted)
    elif alone.suits(weight.shape[2], *sweep[:2]):
        pair = grad.flatten(0, 1), rows.flatten(0, 1)
        found = alone.find_gradients(*pair, kernel[:, 0], activation, wanted)
    else:
        found = taps.find_gradients(grad, rows, kernel, activation, *sweep, wanted)
    of_rows, of_kernel = found
    return (
        None if of_rows is None else of_rows.view(rows.shape).mT,
        None if of_kernel is None else of_kernel.view(kernel.shape).mT,
    )


def find_gradients_twice(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    activation: str,
    sweep: Sweep,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Returns what ``find_gradients`` does, by PyTorch; their own gradients pass through it."""
    stride, padding, dilation = ([number] for number in sweep)
    of_activated, of_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        ACTIVATIONS[activation](x),
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        [0],
        1,
        (*wanted, False),
    )
    if not wanted[0]:
        return None, of_weight
    return find_gradients_by_pytorch(of_activated, x, None, activation)[0], of_weight
