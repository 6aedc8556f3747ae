"""The scale of motion features: a mean and a standard deviation for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motion.features.statistics import FeatureStatistics
from wanvae.errors import UserError


class Normalizer(nn.Module):
    """``(x - mean) / std`` of features ``(..., D)``; 0 and 1 until they are set."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @property
    def is_set(self) -> bool:
        """Whether features are scaled or moved at all."""
        return bool(self.mean.any() or (self.std != 1).any())

    def set(self, statistics: FeatureStatistics) -> None:
        """Take these from now on.

        Raises:
            ValueError: they are of another number of channels.
        """
        if statistics.mean.shape != self.mean.shape:
            raise UserError(
                f"the statistics are of {len(statistics.mean)} channels, not of the "
                f"{len(self.mean)} of the model"
            )
        self.mean.copy_(statistics.mean)
        self.std.copy_(statistics.std)

    def normalize(self, features: Tensor) -> Tensor:
        """Features in their own units to those the networks see."""
        return (features - self.mean) / self.std

    def denormalize(self, features: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        return features * self.std + self.mean
