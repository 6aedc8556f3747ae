"""Lookup-free quantization: the signs of a few channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from motion.quantizer.books import NO_CODE, Books
from motion.quantizer_config import QuantizerConfig
from wanvae.engine.processes import mean_over_processes

# Probabilities below this count as this in an entropy.
LEAST = 1e-5


@dataclass(frozen=True)
class SignSearch:
    """The signs of channels, as codes.

    Attributes:
        size: the size of the codes of the first layer, a scalar.
        steps: ``(d,)``, int64; what a positive channel adds to the index of a code.
        groups: the number of groups.
    """

    looks_back: ClassVar[bool] = False
    size: Tensor
    steps: Tensor
    groups: int

    @property
    def row_size(self) -> int:
        return len(self.steps)

    def find(
        self, given: Tensor, layer: int, before: Tensor, temperature: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        positive, size = given > 0, self.size * 2.0 ** -(layer // self.groups)
        return (positive * self.steps).sum(1), torch.where(positive, size, -size)


class SignCodes(Books):
    """LFQ (Yu et al., arXiv 2310.05737): the code of a latent is the signs of its channels.

    Codes of each further layer are half as large, so that layers refine each other. An entropy loss
    makes each latent sure of its code, and the batch use all codes. An index has the first channel
    as its highest bit.

    The state is ``size``, the size of the codes of the first layer, which is 1.
    """

    size: Tensor

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config.groups, dim)
        self.config = config
        self.register_buffer("size", torch.tensor(1.0))

    def search(self) -> SignSearch:
        return SignSearch(self.size.to(self.dtype), self._steps(), self.groups)

    def select(self, indices: Tensor) -> Tensor:
        positive = (indices.clamp_min(0)[..., None] & self._steps()) > 0
        depths = torch.arange(indices.shape[1], device=indices.device) // self.groups
        sizes = (self.size.to(self.dtype) * 2.0**-depths)[:, None]
        return torch.where(positive, sizes, -sizes) * (indices != NO_CODE)[..., None]

    def regularize(self, rows: Tensor, indices: Tensor) -> Tensor | None:
        """Returns the mean over the layers of the entropy loss of the rows that each quantizes."""
        config = self.config.lfq
        if config.entropy == 0:
            return None
        codes = self.select(indices)
        parts = list(rows.chunk(self.groups, 1))
        losses = []
        for layer in range(indices.shape[1]):
            given = parts[layer % self.groups]
            parts[layer % self.groups] = given - codes[:, layer]
            losses.append(self._entropy_loss(given[indices[:, layer] != NO_CODE], layer))
        return config.entropy * torch.stack(losses).mean()

    def _entropy_loss(self, given: Tensor, layer: int) -> Tensor:
        """Returns the entropy loss of the inputs ``(N, d)`` of a layer; 0 if there are none."""
        config = self.config.lfq
        every = torch.arange(self.config.codebook_size, device=given.device)
        size = self.size.to(self.dtype) * 2.0 ** -(layer // self.groups)
        codes = torch.where((every[:, None] & self._steps()) > 0, size, -size)
        chances = (2 * config.sharpness * given @ codes.T).softmax(1)
        count = max(len(given), 1)
        share = chances.sum(0) / count
        # The value is of all processes, the gradient of this one: the mean of the gradients of the
        # processes is the gradient of the whole.
        whole = mean_over_processes(share)
        share = whole + share - share.detach()
        of_each = entropy(chances).sum() / count
        return of_each - config.diversity * entropy(share)

    def _steps(self) -> Tensor:
        return 2 ** torch.arange(self.dim - 1, -1, -1, device=self.device)


def entropy(chances: Tensor) -> Tensor:
    """Returns the entropy of probabilities ``(..., K)`` in nats."""
    return -(chances * chances.clamp_min(LEAST).log()).sum(-1)
