"""The gradients of a convolution by PyTorch, which have gradients of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# Of input, weight and bias.
Gradients: TypeAlias = "tuple[Tensor | None, Tensor | None, Tensor | None]"


def find_gradients_of_convolution(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> Gradients:
    """Returns the gradients of input, weight and bias of a convolution of any rank.

    Args:
        grad: the gradient of the output.
        wanted: which gradients to compute; others are None.
    """
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [len(weight)],
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        1,
        wanted,
    )
