"""Codebooks that learn by gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motion.quantizer.books import Books
from motion.quantizer.tables import GRACE, Tables, draw_replacements, make_tables
from motion.quantizer_config import QuantizerConfig
from wanvae.engine.processes import sum_over_processes


class LearnedCodebooks(Tables):
    """Codebooks that learn by the gradient of the codebook loss (arXiv 1711.00937, section 3.2).

    The codes are the sum of a constant and of a parameter. Codes that come from latents, at first
    or in place of unused ones, change the constant: the optimizer, and what it knows of the
    parameter, stay as they are, and a step that is not finite can be taken back. The state is

    - ``offsets``: the parameter, ``(Q, K, C)``, or one book if the layers share a codebook;
    - ``base``: the constant, of the same shape;
    - ``counts``: ``(Q, K)``, moving averages of the number of latents that chose each code;
    - ``initialized``: whether the codes come from latents.
    """

    learns_by_gradient = True
    base: Tensor
    counts: Tensor
    initialized: Tensor

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.offsets = nn.Parameter(torch.zeros(self.shape))
        self.register_buffer("base", torch.randn(self.shape))
        self.register_buffer("counts", torch.ones(self.shape[:2]))
        self.register_buffer("initialized", torch.tensor(False))

    def table(self) -> Tensor:
        return self.base + self.offsets

    def ready(self) -> bool:
        return bool(self.initialized)

    def initialize(self, rows: Tensor) -> None:
        codes = make_tables(rows, self.config, len(self.base))
        if codes is None:
            return
        self.base.copy_(codes - self.offsets.detach())
        latents = sum_over_processes(torch.tensor(len(rows), device=rows.device))
        self.counts.fill_(latents / self.config.codebook_size)
        self.initialized.fill_(True)

    def learn(self, rows: Tensor, indices: Tensor, counts: Tensor, sums: Tensor | None) -> Tensor:
        """Replaces codes that are hardly chosen. Latents that are not finite change nothing."""
        counts = sum_over_processes(counts)
        broken = (~rows.isfinite()).any().to(counts.dtype)
        if self.config.decay == 1 or sum_over_processes(broken) > 0:
            return counts
        of_books = counts.unflatten(0, (-1, len(self.base))).sum(0)
        self.counts.lerp_(of_books.to(self.counts.dtype), 1 - self.config.decay)
        dead = (self.counts < self.config.revive_below).nonzero()
        if len(dead):
            place = dead.unbind(1)
            replacements = draw_replacements(self, rows, indices, dead).to(self.base.dtype)
            self.base[place] = replacements - self.offsets.detach()[place]
            self.counts[place] = GRACE * self.config.revive_below
        return counts

    def regularize(self, rows: Tensor, indices: Tensor) -> Tensor | None:
        return weighted_orthogonality(self, self.config.orthogonality)


def weighted_orthogonality(books: Books, weight: float) -> Tensor | None:
    """Returns ``weight`` times the orthogonality of the codes of ``books``; None for weight 0."""
    return None if weight == 0 else weight * orthogonality(books.tables()[0])


def orthogonality(codes: Tensor) -> Tensor:
    """Returns the mean squared cosine between codes of codebooks ``(Q, K, d)``, less its least.

    It is 0 if all codes of each codebook are at right angles (Shin et al., arXiv 2112.00384,
    equation 2).
    """
    directions = F.normalize(codes, dim=2, eps=1e-6)
    cosines = directions @ directions.mT
    return cosines.square().mean() - 1 / codes.shape[1]
