"""Bodies of motion networks, ``(B, C, T)`` to the same shape, and a task that needs memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from motion.networks.receptive import effective_kernel
from motion.networks.resnet import Resnet1D
from tools.comparing import count_parameters, find_nearest, find_widths_around
from wanvae.nn import CausalConv, Sequential, State, Streaming
from wanvae.nn.region import Region

BackboneKind = Literal["resnet1d", "cnn", "lstm", "transformer"]

KERNEL = 3
HEADS = 4
# The longest wave that encodes positions of a Transformer, as published.
LONGEST_WAVE = 10_000


def make_cnn(width: int, depth: int) -> Sequential:
    """Returns the convolutions of Resnet1D in a row: no shortcuts, and no dilation."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.ReLU(), CausalConv(1, width, width, KERNEL, causal=False)]
        layers += [nn.ReLU(), CausalConv(1, width, width, 1)]
    return Sequential(*layers)


class ClipBody(Streaming):
    """A body that needs a whole clip ``(B, C, T)`` at once, so it cannot stream."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        self.refuse_to_continue(state)
        return self.process(x), ()

    def process(self, x: Tensor) -> Tensor:
        """Returns the output for whole clips."""
        raise NotImplementedError(f"{type(self).__name__} has no process")

    def looks_across_time(self) -> bool:
        return True


class LSTMBody(ClipBody):
    """An LSTM in both directions, and a linear layer back to ``width`` channels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, width)

    def process(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x.mT)[0]).mT


class TransformerBody(ClipBody):
    """A Transformer layer, norms first, that looks at all of time (Vaswani et al., 1706.03762).

    Sines and cosines encode positions. ``hidden`` is the width of its feed-forward network.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            width, HEADS, hidden, dropout=0.0, batch_first=True, norm_first=True
        )

    def process(self, x: Tensor) -> Tensor:
        return self.layer(x.mT + make_waves(x.shape[2], x.shape[1]).to(x)).mT


def make_waves(length: int, width: int) -> Tensor:
    """Returns ``(length, width)``: for each position sines, then cosines, of longer waves."""
    count = width // 2
    frequencies = LONGEST_WAVE ** (-torch.arange(count) / count)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def make_body(kind: BackboneKind, width: int, depth: int, growth: int) -> nn.Module:
    """Returns a body with about as many parameters as a ``Resnet1D`` of ``depth`` blocks.

    The hidden width of the LSTM and the Transformer is chosen for this.

    Args:
        width: C, a multiple of 4.
        growth: factor between dilations of Resnet1D.
    """
    resnet = partial(Resnet1D, width, depth, growth)
    if kind == "resnet1d":
        return resnet()
    if kind == "cnn":
        return make_cnn(width, depth)
    with torch.device("meta"):
        parameters = count_parameters(resnet())
    make = partial(LSTMBody if kind == "lstm" else TransformerBody, width)
    return make(find_nearest(find_widths_around(make, parameters), make, parameters))


def replace_bodies(network: nn.Module, kind: BackboneKind) -> None:
    """Replaces each Resnet1D of a network by a new body of a kind."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Resnet1D):
                setattr(parent, name, make_body_like(child, kind))


def make_body_like(resnet: Resnet1D, kind: BackboneKind) -> nn.Module:
    """Returns a body of a kind with the width, depth and dilation of a Resnet1D."""
    convs = [block.conv1 for block in resnet.model]
    dilations = sorted(conv.dilation[0] for conv in convs)
    growth = dilations[1] if len(dilations) > 1 else 1
    return make_body(kind, convs[0].weight.shape[1], len(convs), growth)


def reach(kind: BackboneKind, depth: int, growth: int) -> float:
    """Returns how many positions a body sees to each side: half the sum of its kernels."""
    if kind in ("lstm", "transformer"):
        return math.inf
    dilations = [growth**block if kind == "resnet1d" else 1 for block in range(depth)]
    return sum(effective_kernel(KERNEL, dilation) - 1 for dilation in dilations) // 2


@dataclass(frozen=True)
class Recall:
    """A task: recall a value ``distance`` positions after it was given.

    Attributes:
        distance: positions from the value to the place where it is asked for.
        length: positions of a sequence, more than ``distance``.
    """

    distance: int
    length: int

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sequences, the places where a value is asked for, and these values.

        Returns:
            Sequences ``(B, 3, T)``: normal noise, which holds the value to recall at one place; a
            mark at this place; a mark at the place where the value is asked for. Then these last
            places ``(B,)``, and the values ``(B,)`` of mean 0 and variance 1. Without memory, the
            best guess is 0.
        """
        noise = torch.randn(size, self.length, generator=generator)
        given = torch.randint(self.length - self.distance, (size,), generator=generator)
        asked, every = given + self.distance, torch.arange(size)
        marks = torch.zeros(2, size, self.length)
        marks[0, every, given] = 1
        marks[1, every, asked] = 1
        return torch.stack([noise, *marks], dim=1), asked, noise[every, given]


class Recaller(nn.Module):
    """A body between 1-convolutions, from sequences ``(B, 3, T)`` to values ``(B, T)``."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, width, 1)
        self.body = body
        self.last = nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))[:, 0]


def recall_error(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Returns the mean squared error of the values that are asked for; 1 is chance."""
    x, asked, values = batch
    recalled = model(x)[torch.arange(len(x)), asked]
    return (recalled - values).square().mean()
