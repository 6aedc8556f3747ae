"""The operators for GPUs in PyTorch's own operations, for any device and dtype.

They compute in at least float32 and round once, to the dtype of their input. Outputs have their
channels (dim 1) innermost. No operator has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.doubled import make_phase_weights
from wanvae.nn.kernels.precision import wide_dtype
from wanvae.nn.kernels.rms_norm import inverse_norm, scale

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "relu": F.relu,
}

DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "silu": lambda y: y.sigmoid() * (1 + y * (1 - y.sigmoid())),
    "relu": lambda y: (y > 0).to(y.dtype),
}
# The inverse of the smallest norm, see ``inverse_norm``.
LARGEST_INVERSE = 1e12


def join(
    past: Tensor | None,
    x: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    activation: str,
    history: int,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """Computes the input of a causal convolution, and the frames to keep for the next one.

    Args:
        past: the frames before, ``(B, C, P, ...)`` with P of at most ``history``; None is no frame.
        x: new frames ``(B, C, T, ...)``, or images ``(B, C, H, W)`` with ``history`` 0.
        bias: added to each position of ``x``, ``(C,)``; None adds nothing.
        gamma: of Wan's norm over channels, ``(C, 1, ...)``; None does not normalize.
        activation: a name in ``ACTIVATIONS``, applied last.
        history: frames before the new ones. Zeros stand for frames that ``past`` lacks.
        kept: how many frames to keep, of at most ``history + T``.

    Returns:
        The input ``(B, C, history + T, ...)``, and a copy of its last ``kept`` frames.
    """
    joined, last = allocate_joined(past, x, bias, gamma, activation, history, kept)
    length = 0 if past is None else past.shape[2]
    joined[:, :, : history - length] = 0
    if past is not None:
        joined[:, :, history - length : history] = past
    y = add_bias(x.to(wide_dtype(x)), bias)
    if gamma is not None:
        y = scale(y, inverse_norm(y), gamma)
    joined[:, :, history:] = ACTIVATIONS[activation](y)
    return joined, last.copy_(joined[:, :, joined.shape[2] - kept :])


def allocate_joined(
    past: Tensor | None,
    x: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    activation: str,
    history: int,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """Allocates the results of ``join``."""
    batch, channels, frames, *size = x.shape
    lengths = history + frames, kept
    joined, last = (allocate((batch, channels, length, *size), x) for length in lengths)
    return joined, last


def join_fits(
    past: Tensor | None, x: Tensor, bias: Tensor | None, gamma: Tensor | None, *_: object
) -> bool:
    """Returns whether the shapes of the arguments of ``join`` suit each other."""
    channels = x.shape[1]
    if past is not None and past.shape != (*x.shape[:2], past.shape[2], *x.shape[3:]):
        return False
    return is_for(channels, bias) and is_for(channels, gamma)


def is_for(channels: float, parameter: Tensor | None) -> bool:
    """Returns whether a parameter has one value for each of some channels; None always suits."""
    return parameter is None or parameter.numel() == channels


def add_(y: Tensor, bias: Tensor | None, shortcut: Tensor) -> Tensor:
    """Adds a bias ``(C,)`` or None, and a tensor of the same shape and dtype, to ``y`` in place."""
    return y.copy_(add_bias(y.to(wide_dtype(y)), bias) + shortcut)


def keep(y: Tensor, bias: Tensor | None, shortcut: Tensor) -> Tensor:
    """Returns ``y``, as ``add_`` does."""
    return y


def make_phases(weight: Tensor) -> Tensor:
    """Returns four kernels ``(4 * O, C, 2, 2)`` for small images, from one ``(O, C, 3, 3)``.

    The one kernel is for images that are doubled by repetition. Of each 2x2 positions of its
    output, the four kernels compute the top left, top right, bottom left and bottom right one.
    """
    rows = make_phase_weights(weight.to(wide_dtype(weight)), dim=2)
    phases = torch.cat([kernel for row in rows for kernel in make_phase_weights(row, dim=3)])
    return allocate_phases(weight).copy_(phases)


def allocate_phases(weight: Tensor) -> Tensor:
    """Allocates the result of ``make_phases``."""
    return allocate((4 * len(weight), weight.shape[1], 2, 2), weight)


def interleave(phases: Tensor, bias: Tensor | None) -> Tensor:
    """Returns images ``(N, O, 2 * H, 2 * W)`` from ``(N, 4 * O, H + 1, W + 1)``.

    The four groups of channels are the output of the four kernels of ``make_phases``, with a
    padding of 1. ``bias`` is ``(O,)`` or None.
    """
    y = allocate_interleaved(phases, bias)
    height, width = y.shape[2] // 2, y.shape[3] // 2
    for index, phase in enumerate(phases.chunk(4, dim=1)):
        row, column = divmod(index, 2)
        inside = phase[:, :, row : row + height, column : column + width]
        y[:, :, row::2, column::2] = add_bias(inside.to(wide_dtype(y)), bias)
    return y


def allocate_interleaved(phases: Tensor, bias: Tensor | None) -> Tensor:
    """Allocates the result of ``interleave``."""
    images, channels, height, width = phases.shape
    return allocate((images, channels // 4, 2 * (height - 1), 2 * (width - 1)), phases)


def interleave_frames(x: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ``(B, C, 2 * T, ...)`` from ``(B, 2 * C, T, ...)``.

    The first half of the channels is the earlier of two frames. ``bias`` is ``(2 * C,)`` or None.
    """
    y = allocate_doubled_frames(x, bias)
    for index, frames in enumerate(add_bias(x.to(wide_dtype(x)), bias).chunk(2, dim=1)):
        y[:, :, index::2] = frames
    return y


def allocate_doubled_frames(x: Tensor, bias: Tensor | None) -> Tensor:
    """Allocates the result of ``interleave_frames``."""
    batch, channels, frames, *size = x.shape
    return allocate((batch, channels // 2, 2 * frames, *size), x)


def norm_activate_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of ``x`` and ``gamma`` for ``activation(norm(x))``.

    Inside an operator PyTorch records nothing, so the formulas are written out.
    """
    wide = x.to(wide_dtype(x))
    inverse = inverse_norm(wide)
    direction = wide * inverse
    root = math.sqrt(x.shape[1])
    scales = root * gamma.to(wide.dtype)
    of_output = grad.to(wide.dtype) * DERIVATIVES[activation](direction * scales)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    of_gamma = root * (of_output * direction).sum(axes)
    of_direction = of_output * scales
    along = direction * (of_direction * direction).sum(1, keepdim=True)
    # Where the norm is limited, it does not depend on ``x``.
    of_x = inverse * (of_direction - torch.where(inverse < LARGEST_INVERSE, along, 0))
    return allocate(x.shape, x).copy_(of_x), of_gamma.view(gamma.shape).to(gamma.dtype)


def allocate_gradients(
    grad: Tensor, x: Tensor, gamma: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Allocates the results of ``norm_activate_backward``."""
    return allocate(x.shape, x), torch.empty_like(gamma)


def add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ``x`` plus a bias for its channels, if there is one."""
    return x if bias is None else x + bias.view(-1, *[1] * (x.dim() - 2))


def allocate(shape: Sequence[int], like: Tensor) -> Tensor:
    """Returns an uninitialized tensor with its channels innermost."""
    order = (0, *range(2, len(shape)), 1)
    return torch.empty_permuted(shape, order, dtype=like.dtype, device=like.device)
