"""The normalizer of motion features: a mean and a standard deviation of each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motion.features.statistics import FeatureStatistics
from wanvae.errors import UserError


class Normalizer(nn.Module):
    """Normalizes features ``(..., D)``: ``(x - mean) / std``. Until set, mean is 0 and std is 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @property
    def is_set(self) -> bool:
        """Whether the normalizer changes features at all."""
        return bool(self.mean.any() or (self.std != 1).any())

    def set(self, statistics: FeatureStatistics) -> None:
        """Uses these statistics from now on.

        Raises:
            UserError: they have another number of channels.
        """
        if statistics.mean.shape != self.mean.shape:
            raise UserError(
                f"the statistics are of {len(statistics.mean)} channels, not of the "
                f"{len(self.mean)} channels of the model"
            )
        self.mean.copy_(statistics.mean)
        self.std.copy_(statistics.std)

    def normalize(self, features: Tensor) -> Tensor:
        """Turns features from their own units into the units of the networks."""
        return (features - self.mean) / self.std

    def denormalize(self, features: Tensor) -> Tensor:
        """Turns features from the units of the networks into their own units."""
        return features * self.std + self.mean
