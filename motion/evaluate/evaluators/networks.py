"""The networks of the evaluators: motion and its description as vectors that lie close together.

Source: "Generating Diverse and Natural 3D Human Motions from Text" (Guo et al., CVPR 2022). The
names of the parameters come from the published weights. All sizes are read from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

# The slope of activations below 0, and the share of values that training drops.
SLOPE, DROPOUT = 0.2, 0.2
# Frames of a movement: two convolutions halve time.
FRAMES_OF_MOVEMENT = 4


class MovementEncoder(nn.Module):
    """Normalized motion ``(B, T, D)`` to movements ``(B, T // 4, M)``.

    D is all channels of HumanML3D or KIT except the contacts of the feet, which are the last 4.
    """

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__()
        self.channels = channels
        self.main = nn.Sequential(
            *make_halving(channels, width),
            *make_halving(width, size),
        )
        self.out_net = nn.Linear(size, size)

    @classmethod
    def of_weights(cls, tensors: Mapping[str, Tensor]) -> MovementEncoder:
        """Returns the network of published weights; KeyError if one is missing."""
        width, channels, _ = tensors["main.0.weight"].shape
        return cls(channels, width, len(tensors["out_net.weight"]))

    def forward(self, motion: Tensor) -> Tensor:
        return self.out_net(self.main(motion.mT).mT)


def make_halving(channels: int, width: int) -> tuple[nn.Module, ...]:
    """Returns layers that halve time."""
    convolution = nn.Conv1d(channels, width, kernel_size=4, stride=2, padding=1)
    return convolution, nn.Dropout(DROPOUT), nn.LeakyReLU(SLOPE)


class SequenceEncoder(nn.Module):
    """Sequences ``(B, T, C)`` of several lengths to vectors ``(B, E)``: a GRU in both directions.

    The vectors come from the last states of the two directions.
    """

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__()
        self.input_emb = nn.Linear(channels, width)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width, size),
        )
        self.hidden = nn.Parameter(torch.zeros(2, 1, width))

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Returns the vectors of the first ``lengths`` ``(B,)`` steps of each sequence."""
        packed = pack_padded_sequence(
            self.input_emb(sequences), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        start = self.hidden.expand(-1, len(sequences), -1).contiguous()
        _, (forwards, backwards) = self.gru(packed, start)
        return self.output_net(torch.cat([forwards, backwards], dim=1))


class MotionEncoder(SequenceEncoder):
    """Movements ``(B, T // 4, M)`` to vectors ``(B, E)``."""

    @classmethod
    def of_weights(cls, tensors: Mapping[str, Tensor]) -> MotionEncoder:
        """Returns the network of published weights; KeyError if one is missing."""
        return cls(*sizes_of_sequences(tensors))


class TextEncoder(SequenceEncoder):
    """Words ``(B, L, W)`` and their parts of speech ``(B, L, P)`` to vectors ``(B, E)``."""

    def __init__(self, parts: int, channels: int, width: int, size: int) -> None:
        super().__init__(channels, width, size)
        self.pos_emb = nn.Linear(parts, channels)

    @classmethod
    def of_weights(cls, tensors: Mapping[str, Tensor]) -> TextEncoder:
        """Returns the network of published weights; KeyError if one is missing."""
        return cls(tensors["pos_emb.weight"].shape[1], *sizes_of_sequences(tensors))

    def embed(self, words: Tensor, parts: Tensor, lengths: Tensor) -> Tensor:
        """Returns the vectors ``(B, E)`` of the first ``lengths`` ``(B,)`` words of each text."""
        return self(words + self.pos_emb(parts), lengths)


def sizes_of_sequences(tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Returns the sizes of a ``SequenceEncoder``: of a step, inside, and of the vectors."""
    width, channels = tensors["input_emb.weight"].shape
    return channels, width, len(tensors["output_net.3.weight"])
