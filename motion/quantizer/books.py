"""What the codebooks of a residual quantizer must do, whatever their codes are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from wanvae.engine.processes import sum_over_processes

# The index for no code: for padding, and for layers that did not quantize a clip.
NO_CODE = -1


class Search(Protocol):
    """A search for codes, in the codebooks as they are now. No gradients.

    Attributes:
        row_size: how many numbers the search of one row needs at once.
        looks_back: whether codes depend on the layers before.
    """

    looks_back: ClassVar[bool]

    @property
    def row_size(self) -> int: ...

    def find(
        self, given: Tensor, layer: int, before: Tensor, temperature: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Returns codes ``(N,)`` of the input ``(N, d)`` of a layer, and their vectors ``(N, d)``.

        Args:
            before: ``(N, d)``, the sum of the codes of the layers before; 0 if the search does not
                look back.
            temperature: see ``QuantizerConfig``.
        """
        ...


class Books(nn.Module, ABC):
    """The codebooks of Q layers with K codes of d channels each; layer q is of group q % groups.

    Rows are ``(N, groups * d)``, and their indices ``(N, Q)``; -1 is no code.

    A subclass implements ``search`` and ``select``. All else has a default for codes that are the
    same at all times.
    """

    # Whether latents are drawn to their codes by the commitment loss.
    commits = True
    # Whether ``learn`` needs the sums of the inputs of each layer, by code.
    learns_from_sums = False
    # Whether ``select`` has gradients.
    learns_by_gradient = False

    def __init__(self, groups: int, dim: int) -> None:
        super().__init__()
        self.groups = groups
        self.dim = dim

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self._first().device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in: float64 if the codes are float64, else float32."""
        return torch.promote_types(self._first().dtype, torch.float32)

    def ready(self) -> bool:
        """Whether there are codes already, so that ``initialize`` is not needed."""
        return True

    @abstractmethod
    def search(self) -> Search:
        """Returns a search in the present codes."""

    @abstractmethod
    def select(self, indices: Tensor) -> Tensor:
        """Returns the codes ``(N, Q, d)`` of ``indices`` ``(N, Q)`` of the first Q layers.

        They are 0 for -1. They have gradients if the codes learn by gradients.
        """

    def look_up(self, indices: Tensor) -> Tensor:
        """Returns the sums ``(N, groups * d)`` of the codes ``(N, Q)`` of the first Q layers."""
        codes, groups = self.select(indices), min(self.groups, indices.shape[1])
        sums = [codes[:, group :: self.groups].sum(1) for group in range(groups)]
        sums += [torch.zeros_like(sums[0])] * (self.groups - groups)
        return torch.cat(sums, 1)

    def bound(self, latents: Tensor) -> Tensor:
        """Returns latents ``(B, groups * d, T)`` in the range of the codes; differentiable."""
        return latents

    def initialize(self, rows: Tensor) -> None:
        """Initializes the codebooks from the latents of all processes.

        The codebook of each layer comes from the residuals of the layers before it. Latents that
        are not finite change nothing.
        """

    def learn(self, rows: Tensor, indices: Tensor, counts: Tensor, sums: Tensor | None) -> Tensor:
        """Changes codes by the latents of all processes that chose them, outside of gradients.

        Args:
            rows: the latents that were quantized.
            indices: the codes that they chose.
            counts: ``(Q, K)``, how many latents chose each code.
            sums: ``(Q, K, d)``, for each layer the sums of its inputs, by code.

        Returns:
            ``counts`` of all processes together.
        """
        return sum_over_processes(counts)

    def regularize(self, rows: Tensor, indices: Tensor) -> Tensor | None:
        """Returns the weighted losses that the config asks for, a scalar; None if it asks for none.

        Args:
            rows: the latents, with gradients.
            indices: the codes that they chose.
        """
        return None

    def tables(self) -> Sequence[Tensor]:
        """Returns tensors that tell which codes these are, for a digest."""
        return [*self.parameters(), *self.buffers()]

    def _first(self) -> Tensor:
        """Returns a tensor of the state, which every subclass has, in floating point."""
        return next(chain(self.parameters(), self.buffers()))


def codebook_loss(books: Books, rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Returns the error after each layer, with gradients for the codes alone.

    Args:
        rows: ``(N, groups * d)``, the latents.
        indices: ``(N, Q)``, the codes that they chose.
        weights: ``(N, Q)``, of the squared error of each row after each layer.
    """
    codes = books.select(indices)
    # (N, layers of a group, groups, d)
    codes = codes.unflatten(1, (-1, books.groups))
    constant = codes.detach()
    given = rows.detach().unflatten(1, (1, books.groups, books.dim))
    given = given - (constant.cumsum(1) - constant)
    errors = (given - codes).square().sum(3).flatten(1)
    return (errors * weights).sum()
