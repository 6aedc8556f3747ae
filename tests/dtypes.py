"""Which dtypes a piece of code computes in."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Convolutions, and the products that 1D ones are computed by; not the products of attention.
COMPUTING = {
    "convolution",
    "convolution_backward",
    "convolution_overrideable",
    "mkldnn_convolution",
    "addmm",
    "baddbmm_",
    "mm",
}


class ConvolutionDtypes(TorchDispatchMode):
    """Records the dtypes that convolutions compute in inside ``with``.

    Attributes:
        seen: the dtypes of all their inputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket.__name__ in COMPUTING:
            self.seen |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return function(*args, **(kwargs or {}))
