"""Implicit codebooks: a network computes the codes of a latent from what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motion.quantizer.books import NO_CODE, Books
from motion.quantizer.learned import weighted_orthogonality
from motion.quantizer.tables import make_tables
from motion.quantizer_config import ImplicitConfig, QuantizerConfig


class CodeBlock(nn.Module):
    """Two linear layers with SiLU between, ``(..., d)`` to the same shape; 0 at first."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden)
        self.outer = make_silent(nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(x)))


class CodeNetwork(nn.Module):
    """Computes codes from base codes and from the sum of the codes of the layers before.

    A linear layer of both, added to the base code, then residual blocks. What is added is 0 at
    first, so that the codes are the base codes.
    """

    def __init__(self, config: ImplicitConfig, dim: int) -> None:
        super().__init__()
        hidden = config.hidden or dim
        self.mix = make_silent(nn.Linear(2 * dim, dim))
        self.blocks = nn.ModuleList(CodeBlock(dim, hidden) for _ in range(config.depth))

    def forward(self, codes: Tensor, before: Tensor) -> Tensor:
        """Returns codes ``(..., d)`` of base codes and sums, which are broadcast."""
        dim = codes.shape[-1]
        of_sum, of_code = self.mix.weight[:, :dim], self.mix.weight[:, dim:]
        # The two parts are multiplied before they are broadcast.
        mixed = F.linear(before, of_sum) + F.linear(codes, of_code)
        codes = codes + mixed + self.mix.bias
        for block in self.blocks:
            codes = codes + block(codes)
        return codes


def make_silent(layer: nn.Linear) -> nn.Linear:
    """Returns a linear layer whose results are 0, until it learns."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class ImplicitSearch:
    """A search in the codes that networks compute for each row.

    Attributes:
        codes: ``(Q, K, d)``, base codes.
        networks: the network of each layer; layers without one have their base codes.
        row_size: how many numbers the search of one row needs at once.
    """

    looks_back: ClassVar[bool] = True
    codes: Tensor
    networks: Sequence[CodeNetwork | None]
    row_size: int

    def find(
        self, given: Tensor, layer: int, before: Tensor, temperature: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        network, base = self.networks[layer], self.codes[layer]
        if network is None:
            distances = base.square().sum(1) - 2 * given @ base.T
            found = distances.argmin(1)
            return found, base[found]
        codes = network(base, before[:, None])
        found = (codes - given[:, None]).square().sum(2).argmin(1)
        return found, codes[torch.arange(given.shape[0], device=given.device), found]


class ImplicitCodebooks(Books):
    """QINCo (Huijben et al., arXiv 2401.14732): codebooks that follow from the codes before.

    Each layer except the first of a group has a network, which computes its K codes for each latent
    from base codes and the sum of the codes that the latent has already. Both learn by the gradient
    of the codebook loss; a layer takes the sum before it as a constant. The first batch sets the
    base codes to the means of residual k-means. The state is

    - ``offsets`` and ``base``: ``(Q, K, d)``, whose sums are the base codes, as in
      :class:`~motion.quantizer.learned.LearnedCodebooks`;
    - ``networks``: the networks of layers groups, groups + 1, ..., Q - 1;
    - ``initialized``: whether the base codes come from latents.
    """

    learns_by_gradient = True
    base: Tensor
    initialized: Tensor

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config.groups, dim)
        self.config = config
        shape = (config.num_quantizers, config.codebook_size, dim)
        self.offsets = nn.Parameter(torch.zeros(shape))
        self.register_buffer("base", torch.randn(shape))
        self.register_buffer("initialized", torch.tensor(False))
        self.networks = nn.ModuleList(
            CodeNetwork(config.implicit, dim) for _ in range(config.groups, config.num_quantizers)
        )

    def table(self) -> Tensor:
        """Returns the base codes ``(Q, K, d)``, with gradients."""
        return self.base + self.offsets

    def ready(self) -> bool:
        return bool(self.initialized)

    def search(self) -> ImplicitSearch:
        width = max(self.config.implicit.hidden or self.dim, self.dim)
        return ImplicitSearch(
            self.table().detach().to(self.dtype),
            self._networks(),
            self.config.codebook_size * width,
        )

    def select(self, indices: Tensor) -> Tensor:
        base, networks = self.table().to(self.dtype), self._networks()
        before = [base.new_zeros(indices.shape[0], self.dim)] * self.groups
        codes = []
        for layer in range(indices.shape[1]):
            group, network = layer % self.groups, networks[layer]
            known = indices[:, layer] != NO_CODE
            code = base[layer][indices[:, layer].clamp_min(0)]
            if network is not None:
                code = network(code, before[group])
            code = code * known[:, None]
            before[group] = before[group] + code.detach()
            codes.append(code)
        return torch.stack(codes, 1)

    def initialize(self, rows: Tensor) -> None:
        codes = make_tables(rows, self.config, len(self.base))
        if codes is None:
            return
        self.base.copy_(codes - self.offsets.detach())
        self.initialized.fill_(True)

    def regularize(self, rows: Tensor, indices: Tensor) -> Tensor | None:
        return weighted_orthogonality(self, self.config.orthogonality)

    def tables(self) -> list[Tensor]:
        return [self.table(), *self.networks.parameters()]

    def _networks(self) -> list[CodeNetwork | None]:
        networks = [network for network in self.networks if isinstance(network, CodeNetwork)]
        return [None] * self.groups + networks
