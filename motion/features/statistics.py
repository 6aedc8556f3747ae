"""The mean and standard deviation of features, for the normalizer of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wanvae.errors import UserError

# A channel with a smaller deviation is centred but not scaled; scaling would amplify noise.
LEAST_DEVIATION = 1e-4


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and standard deviation of each of D channels.

    Attributes:
        mean: (D,).
        std: (D,), positive. A value below 1e-4 becomes 1.

    Raises:
        UserError: the shapes differ, or a value is not finite or negative.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            raise UserError(f"mean and std are {shapes}; both must be (D,)")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std >= 0).all()):
            raise UserError("mean and std must be finite, and std not negative")
        flat = self.std < LEAST_DEVIATION
        object.__setattr__(self, "std", torch.where(flat, torch.ones_like(self.std), self.std))

    @classmethod
    def fit(cls, clips: Iterable[Tensor]) -> FeatureStatistics:
        """Returns the statistics of all frames of features (T, D) together, in float32.

        Sums are taken in float64.

        Raises:
            UserError: there are no features, or they differ in D.
        """
        count, origin = 0, None
        total = squares = torch.zeros((), dtype=torch.float64)
        for features in clips:
            features = features.double()
            if origin is None:
                origin = features[0]  # near the mean, so squares lose no digits
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
