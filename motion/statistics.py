"""The scale of motion features: a mean and a standard deviation for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normaliser(nn.Module):
    """``(x - mean) / std`` of features ``(..., D)``; 0 and 1 until they are set."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Take these numbers, both ``(D,)``, from now on.

        Raises:
            ValueError: another shape, numbers that are not finite, or a deviation that is not
                above 0, as of a channel that never changes: give it 1.
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.mean.shape:
                raise ValueError(
                    f"{name} must have the {len(self.mean)} channels of the model, not the shape "
                    f"{tuple(values.shape)}"
                )
            if not values.isfinite().all():
                channel = int((~values.isfinite()).nonzero()[0])
                raise ValueError(f"{name} must be finite; it is not in channel {channel}")
        if not (std > 0).all():
            channel = int((std <= 0).nonzero()[0])
            raise ValueError(
                f"std must be above 0, but is {float(std[channel])} in channel {channel}; give a "
                "channel that never changes 1"
            )
        self.mean.copy_(mean)
        self.std.copy_(std)

    def normalise(self, features: Tensor) -> Tensor:
        """Features in their own units to those the networks see."""
        return (features - self.mean) / self.std

    def denormalise(self, features: Tensor) -> Tensor:
        """The inverse of ``normalise``."""
        return features * self.std + self.mean
