"""The mean and standard deviation of features, for a model's normalizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wanvae.errors import UserError

# A channel that varies less than this hardly varies: it is only centred, or noise would grow.
LEAST_DEVIATION = 1e-4


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and standard deviation of each channel.

    Attributes:
        mean: (D,).
        std: (D,), positive; less than 1e-4 counts as 1.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            raise UserError(f"mean and std are {shapes}; they must be (D,) both")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std >= 0).all()):
            raise UserError("mean and std must be finite, and std not negative")
        flat = self.std < LEAST_DEVIATION
        object.__setattr__(self, "std", torch.where(flat, torch.ones_like(self.std), self.std))

    @classmethod
    def fit(cls, clips: Iterable[Tensor]) -> FeatureStatistics:
        """Those of all frames of features (T, D) together, counted in float64, given in float32.

        Raises:
            ValueError: there are none, or they differ in D.
        """
        count, total, squares, origin = 0, 0.0, 0.0, None
        for features in clips:
            features = features.double()
            if origin is None:
                origin = features[0]  # near the mean, so that squares lose no digits
            if features.shape[-1] != len(origin):
                raise UserError(
                    f"features of {features.shape[-1]} channels among some of {len(origin)}"
                )
            features = features - origin
            count += len(features)
            total = total + features.sum(dim=0)
            squares = squares + features.square().sum(dim=0)
        if origin is None:
            raise UserError("there are no features to count")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        return cls((origin + mean).float(), std.float())
