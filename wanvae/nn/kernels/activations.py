"""Activations of the input of a convolution, and their gradients, written where they are needed."""

from __future__ import annotations

import torch
from torch import Tensor


def activate_into(name: str, x: Tensor, out: Tensor) -> None:
    """Writes the activation of ``x``; no gradients."""
    if name == "relu":
        torch.clamp_min(x, 0, out=out)
    elif name == "silu":
        torch.ops.aten.silu.out(x, out=out)
    else:
        out.copy_(x)


def activate_backward_into(name: str, grad: Tensor, x: Tensor, out: Tensor) -> None:
    """Writes the gradient of ``x`` from the gradient ``grad`` of its activation; no gradients."""
    if name == "relu":
        torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=out)
    elif name == "silu":
        torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=out)
    else:
        out.copy_(grad)
