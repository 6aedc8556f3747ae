"""Codebooks that are tables: the codes of a layer do not depend on the layers before."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from motion.quantizer.books import NO_CODE, Books
from motion.quantizer.codes import Finder, cluster, cut_into_blocks, draw_rows
from motion.quantizer_config import QuantizerConfig
from wanvae.engine.processes import (
    copy_from_first_process,
    count_processes,
    gather_from_processes,
)

# The moving count that a new code starts with, as a multiple of the count below which codes are
# replaced: the code has log(2) / (1 - decay) batches to be chosen in.
GRACE = 2.0


@dataclass(frozen=True)
class TableSearch:
    """A search in tables.

    Attributes:
        finder: finds the codes of a table.
    """

    looks_back: ClassVar[bool] = False
    finder: Finder

    @property
    def row_size(self) -> int:
        return self.finder.books.shape[1]

    def find(
        self, given: Tensor, layer: int, before: Tensor, temperature: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        book = layer % len(self.finder.books)
        found = self.finder.find(given, book, temperature)
        return found, F.embedding(found, self.finder.books[book])


class Tables(Books):
    """Codebooks ``(Q, K, d)``; or ``(groups, K, d)`` if the layers of a group share one.

    Layer q has the codebook of number q % Q, or q % groups. A subclass implements ``table``.
    """

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config.groups, dim)
        self.config = config
        count = config.groups if config.shared_codebook else config.num_quantizers
        self.shape = (count, config.codebook_size, dim)

    @abstractmethod
    def table(self) -> Tensor:
        """Returns the codebooks, with gradients if they learn by gradients."""

    def search(self) -> TableSearch:
        return TableSearch(self.finder())

    def finder(self) -> Finder:
        """Returns a finder of the present codes."""
        return Finder.from_books(self.table().detach().to(self.dtype), self.config.metric)

    def select(self, indices: Tensor) -> Tensor:
        flat, known = self._flatten(indices)
        return F.embedding(flat, self.table().to(self.dtype).flatten(0, 1)) * known[..., None]

    def look_up(self, indices: Tensor) -> Tensor:
        # ONNX has no operation like embedding_bag, and would loop over rows.
        if torch.compiler.is_compiling():
            return super().look_up(indices)
        flat, known = self._flatten(indices)
        table, known = self.table().to(self.dtype).flatten(0, 1), known.to(self.dtype)
        sums = [
            F.embedding_bag(
                flat[:, group :: self.groups].contiguous(),
                table,
                per_sample_weights=known[:, group :: self.groups].contiguous(),
                mode="sum",
            )
            for group in range(min(self.groups, indices.shape[1]))
        ]
        if self.groups == 1:
            return sums[0]
        missing = self.groups - len(sums)
        sums += [sums[0].new_zeros(sums[0].shape)] * missing
        return torch.cat(sums, 1)

    def tables(self) -> list[Tensor]:
        return [self.table()]

    def _flatten(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns indices into all codes of all codebooks, and where there is a code."""
        books, codes, _ = self.shape
        first = torch.arange(indices.shape[1], device=indices.device) % books * codes
        known = indices != NO_CODE
        return torch.where(known, indices + first, 0), known


def make_tables(rows: Tensor, config: QuantizerConfig, books: int) -> Tensor | None:
    """Returns codebooks ``(books, K, d)`` from the latents of all processes.

    The codebook of each layer comes from the residuals of the layers before it. Layers that share a
    codebook use the codebook of the first of them. None if the latents are not finite, or none.

    Args:
        rows: ``(N, groups * d)``, the latents of this process.
    """
    everything = torch.cat(gather_from_processes(rows))
    if not len(everything) or not everything.isfinite().all():
        return None
    parts = list(everything.clone().chunk(config.groups, 1))
    made = []
    for book in range(books):
        left = parts[book % config.groups]
        codes = copy_from_first_process(make_table(left, config))
        finder = Finder.from_books(codes[None], config.metric)
        for block in cut_into_blocks(left, len(codes)):
            left[block] -= codes[finder.find(left[block], 0)]
        made.append(codes)
    return torch.stack(made)


def make_table(rows: Tensor, config: QuantizerConfig) -> Tensor:
    """Returns a codebook ``(K, d)`` of the inputs ``(N, d)`` of a layer."""
    rows = rows.contiguous()
    if config.initialization == "samples":
        return draw_rows(rows, config.codebook_size)
    return cluster(rows, config.codebook_size, config.metric, config.kmeans_iterations)


def draw_replacements(books: Tables, rows: Tensor, indices: Tensor, dead: Tensor) -> Tensor:
    """Returns random latents ``(M, d)`` to replace the codes ``dead``.

    ``dead`` is ``(M, 2)``: number of the codebook, number of the code. The latents are inputs of
    the layer of the codebook. All processes get the same latents, which come from each process in
    turn. A process without latents offers the codes themselves.

    Args:
        rows: the latents ``(N, groups * d)`` of this process.
        indices: the codes ``(N, Q)`` that they chose.
    """
    config, groups = books.config, books.groups
    places = torch.arange(len(dead), device=rows.device)
    given = books.table().detach()[dead.unbind(1)].to(rows.dtype)
    if len(rows):
        picked = torch.randperm(len(rows), device=rows.device)[places % len(rows)]
        layers = dead[:, 0]
        if config.shared_codebook:
            depth = config.num_quantizers // groups
            layers = torch.randint(depth, layers.shape, device=rows.device) * groups + layers
        before = torch.arange(config.num_quantizers, device=rows.device) < layers[:, None]
        taken = torch.where(before, indices[picked], NO_CODE)
        given = (rows[picked] - books.look_up(taken)).unflatten(1, (groups, -1))
        given = given[places, layers % groups]
    offered = torch.stack(gather_from_processes(given))
    return offered[places % count_processes(), places]
