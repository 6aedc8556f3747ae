"""Pointwise layers between two convolutions, as the steps that one operation does at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from wanvae.nn.kernels.pointwise import AddBias, PointwiseFunction
from wanvae.nn.kernels.rms_norm import ScaledNorm

ACTIVATIONS = {nn.SiLU: "silu", nn.ReLU: "relu"}


@dataclass(frozen=True)
class Steps:
    """Pointwise layers as one operator does them: add a bias, normalize, activate.

    Attributes:
        bias: ``(C,)``; None adds nothing.
        gamma: of Wan's norm, ``(C, 1, ...)``; None does not normalize.
        activation: a name that the operator ``join`` knows.
    """

    bias: Tensor | None = None
    gamma: Tensor | None = None
    activation: str = "none"

    @property
    def only_adds(self) -> bool:
        """Whether a bias is all there is, or nothing."""
        return self.gamma is None and self.activation == "none"


def find_steps(layers: Sequence[PointwiseFunction]) -> Steps | None:
    """Returns pointwise layers as ``Steps``; None if one operator cannot do them."""
    bias = gamma = None
    activation = "none"
    for layer in layers:
        if isinstance(layer, AddBias) and (bias, gamma, activation) == (None, None, "none"):
            bias = layer.bias
        elif isinstance(layer, ScaledNorm) and gamma is None and activation == "none":
            gamma = layer.gamma
        elif type(layer) in ACTIVATIONS and activation == "none":
            activation = ACTIVATIONS[type(layer)]
        elif not changes_nothing(layer):
            return None
    return Steps(bias, gamma, activation)


def changes_nothing(layer: PointwiseFunction) -> bool:
    """Returns whether a layer returns its input."""
    dropout = isinstance(layer, nn.Dropout) and not (layer.training and layer.p)
    return dropout or isinstance(layer, nn.Identity)
