"""3D convolutions in training as sums of 2D convolutions, and the gradients of these sums.

A causal convolution adds up, for each position (tap) of its kernel along time, a 2D convolution of
frames. Fewer 2D convolutions do: frames of zeros before a clip need none, and Winograd's algorithms
(Lavin and Gray, arXiv 1509.09308) convolve sums of frames with sums of taps. A list of such
products gives the output. The same list, read from the output to the input, gives the gradients of
input and weight with as few convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.winograd_1d import FEWEST_CHANNELS

# Frames along time, and the number that they are multiplied by.
Term: TypeAlias = tuple[slice, float]


@dataclass(frozen=True)
class Product:
    """The 2D convolutions of sums of frames with a sum of taps.

    Attributes:
        inputs: the frames of the input that are added up.
        taps: the number that each tap is multiplied by, before taps are added up.
        outputs: the frames of the output that the result is added to.
        begins: whether the result is the first one for these frames. All their factors are 1.
    """

    inputs: tuple[Term, ...]
    taps: tuple[float, ...]
    outputs: tuple[Term, ...]
    begins: bool = False


@dataclass(frozen=True)
class Scheme:
    """Winograd's F(n, 3): how to find ``n`` frames, a tile, by ``n + 2`` products.

    Attributes:
        outputs: ``n``.
        products: for each product, the factors of ``n + 2`` frames of the input, of three taps and
            of ``n`` frames of the output. In the first product, the last are all 1.
    """

    outputs: int
    products: tuple[tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]], ...]


PAIRS = Scheme(
    2,
    (
        ((0, 1, 1, 0), (1 / 2, 1 / 2, 1 / 2), (1, 1)),
        ((0, -1, 1, 0), (1 / 2, -1 / 2, 1 / 2), (1, -1)),
        ((1, 0, -1, 0), (1, 0, 0), (1, 0)),
        ((0, -1, 0, 1), (0, 0, 1), (0, 1)),
    ),
)

FOURS = Scheme(
    4,
    (
        ((0, -4, -4, 1, 1, 0), (-1 / 6, -1 / 6, -1 / 6), (1, 1, 1, 1)),
        ((0, 4, -4, -1, 1, 0), (-1 / 6, 1 / 6, -1 / 6), (1, -1, 1, -1)),
        ((0, -2, -1, 2, 1, 0), (1 / 24, 1 / 12, 1 / 6), (1, 2, 4, 8)),
        ((0, 2, -1, -2, 1, 0), (1 / 24, -1 / 12, 1 / 6), (1, -2, 4, -8)),
        ((4, 0, -5, 0, 1, 0), (1 / 4, 0, 0), (1, 0, 0, 0)),
        ((0, 4, 0, -5, 0, 1), (0, 0, 1), (0, 0, 0, 1)),
    ),
)

# One frame after zeros, which sees the last tap alone.
FIRST = [Product(((slice(2, 3), 1),), (0, 0, 1), ((slice(0, 1), 1),), begins=True)]

# Two frames after zeros.
FIRST_TWO = [
    Product(((slice(2, 4), 1),), (0, 0, 1), ((slice(0, 2), 1),), begins=True),
    Product(((slice(2, 3), 1),), (0, 1, 0), ((slice(1, 2), 1),)),
]


def list_products(
    frames: int, zeros: int, weight_shape: Sequence[int], dtype: torch.dtype
) -> list[Product] | None:
    """Returns the products of a convolution along time; None if PyTorch's own is as fast.

    Args:
        frames: of the output.
        zeros: the number of frames of zeros that the input begins with.
        weight_shape: ``(O, C, taps, kH, kW)``.
    """
    taps, fewest = weight_shape[2], min(weight_shape[:2])
    if taps == 1:
        return [Product(((slice(0, frames), 1),), (1,), ((slice(0, frames), 1),), begins=True)]
    if taps != 3 or fewest < FEWEST_CHANNELS or dtype not in (torch.float32, torch.float64):
        return None
    if zeros == 2 and frames <= 2:
        return FIRST if frames == 1 else FIRST_TWO
    if frames % 2 == 0:
        return list_tiles(0, frames)
    return FIRST + list_tiles(1, frames) if zeros == 2 else None


def list_tiles(start: int, stop: int) -> list[Product]:
    """Returns the products of an even number of frames, from ``start`` to ``stop``."""
    scheme = PAIRS if (stop - start) % FOURS.outputs else FOURS

    def pick(factors: Sequence[float]) -> tuple[Term, ...]:
        places = (slice(start + i, stop + i, scheme.outputs) for i in range(len(factors)))
        return tuple(term for term in zip(places, factors, strict=True) if term[1])

    return [
        Product(pick(inputs), taps, pick(outputs), begins=i == 0)
        for i, (inputs, taps, outputs) in enumerate(scheme.products)
    ]


def convolve_by_products(
    products: Sequence[Product],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frames: int,
    padding: tuple[int, int],
) -> Tensor:
    """Computes a 3D convolution of stride 1 by ``products``; no gradients.

    Args:
        frames: of the output.
        padding: along height and width.
    """
    height, width = (
        size + 2 * pad - taps + 1
        for size, pad, taps in zip(x.shape[3:], padding, weight.shape[3:], strict=True)
    )
    y = empty((len(x), len(weight), frames, height, width), x.dtype, x.device)
    for product in products:
        images = add_up(x, product.inputs)
        kernel = combine_taps(weight, product.taps)
        result = F.conv2d(images, kernel, bias if product.begins else None, padding=padding)
        result = group_frames(result, len(x))
        for place, factor in product.outputs:
            if product.begins:
                y[:, :, place].copy_(result)
            else:
                y[:, :, place].add_(result, alpha=factor)
    return y


def find_gradients_by_products(
    products: Sequence[Product],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: tuple[int, int],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of ``x`` and ``weight``; no gradients of these.

    Args:
        grad: the gradient of the output.
        wanted: which gradients to compute; others are None.
    """
    of_x = empty(x.shape, x.dtype, x.device).zero_() if wanted[0] else None
    of_weight = torch.zeros_like(weight) if wanted[1] else None
    for product in products:
        of_images, of_kernel, _ = torch.ops.aten.convolution_backward(
            add_up(grad, product.outputs),
            add_up(x, product.inputs),
            combine_taps(weight, product.taps),
            None,
            (1, 1),
            padding,
            (1, 1),
            False,
            (0, 0),
            1,
            (*wanted, False),
        )
        if of_x is not None:
            for place, factor in product.inputs:
                of_x[:, :, place].add_(group_frames(of_images, len(x)), alpha=factor)
        if of_weight is not None:
            for tap, factor in enumerate(product.taps):
                if factor:
                    of_weight[:, :, tap].add_(of_kernel, alpha=factor)
    return of_x, of_weight


def add_up(x: Tensor, terms: Sequence[Term]) -> Tensor:
    """Returns a sum of frames of ``(B, C, T, H, W)`` as images, ``(B * n, C, H, W)``."""
    (place, factor), *others = terms
    images = x[:, :, place]
    if others or factor != 1:
        images = torch.mul(images, factor, out=empty(images.shape, x.dtype, x.device))
    for place, factor in others:
        images.add_(x[:, :, place], alpha=factor)
    return images.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def group_frames(images: Tensor, batch: int) -> Tensor:
    """Returns images ``(B * n, C, H, W)`` as ``(B, C, n, H, W)``."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)


def combine_taps(weight: Tensor, factors: Sequence[float]) -> Tensor:
    """Returns a sum of the taps of ``(O, C, taps, kH, kW)`` along time, channels innermost."""
    taps = [(tap, factor) for tap, factor in enumerate(factors) if factor]
    (first, scale), *others = taps
    kernel = weight[:, :, first]
    if others or scale != 1:
        kernel = kernel * scale
    for tap, factor in others:
        kernel.add_(weight[:, :, tap], alpha=factor)
    return kernel.contiguous(memory_format=torch.channels_last)
