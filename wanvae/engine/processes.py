"""What the processes of a run agree on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of ``x`` over the processes of a run, which all have to call this; no gradients.

    A process alone gets ``x``.
    """
    x = x.detach()
    if not (dist.is_available() and dist.is_initialized()):
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def means_over_processes(
    figures: Mapping[str, Tensor | float], device: torch.device
) -> dict[str, float]:
    """Figures by name, scalars of the same names in all processes, averaged over them in float32.

    Args:
        device: where the processes exchange tensors.
    """
    local = [
        torch.as_tensor(figure, dtype=torch.float32, device=device) for figure in figures.values()
    ]
    means = mean_over_processes(torch.stack(local)).tolist()
    return dict(zip(figures, means, strict=True))
