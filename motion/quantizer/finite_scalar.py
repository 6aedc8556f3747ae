"""Finite scalar quantization: each channel is rounded to one of a few values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import ClassVar

import torch
from torch import Tensor

from motion.quantizer.books import NO_CODE, Books
from motion.quantizer_config import QuantizerConfig


@dataclass(frozen=True)
class GridSearch:
    """Rounding to the values of channels.

    Attributes:
        levels: ``(d,)``, the number of values of each channel.
        steps: ``(d,)``, int64; what one value more adds to the index of a code.
        groups: the number of groups.
    """

    looks_back: ClassVar[bool] = False
    levels: Tensor
    steps: Tensor
    groups: int

    @property
    def row_size(self) -> int:
        return len(self.levels)

    def find(
        self, given: Tensor, layer: int, before: Tensor, temperature: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        scale = self.levels ** -(layer // self.groups)
        places = (given / scale).clamp(-1, 1)
        places = ((self.levels - 1) * (places + 1) / 2 + 0.5).floor()
        # What is not a number becomes the smallest integer, which is no place.
        found = (places.long().clamp_min(0) * self.steps).sum(1)
        return found, place_values(places, self.levels) * scale


class GridCodes(Books):
    """FSQ (Mentzer et al., arXiv 2309.15505): L values, evenly from -1 to 1, for each channel.

    Latents are bounded by c tanh(latent / c), where c = L / (L - 1) is half a step beyond the last
    value. Values are symmetric for even L too, and the values of each further layer are L times
    finer, so that layers refine each other (Parker et al., arXiv 2411.19842, section 3.2). There is
    nothing to learn, and no loss. An index counts the values of the first channel first.

    The state is ``levels``, ``(d,)``.
    """

    commits = False
    levels: Tensor

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config.groups, dim)
        # What one value more adds to an index. ONNX has no products of all values before a value.
        self.steps = tuple(accumulate(config.fsq.levels[:-1], mul, initial=1))
        self.register_buffer("levels", torch.tensor(config.fsq.levels, dtype=torch.float32))

    def search(self) -> GridSearch:
        return GridSearch(self.levels.to(self.dtype), self._steps(), self.groups)

    def select(self, indices: Tensor) -> Tensor:
        levels = self.levels.to(self.dtype)
        places = indices.clamp_min(0)[..., None] // self._steps() % levels.long()
        depths = torch.arange(indices.shape[1], device=indices.device) // self.groups
        codes = place_values(places, levels) * levels ** -depths[:, None]
        return codes * (indices != NO_CODE)[..., None]

    def bound(self, latents: Tensor) -> Tensor:
        levels = self.levels.to(self.dtype).repeat(self.groups)[:, None]
        most = levels / (levels - 1)
        return most * (latents / most).tanh()

    def _steps(self) -> Tensor:
        return torch.tensor(self.steps, device=self.device)


def place_values(places: Tensor, levels: Tensor) -> Tensor:
    """Returns the values of places 0, 1, ..., L - 1 of channels: evenly from -1 to 1."""
    return places * (2 / (levels - 1)) - 1
