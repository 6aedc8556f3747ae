"""3D convolutions in training as sums of 2D convolutions, and the gradients of these sums.

A causal convolution adds up, for each position (tap) of its kernel along time, a 2D convolution of
frames. Fewer 2D convolutions do: frames of zeros before a clip need none, and Winograd's F(2, 3)
(Lavin and Gray, arXiv 1509.09308) finds two frames by four of them instead of six, because it
convolves sums of frames with sums of taps. A list of such products gives the output. The same list,
read from the output to the input, gives both gradients with as few convolutions.
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

# Frames along time and their sign, 1 or -1.
Term: TypeAlias = tuple[slice, int]


@dataclass(frozen=True)
class Product:
    """The 2D convolutions of some frames.

    Attributes:
        inputs: the frames of the input that are added up, and then convolved.
        kernel: the number that each tap is multiplied by, in the sum that they are convolved with.
        outputs: the frames of the output that the result is added to.
        begins: whether nothing was added to these frames before, so the result replaces them.
    """

    inputs: tuple[Term, ...]
    kernel: tuple[float, ...]
    outputs: tuple[Term, ...]
    begins: bool = False


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
        return [Product(((slice(0, frames), 1),), (1.0,), ((slice(0, frames), 1),), begins=True)]
    if taps != 3 or fewest < FEWEST_CHANNELS or dtype not in (torch.float32, torch.float64):
        return None
    if frames % 2 == 0 and (frames > 2 or zeros < 2):
        return list_pairs(0, frames)
    if zeros < 2:
        return None
    # The first frame sees the last tap alone.
    first = Product(((slice(2, 3), 1),), (0.0, 0.0, 1.0), ((slice(0, 1), 1),), begins=True)
    return [first, *list_pairs(1, frames)] if frames != 2 else list_two()


def list_two() -> list[Product]:
    """Returns the products of two frames after zeros."""
    return [
        Product(((slice(2, 4), 1),), (0.0, 0.0, 1.0), ((slice(0, 2), 1),), begins=True),
        Product(((slice(2, 3), 1),), (0.0, 1.0, 0.0), ((slice(1, 2), 1),)),
    ]


def list_pairs(start: int, stop: int) -> list[Product]:
    """Returns the products of pairs of frames from ``start`` to ``stop``: Winograd's F(2, 3)."""
    a, b, c, d = (slice(start + i, stop + i, 2) for i in range(4))
    even, odd = slice(start, stop, 2), slice(start + 1, stop, 2)
    return [
        Product(((b, 1), (c, 1)), (0.5, 0.5, 0.5), ((even, 1), (odd, 1)), begins=True),
        Product(((c, 1), (b, -1)), (0.5, -0.5, 0.5), ((even, 1), (odd, -1))),
        Product(((a, 1), (c, -1)), (1.0, 0.0, 0.0), ((even, 1),)),
        Product(((d, 1), (b, -1)), (0.0, 0.0, 1.0), ((odd, 1),)),
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
        kernel = combine_taps(weight, product.kernel)
        result = F.conv2d(images, kernel, bias if product.begins else None, padding=padding)
        result = group_frames(result, len(x))
        for place, sign in product.outputs:
            if product.begins:
                y[:, :, place].copy_(result)
            else:
                y[:, :, place].add_(result, alpha=sign)
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
            combine_taps(weight, product.kernel),
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
            for place, sign in product.inputs:
                of_x[:, :, place].add_(group_frames(of_images, len(x)), alpha=sign)
        if of_weight is not None:
            for tap, factor in enumerate(product.kernel):
                if factor:
                    of_weight[:, :, tap].add_(of_kernel, alpha=factor)
    return of_x, of_weight


def add_up(x: Tensor, terms: Sequence[Term]) -> Tensor:
    """Returns a sum of frames of ``(B, C, T, H, W)`` as images, ``(B * n, C, H, W)``.

    Args:
        terms: one term, or two, the first of which is positive.
    """
    first, *others = (x[:, :, place] for place, _ in terms)
    images = empty(first.shape, x.dtype, x.device)
    if others:
        torch.add(first, others[0], alpha=terms[1][1], out=images)
    else:
        images.copy_(first)
    return images.transpose(1, 2).flatten(0, 1)


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
