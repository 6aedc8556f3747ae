"""How a model uses its codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeUse:
    """How often the codes were chosen.

    Attributes:
        frames: the number of frames.
        counts: ``(Q, K)``, how often each code of each layer was chosen.
    """

    frames: int
    counts: Tensor

    @property
    def used(self) -> Tensor:
        """``(Q,)``, the number of codes of each layer that were chosen."""
        return (self.counts > 0).sum(1)

    @property
    def code_use(self) -> Tensor:
        """``(Q,)``, the share of the codes of each layer that were chosen."""
        return self.used.double() / self.counts.shape[1]

    @property
    def perplexity(self) -> Tensor:
        """``(Q,)``, the exponential of the entropy of the codes of each layer, at most K."""
        shares = self.counts.double() / self.counts.sum(1, keepdim=True)
        return torch.special.entr(shares).sum(1).exp()
