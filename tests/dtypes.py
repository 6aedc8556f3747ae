"""Which dtypes a piece of code computes in."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ConvolutionDtypes(TorchDispatchMode):
    """Records the dtypes of convolutions and products of matrices inside ``with``.

    Attributes:
        seen: the dtypes of all their inputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(name in str(function) for name in ("convolution", "mm")):
            self.seen |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return function(*args, **(kwargs or {}))
