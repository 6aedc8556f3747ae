"""A linear map of the channels of each group."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """Maps ``(B, groups * n_in, T)`` to ``(B, groups * n_out, T)``, each group on its own.

    It starts like PyTorch's linear layers. Parameters are ``weight`` ``(groups, n_out, n_in)`` and
    ``bias`` ``(groups, n_out)``.
    """

    def __init__(self, groups: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, n_out, n_in))
        self.bias = nn.Parameter(torch.empty(groups, n_out))
        bound = 1 / math.sqrt(n_in)
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        groups, _, n_in = self.weight.shape
        parts = x.unflatten(1, (groups, n_in))
        return (self.weight @ parts + self.bias[:, :, None]).flatten(1, 2)
