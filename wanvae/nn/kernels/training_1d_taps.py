"""1D convolutions with gradients, by a matrix product for each tap of the kernel.

The frames of a step of the kernel, ``stride`` of them, count as one row with more channels. A few
clips are processed at once, with time outermost. So each tap sees consecutive rows of all of these
clips, and no product is computed for padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanvae.nn.kernels.activations import activate_backward_into, activate_into

# Rows of a product, for each thread.
ROWS = 256


@dataclass(frozen=True)
class Steps:
    """How a kernel steps over clips.

    Attributes:
        frames: frames of a clip.
        length: outputs of a clip.
        taps: products of an output.
        stride: frames of a row.
        padding: zeros before the first frame.
        dilation: distance of taps in rows.
    """

    frames: int
    length: int
    taps: int
    stride: int
    padding: int
    dilation: int

    @classmethod
    def of(cls, frames: int, size: int, stride: int, padding: int, dilation: int) -> Steps:
        """Returns the steps of a kernel of ``size`` positions, a multiple of ``stride``."""
        length = (frames + 2 * padding - (size - 1) * dilation - 1) // stride + 1
        return cls(frames, length, size // stride, stride, padding, dilation)

    @property
    def rows(self) -> int:
        """Rows of a clip with its padding."""
        return self.length + (self.taps - 1) * self.dilation

    @property
    def seen(self) -> slice:
        """The frames that the kernel sees."""
        return slice(min(self.frames, self.rows * self.stride - self.padding))

    @property
    def place(self) -> slice:
        """The place of these frames among the frames with padding."""
        return slice(self.padding, self.padding + self.seen.stop)

    def cut(self, batch: int) -> Iterator[slice]:
        """Yields the clips that are processed at once."""
        clips = max(1, ROWS * torch.get_num_threads() // self.length)
        for start in range(0, batch, clips):
            yield slice(start, min(batch, start + clips))

    def of_taps(self) -> Iterator[tuple[int, slice, slice]]:
        """Yields each tap that sees frames, the rows that it sees, and the outputs it adds to."""
        first, last = self.place.start // self.stride, -(-self.place.stop // self.stride)
        for tap in range(self.taps):
            shift = tap * self.dilation
            start, stop = max(0, first - shift), min(self.length, last - shift)
            if start < stop:
                yield tap, slice(start + shift, stop + shift), slice(start, stop)

    @property
    def products(self) -> int:
        """How often a tap sees a row of a clip."""
        return sum(outputs.stop - outputs.start for _, _, outputs in self.of_taps())


def suits(size: int, stride: int, padding: int, dilation: int) -> bool:
    """Returns whether this is a way to convolve with a kernel of ``size`` positions."""
    return stride == 1 or (dilation == 1 and size % stride == 0)


def convolve(
    rows: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    activation: str,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """Convolves ``activation(rows)`` ``(B, T, C)`` with ``(O, K, C)`` to ``(B, length, O)``."""
    steps = Steps.of(rows.shape[1], kernel.shape[1], stride, padding, dilation)
    factors = kernel.reshape(len(kernel), steps.taps, -1).unbind(1)
    y = rows.new_empty(len(rows), steps.length, len(kernel))
    for clips in steps.cut(len(rows)):
        inputs = gather_inputs(steps, rows[clips], activation)
        outputs = rows.new_zeros(steps.length, inputs.shape[1], len(kernel))
        if bias is not None:
            outputs += bias
        for tap, seen, added in steps.of_taps():
            outputs[added].flatten(0, 1).addmm_(inputs[seen].flatten(0, 1), factors[tap].T)
        y[clips] = outputs.transpose(0, 1)
    return y


def find_gradients(
    grad: Tensor,
    rows: Tensor,
    kernel: Tensor,
    activation: str,
    stride: int,
    padding: int,
    dilation: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of ``rows`` and ``kernel`` where ``wanted``, from ``grad`` of outputs.

    Args:
        grad: ``(B, length, O)``.
        wanted: whether the gradients of rows and kernel are wanted.
    """
    steps = Steps.of(rows.shape[1], kernel.shape[1], stride, padding, dilation)
    factors = kernel.reshape(len(kernel), steps.taps, -1).unbind(1)
    of_rows = torch.empty_like(rows) if wanted[0] else None
    of_kernel = kernel.new_zeros(steps.taps, *factors[0].shape) if wanted[1] else None
    for clips in steps.cut(len(rows)):
        of_outputs = grad[clips].transpose(0, 1).contiguous()
        if of_kernel is not None:
            inputs = gather_inputs(steps, rows[clips], activation)
            for tap, seen, added in steps.of_taps():
                pair = of_outputs[added].flatten(0, 1), inputs[seen].flatten(0, 1)
                of_kernel[tap].addmm_(pair[0].T, pair[1])
        if of_rows is not None:
            of_inputs = rows.new_zeros(steps.rows, of_outputs.shape[1], factors[0].shape[1])
            for tap, seen, added in steps.of_taps():
                of_seen = of_inputs[seen].flatten(0, 1)
                of_seen.addmm_(of_outputs[added].flatten(0, 1), factors[tap])
            scatter_gradients(steps, of_inputs, rows[clips], activation, of_rows[clips])
    if of_kernel is None:
        return of_rows, None
    return of_rows, of_kernel.movedim(0, 1).reshape(kernel.shape)


def gather_inputs(steps: Steps, rows: Tensor, activation: str) -> Tensor:
    """Returns the activation of clips ``(B, T, C)``, with padding, as ``(rows, B, stride * C)``."""
    batch, _, channels = rows.shape
    padded = rows.new_zeros(batch, steps.rows * steps.stride, channels)
    activate_into(activation, rows[:, steps.seen], padded[:, steps.place])
    return padded.view(batch, steps.rows, -1).transpose(0, 1).contiguous()


def scatter_gradients(
    steps: Steps, of_inputs: Tensor, rows: Tensor, activation: str, out: Tensor
) -> None:
    """Writes the gradient of clips ``(B, T, C)`` from the gradient of ``gather_inputs``."""
    batch, _, channels = rows.shape
    of_padded = of_inputs.transpose(0, 1).reshape(batch, -1, channels)
    pair = of_padded[:, steps.place], rows[:, steps.seen]
    activate_backward_into(activation, *pair, out[:, steps.seen])
    out[:, steps.seen.stop :] = 0
