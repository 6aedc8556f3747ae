"""1D convolutions with gradients whose kernel has one position: each frame is treated alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wanvae.nn.kernels.activations import activate_backward_into, activate_into

# Frames at once, for each thread.
FRAMES = 256


def suits(size: int, stride: int, padding: int) -> bool:
    """Returns whether a kernel of ``size`` positions treats each frame alone."""
    return size == stride == 1 and padding == 0


def convolve(frames: Tensor, matrix: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Returns ``activation(frames)`` ``(N, C)`` times the matrix ``(O, C)``, plus the bias."""
    y = frames.new_empty(len(frames), len(matrix))
    for block, given in activate_blocks(frames, activation):
        if bias is None:
            torch.mm(given, matrix.T, out=y[block])
        else:
            torch.addmm(bias, given, matrix.T, out=y[block])
    return y


def find_gradients(
    grad: Tensor, frames: Tensor, matrix: Tensor, activation: str, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of frames and matrix where ``wanted``, from ``grad`` ``(N, O)``."""
    of_frames = torch.empty_like(frames) if wanted[0] else None
    of_matrix = torch.zeros_like(matrix) if wanted[1] else None
    for block, given in activate_blocks(frames, activation):
        if of_matrix is not None:
            of_matrix.addmm_(grad[block].T, given)
        if of_frames is not None:
            of_given = grad[block] @ matrix
            activate_backward_into(activation, of_given, frames[block], of_frames[block])
    return of_frames, of_matrix


def activate_blocks(frames: Tensor, activation: str) -> Iterator[tuple[slice, Tensor]]:
    """Yields a few frames after another: where they are, and their activation."""
    length = FRAMES * torch.get_num_threads()
    buffer = frames.new_empty(length, frames.shape[1])
    for start in range(0, len(frames), length):
        block = slice(start, start + length)
        given = buffer[: len(frames[block])]
        activate_into(activation, frames[block], given)
        yield block, given
