"""The moving average of a model's weights."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors: TypeAlias = "tuple[Tensor, ...] | list[Tensor]"


def moving_average(model: nn.Module, decay: float, device: torch.device) -> AveragedModel:
    """A copy of ``model`` that each ``update_parameters(model)`` moves towards it.

    The decay of update n, counted from 0, is ``(1 + n) / (10 + n)`` where that is less than
    ``decay``. Otherwise the first weights, which are far from their end, would last too long.
    Buffers are copied as they are.
    """

    def update(averages: Tensors, weights: Tensors, count: Tensor | int) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, weights, count)

    return AveragedModel(model, device, multi_avg_fn=update)
