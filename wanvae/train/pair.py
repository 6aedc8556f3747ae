"""What the encoder sees of a clip, and what the decoder should give back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Pair(NamedTuple):
    """An input and its target: of one clip ``(C, T, H, W)``, or of a batch ``(B, C, T, H, W)``.

    input: what the encoder sees, in [-1, 1].
    target: what the output is compared with, in [-1, 1], of as many frames.
    """

    input: Tensor
    target: Tensor


def pair_of(batch: Tensor | Pair) -> Pair:
    """Returns a batch of training samples as a pair; a tensor is input and target at once."""
    return batch if isinstance(batch, Pair) else Pair(batch, batch)
