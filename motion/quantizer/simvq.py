"""Fixed random codebooks, each behind a matrix that learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motion.quantizer.learned import weighted_orthogonality
from motion.quantizer.tables import Tables
from motion.quantizer_config import QuantizerConfig
from wanvae.engine.processes import gather_from_processes


class TurnedCodebooks(Tables):
    """SimVQ (Zhu et al., arXiv 2411.02038): codes are fixed random vectors times a matrix.

    The matrix learns by the gradient of the codebook loss, which moves all codes at once, so that
    no code is left behind. The state is

    - ``matrices``: the parameter, ``(Q, C, C)``: codes are rows of ``fixed`` times the transpose;
    - ``fixed``: ``(Q, K, C)``, Gaussian vectors. The first batch sets their mean length to the mean
      length of the inputs of the layer, and nothing changes them later;
    - ``initialized``: whether it has done so.
    """

    learns_by_gradient = True
    fixed: Tensor
    initialized: Tensor

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.matrices = nn.Parameter(torch.eye(dim).repeat(self.shape[0], 1, 1))
        self.register_buffer("fixed", torch.randn(self.shape))
        self.register_buffer("initialized", torch.tensor(False))

    def table(self) -> Tensor:
        return self.fixed @ self.matrices.mT

    def ready(self) -> bool:
        return bool(self.initialized)

    def initialize(self, rows: Tensor) -> None:
        everything = torch.cat(gather_from_processes(rows))
        if not len(everything) or not everything.isfinite().all():
            return
        parts = list(everything.chunk(self.groups, 1))
        for layer in range(len(self.fixed)):
            left = parts[layer % self.groups]
            size = left.square().mean().sqrt() / self.fixed[layer].square().mean().sqrt()
            self.fixed[layer] *= size.to(self.fixed.dtype)
            _, codes = self.search().find(left, layer, left)
            parts[layer % self.groups] = left - codes
        self.initialized.fill_(True)

    def regularize(self, rows: Tensor, indices: Tensor) -> Tensor | None:
        return weighted_orthogonality(self, self.config.orthogonality)
