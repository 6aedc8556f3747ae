"""Searching codebooks, and clustering latents to codebooks. No gradients.

Latents are rows ``(N, C)``, and a codebook is ``(K, C)``. Rows are processed in blocks, so that
their scores stay in the cache of a CPU and take limited memory on other devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from motion.quantizer_config import Metric

# Scores computed at once: 512 KB in float32 on CPUs.
CPU_SCORES = 2**17
DEVICE_SCORES = 2**26
# Noise between copies of a latent, in standard deviations of the latents.
JITTER = 0.01


@dataclass(frozen=True)
class Finder:
    """A search for the nearest codes in several codebooks.

    Attributes:
        books: ``(books, K, C)``, the codebooks.
        keys: ``(books, C, K)``; rows are multiplied with the keys.
        offsets: ``(books, K)``; subtracted from the products. The highest score is nearest.
        metric: the metric of distances.
    """

    books: Tensor
    keys: Tensor
    offsets: Tensor
    metric: Metric

    @classmethod
    def from_books(cls, books: Tensor, metric: Metric) -> Finder:
        """Returns a finder for codebooks ``(books, K, C)``."""
        if metric == "cosine":
            directions = F.normalize(books, dim=2)
            return cls(books, directions.mT, books.new_zeros(books.shape[:2]), metric)
        # A sum of squares would take memory for all squares.
        return cls(books, books.mT, torch.linalg.vector_norm(books, dim=2).square() / 2, metric)

    def find(self, rows: Tensor, book: int, temperature: float = 0.0) -> Tensor:
        """Returns the nearest code of each row, or draws codes by ``QuantizerConfig.temperature``.

        For the Euclidean distance, |row - code|^2 / 2 is |code|^2 / 2 - row * code plus a number
        that is the same for all codes. For the cosine, only codes are scaled to length 1, because
        the length of a row does not change which code is nearest.
        """
        scores = torch.addmm(self.offsets[book], rows, self.keys[book], beta=-1)
        if temperature > 0:
            if self.metric == "cosine":
                scores /= rows.norm(dim=1, keepdim=True).clamp_min(1e-12) * temperature
            else:
                scores *= 2 / temperature
            # Gumbel noise makes the highest score a draw from their softmax.
            scores -= torch.empty_like(scores).exponential_().log_()
        return scores.argmax(1)


def cut_into_blocks(rows: Tensor, codes: int) -> Iterator[slice]:
    """Yields slices of ``rows``, small enough for the scores of ``codes`` codes.

    While a compiler traces, the number of rows is a symbol, and one slice has all rows.
    """
    if torch.compiler.is_compiling():
        yield slice(None)
        return
    scores = CPU_SCORES * torch.get_num_threads() if rows.device.type == "cpu" else DEVICE_SCORES
    length = max(1, scores // codes)
    for start in range(0, max(1, len(rows)), length):
        yield slice(start, start + length)


def draw_rows(rows: Tensor, count: int) -> Tensor:
    """Returns ``count`` different random rows; if there are fewer rows, copies with noise."""
    order = torch.randperm(len(rows), device=rows.device)
    if len(rows) >= count:
        return rows[order[:count]]
    copies = rows[order[torch.arange(count, device=rows.device) % len(rows)]]
    return copies + JITTER * rows.std(correction=0) * torch.randn_like(copies)


def cluster(rows: Tensor, codes: int, metric: Metric, iterations: int) -> Tensor:
    """Returns a codebook of the means of k-means clusters. It starts from random rows.

    Each iteration moves a code to the mean of the rows that are nearest to it, if there are any.
    """
    book = draw_rows(rows, codes)
    for _ in range(iterations):
        finder = Finder.from_books(book[None], metric)
        sums, counts = torch.zeros_like(book), book.new_zeros(codes)
        for block in cut_into_blocks(rows, codes):
            found = finder.find(rows[block], 0)
            sums.index_add_(0, found, rows[block])
            counts += torch.bincount(found, minlength=codes)
        book = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), book)
    return book
