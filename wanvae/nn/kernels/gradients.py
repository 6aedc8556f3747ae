"""Convolutions in training whose input is made again for the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from wanvae.nn.kernels.convolution import Convolve, convolve_on_cpu
from wanvae.nn.kernels.pointwise import PointwiseFunction
from wanvae.nn.kernels.precision import autocast_dtype, convert, native_dtype
from wanvae.nn.kernels.products import (
    Product,
    convolve_by_products,
    find_gradients_by_products,
    list_products,
)
from wanvae.nn.kernels.remaking import Recipe, find_recipe, sum_over_positions

# Of input, weight and bias.
Gradients: TypeAlias = "tuple[Tensor | None, Tensor | None, Tensor | None]"


@dataclass(frozen=True)
class Geometry:
    """How a convolution goes over its input.

    Attributes:
        stride, padding, dilation: a number for each axis.
        zeros: the number of frames of zeros that the input begins with.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    zeros: int

    def list_products(self, x: Tensor, weight: Tensor) -> list[Product] | None:
        """Returns the products of the convolution; None if PyTorch's own is as fast."""
        if x.dim() != 5 or max(*self.stride, *self.dilation) > 1 or self.padding[0]:
            return None
        return list_products(count_frames(x, weight), self.zeros, weight.shape, x.dtype)


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
        with torch.autocast(joined.device.type, enabled=False):
            return convolve(joined, kernel, bias, geometry)

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
        again = torch.is_grad_enabled()
        joined = recipe.make_by_pytorch() if again else recipe.make()
        find = find_gradients_by_pytorch if again else find_gradients
        joined, kernel = joined.to(ctx.dtype), weight.to(ctx.dtype)
        wanted = ctx.needs_input_grad[:3]
        of_joined, of_weight, of_bias = find(grad, joined, kernel, ctx.geometry, wanted)
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        of_bias = None if of_bias is None else of_bias.to(ctx.bias_dtype)
        return of_joined, of_weight, of_bias, None, None, None, None, None, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolves tensors of one dtype by the fastest algorithm; no gradients."""
    products = geometry.list_products(x, weight)
    if products is None:
        return convolve_on_cpu(
            x, weight, bias, geometry.stride, geometry.padding, geometry.dilation
        )
    frames, (_, *padding) = count_frames(x, weight), geometry.padding
    return convolve_by_products(products, x, weight, bias, frames, tuple(padding))


def find_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: Sequence[bool]
) -> Gradients:
    """Returns what ``find_gradients_by_pytorch`` returns, by the fastest algorithm."""
    products = geometry.list_products(x, weight)
    if products is None:
        return find_gradients_by_pytorch(grad, x, weight, geometry, wanted)
    of_x, of_weight = find_gradients_by_products(
        products, grad, x, weight, geometry.padding[1:], wanted[:2]
    )
    return of_x, of_weight, sum_over_positions(grad) if wanted[2] else None


def find_gradients_by_pytorch(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: Sequence[bool]
) -> Gradients:
    """Returns the gradients of input, weight and bias; their own gradients pass through it.

    Args:
        grad: the gradient of the output.
        wanted: which gradients to compute; others are None.
    """
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [len(weight)],
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0] * len(geometry.stride),
        1,
        wanted,
    )


def count_frames(x: Tensor, weight: Tensor) -> int:
    """Returns the frames of the output of a convolution of stride 1 without padding in time."""
    return x.shape[2] - weight.shape[2] + 1


def remember_recipe(
    past: Tensor | None, x: Tensor, pointwise: Sequence[PointwiseFunction], history: int
) -> Convolve | None:
    """Returns the convolution of frames that a recipe joins; None if there is no recipe."""
    recipe = find_recipe(past, x, pointwise, history)
    return None if recipe is None else partial(convolve_by_recipe, recipe)


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
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), recipe.zeros)
    dtype = autocast_dtype(weight)
    x = x.to(dtype or native_dtype(weight.dtype))
    of_recipe = recipe.past, recipe.x, recipe.gamma, recipe.activation, recipe.history
    y = Convolution.apply(x, weight, bias, *of_recipe, geometry)
    return y.to(dtype or weight.dtype)
