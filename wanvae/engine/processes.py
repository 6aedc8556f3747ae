"""What the processes of a run agree on."""

from __future__ import annotations

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
