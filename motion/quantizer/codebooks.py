"""Codebooks, which learn moving averages of the latents that choose each code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motion.config import QuantizerConfig
from motion.quantizer.codes import Finder, cluster, cut_into_blocks, draw_rows
from wanvae.engine.processes import (
    copy_from_first_process,
    count_processes,
    gather_from_processes,
    sum_over_processes,
)

# The index for no code: for padding, and for layers that did not quantize a clip.
NO_CODE = -1
# A code with a smaller moving count does not move, because the division would be close to 0 / 0.
SMALLEST_COUNT = 1e-12
# The moving count that a new code starts with, as a multiple of the count below which codes are
# replaced: the code has log(2) / (1 - decay) batches to be chosen in.
GRACE = 2.0


class Codebooks(nn.Module):
    """The codebooks of a residual quantizer of Q layers with K codes each.

    Latents are rows ``(N, C)`` here. All processes of a run learn together and hold the same
    codebooks. There are no parameters. The state is

    - ``codes``: ``(Q, K, C)``, or ``(1, K, C)`` if the layers share a codebook;
    - ``sums`` and ``counts``: ``(Q, K, C)`` and ``(Q, K)``, moving averages of the sum of the
      latents of a batch that chose each code, and of their number (van den Oord et al., arXiv
      1711.00937, appendix A.1);
    - ``initialized``: whether the codes come from latents.
    """

    codes: Tensor
    sums: Tensor
    counts: Tensor
    initialized: Tensor

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        codes = torch.randn(
            1 if config.shared_codebook else config.num_quantizers, config.codebook_size, dim
        )
        self.register_buffer("codes", codes)
        self.register_buffer("sums", codes.clone())
        self.register_buffer("counts", torch.ones(codes.shape[:2]))
        self.register_buffer("initialized", torch.tensor(False))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in: float64 if the codes are float64, else float32."""
        return torch.promote_types(self.codes.dtype, torch.float32)

    def finder(self) -> Finder:
        """Returns a finder of the present codes."""
        return Finder.from_books(self.codes.to(self.dtype), self.config.metric)

    def look_up(self, indices: Tensor) -> Tensor:
        """Returns sums ``(N, C)`` of the codes ``(N, Q)`` of the first layers; -1 adds nothing."""
        books, codes, _ = self.codes.shape
        first = torch.arange(indices.shape[1], device=indices.device) % books * codes
        known = indices != NO_CODE
        places, weights = torch.where(known, indices + first, 0), known.to(self.dtype)
        table = self.codes.to(self.dtype).flatten(0, 1)
        if torch.compiler.is_compiling():  # ONNX has no such operation and would loop over rows
            return (F.embedding(places, table) * weights[:, :, None]).sum(1)
        return F.embedding_bag(places, table, per_sample_weights=weights, mode="sum")

    def initialize(self, rows: Tensor) -> None:
        """Initializes the codebooks from the latents of all processes.

        The codebook of each layer comes from the residuals of the layers before it. Layers that
        share a codebook use the codebook of the first layer. Latents that are not finite change
        nothing, and neither do no latents.
        """
        everything = torch.cat(gather_from_processes(rows))
        if not len(everything) or not everything.isfinite().all():
            return
        left = everything.clone()
        for book in range(len(self.codes)):
            codes = copy_from_first_process(self._make_book(left))
            finder = Finder.from_books(codes[None], self.config.metric)
            for block in cut_into_blocks(left, len(codes)):
                left[block] -= codes[finder.find(left[block], 0)]
            self.codes[book] = codes
        self.counts.fill_(len(everything) / self.config.codebook_size)
        self.sums.copy_(self.codes * self.counts[:, :, None])
        self.initialized.fill_(True)

    def _make_book(self, rows: Tensor) -> Tensor:
        config = self.config
        if config.initialization == "samples":
            return draw_rows(rows, config.codebook_size)
        return cluster(rows, config.codebook_size, config.metric, config.kmeans_iterations)

    def learn(self, rows: Tensor, indices: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """Moves codes towards the latents of all processes that chose them; replaces unused codes.

        Nothing is learnt from latents that are not finite, because they would stay in the averages
        for ever.

        Args:
            rows: ``(N, C)``, the latents that were quantized.
            indices: ``(N, Q)``, the codes that they chose.
            counts: ``(Q, K)``, how many latents chose each code.
            sums: ``(Q, K, C)``, for each layer the sums of its inputs, by code.

        Returns:
            ``counts`` of all processes together.
        """
        counts, sums = sum_over_processes(counts), sum_over_processes(sums)
        if self.config.decay == 1 or not sums.isfinite().all():
            return counts
        books, share = len(self.codes), 1 - self.config.decay
        of_books = counts.unflatten(0, (books, -1)).sum(1), sums.unflatten(0, (books, -1)).sum(1)
        for average, new in zip((self.counts, self.sums), of_books, strict=True):
            average.lerp_(new.to(average.dtype), share)
        dead = (self.counts < self.config.revive_below).nonzero()
        replacements = self._draw_replacements(rows, indices, dead) if len(dead) else None
        alive = self.counts > SMALLEST_COUNT
        means = self.sums / self.counts.clamp_min(SMALLEST_COUNT)[:, :, None]
        self.codes.copy_(torch.where(alive[:, :, None], means, self.codes))
        if replacements is not None:
            place, count = dead.unbind(1), GRACE * self.config.revive_below
            self.codes[place] = replacements
            self.sums[place] = replacements * count
            self.counts[place] = count
        return counts

    def _draw_replacements(self, rows: Tensor, indices: Tensor, dead: Tensor) -> Tensor:
        """Returns random latents ``(M, C)`` to replace the codes ``dead``.

        ``dead`` is ``(M, 2)``: number of the codebook, number of the code. The latents are inputs
        of the layer of the codebook. All processes get the same latents, which come from each
        process in turn. A process without latents offers the codes themselves.
        """
        places = torch.arange(len(dead), device=rows.device)
        given = self.codes[dead.unbind(1)].to(rows.dtype)
        if len(rows):
            picked = torch.randperm(len(rows), device=rows.device)[places % len(rows)]
            layers = dead[:, 0]
            if self.config.shared_codebook:
                layers = torch.randint(self.config.num_quantizers, layers.shape, device=rows.device)
            before = torch.arange(self.config.num_quantizers, device=rows.device) < layers[:, None]
            taken = torch.where(before, indices[picked], NO_CODE)
            given = rows[picked] - self.look_up(taken)
        offered = torch.stack(gather_from_processes(given))
        return offered[places % count_processes(), places].to(self.codes.dtype)
