"""Codebooks, which learn moving averages of the latents that choose each code."""

from __future__ import annotations

import torch
from torch import Tensor

from motion.quantizer.tables import GRACE, Tables, draw_replacements, make_tables
from motion.quantizer_config import QuantizerConfig
from wanvae.engine.processes import sum_over_processes

# A code with a smaller moving count does not move, because the division would be close to 0 / 0.
SMALLEST_COUNT = 1e-12


class Codebooks(Tables):
    """The codebooks of a residual quantizer of Q layers with K codes each.

    Latents are rows ``(N, C)`` here. All processes of a run learn together and hold the same
    codebooks. There are no parameters. The state is

    - ``codes``: ``(Q, K, C)``, or ``(1, K, C)`` if the layers share a codebook;
    - ``sums`` and ``counts``: ``(Q, K, C)`` and ``(Q, K)``, moving averages of the sum of the
      latents of a batch that chose each code, and of their number (van den Oord et al., arXiv
      1711.00937, appendix A.1);
    - ``initialized``: whether the codes come from latents.

    With several groups, C is the channels of a group, and a shared codebook is one for each group.
    """

    learns_from_sums = True
    codes: Tensor
    sums: Tensor
    counts: Tensor
    initialized: Tensor

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        codes = torch.randn(self.shape)
        self.register_buffer("codes", codes)
        self.register_buffer("sums", codes.clone())
        self.register_buffer("counts", torch.ones(codes.shape[:2]))
        self.register_buffer("initialized", torch.tensor(False))

    def table(self) -> Tensor:
        return self.codes

    def ready(self) -> bool:
        return bool(self.initialized)

    def initialize(self, rows: Tensor) -> None:
        codes = make_tables(rows, self.config, len(self.codes))
        if codes is None:
            return
        self.codes.copy_(codes)
        latents = sum_over_processes(torch.tensor(len(rows), device=rows.device))
        self.counts.fill_(latents / self.config.codebook_size)
        self.sums.copy_(self.codes * self.counts[:, :, None])
        self.initialized.fill_(True)

    def learn(self, rows: Tensor, indices: Tensor, counts: Tensor, sums: Tensor | None) -> Tensor:
        """Moves codes towards the latents of all processes that chose them; replaces unused codes.

        Nothing is learnt from latents that are not finite, because they would stay in the averages
        for ever.
        """
        assert sums is not None
        counts, sums = sum_over_processes(counts), sum_over_processes(sums)
        if self.config.decay == 1 or not sums.isfinite().all():
            return counts
        books, share = len(self.codes), 1 - self.config.decay
        of_books = counts.unflatten(0, (-1, books)).sum(0), sums.unflatten(0, (-1, books)).sum(0)
        for average, new in zip((self.counts, self.sums), of_books, strict=True):
            average.lerp_(new.to(average.dtype), share)
        dead = (self.counts < self.config.revive_below).nonzero()
        replacements = draw_replacements(self, rows, indices, dead) if len(dead) else None
        alive = self.counts > SMALLEST_COUNT
        means = self.sums / self.counts.clamp_min(SMALLEST_COUNT)[:, :, None]
        self.codes.copy_(torch.where(alive[:, :, None], means, self.codes))
        if replacements is not None:
            place, count = dead.unbind(1), GRACE * self.config.revive_below
            replacements = replacements.to(self.codes.dtype)
            self.codes[place] = replacements
            self.sums[place] = replacements * count
            self.counts[place] = count
        return counts
