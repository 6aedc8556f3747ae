"""Convolutions in training whose input is made again for the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.convolution import Convolve, convolve_on_cpu
from wanvae.nn.kernels.pointwise import PointwiseFunction
from wanvae.nn.kernels.precision import computing_dtype, convert, output_dtype
from wanvae.nn.kernels.remaking import Recipe, find_recipe


@dataclass(frozen=True)
class Geometry:
    """How a convolution goes over its input: a number for each axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class Convolution(torch.autograd.Function):
    """A convolution that does not keep its input, but what the input is made of.

    ``past``, ``x`` and ``gamma`` are the tensors of the recipe. Their gradients come through
    ``joined``, the input. So do second derivatives, because then the recipe runs with gradients.
    """

    @staticmethod
    def forward(
        joined: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        past: Tensor | None,
        x: Tensor,
        gamma: Tensor | None,
        activation: str,
        history: int,
        geometry: Geometry,
    ) -> Tensor:
        kernel, bias = weight.to(joined.dtype), convert(bias, joined.dtype)
        strides = geometry.stride, geometry.padding, geometry.dilation
        with torch.autocast(joined.device.type, enabled=False):
            return convolve_on_cpu(joined, kernel, bias, *strides)

    # Apart from ``forward``, because the transforms of torch.func need it so.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        joined, weight, bias, past, x, gamma, ctx.activation, ctx.history, ctx.geometry = inputs
        ctx.save_for_backward(weight, past, x, gamma)
        ctx.dtype = joined.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, past, x, gamma = ctx.saved_tensors
        recipe = Recipe(past, x, gamma, ctx.activation, ctx.history)
        joined = recipe.make_by_pytorch() if torch.is_grad_enabled() else recipe.make()
        geometry = ctx.geometry
        gradients = torch.ops.aten.convolution_backward(
            grad,
            joined.to(ctx.dtype),
            weight.to(ctx.dtype),
            [len(weight)],
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            False,
            [0] * len(geometry.stride),
            1,
            ctx.needs_input_grad[:3],
        )
        of_joined, of_weight, of_bias = gradients
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        of_bias = None if of_bias is None else of_bias.to(ctx.bias_dtype)
        return of_joined, of_weight, of_bias, None, None, None, None, None, None


def remember_recipe(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> Convolve | None:
    """Returns the convolution of frames that a recipe joins; None if there is no recipe."""
    recipe = find_recipe(past, x, pointwise, history)
    return None if recipe is None else partial(convolve_by_recipe, recipe)


def convolve_in_training(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolves in ``computing_dtype``, and keeps the input in the dtype of the output."""
    dtype = output_dtype(weight)
    if computing_dtype(weight) == dtype:
        return convolve_on_cpu(x, weight, bias, stride, padding, dilation)
    x = x.to(dtype)
    recipe = Recipe(None, x, None, "none", 0)
    return convolve_by_recipe(recipe, x, weight, bias, stride, padding, dilation)


def convolve_doubled_in_training(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Doubles the images and convolves them, as ``convolve_in_training``."""
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    return convolve_in_training(doubled, weight, bias, (1, 1), (1, 1), (1, 1))


def convolve_by_recipe(
    recipe: Recipe,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolves ``x``, which ``recipe`` makes, and keeps the tensors of the recipe instead."""
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation))
    x = x.to(computing_dtype(weight))
    of_recipe = recipe.past, recipe.x, recipe.gamma, recipe.activation, recipe.history
    y = Convolution.apply(x, weight, bias, *of_recipe, geometry)
    return y.to(output_dtype(weight))
