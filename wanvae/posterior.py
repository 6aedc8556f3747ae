"""The distribution of latents that the encoder computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wanvae.nn.kernels.precision import wide_dtype

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over raw (not normalized) latents.

    Latents are ``(B, z_dim, T, H, W)`` of video, or ``(B, T, C)`` of motion.

    Attributes:
        mean: mean of each latent.
        logvar: logarithm of the variance, as the encoder computes it. The methods clamp it to
            [-30, 20].

    >>> posterior = Posterior.from_moments(torch.zeros(1, 32, 2, 8, 8))
    >>> posterior.sample(torch.Generator().manual_seed(0)).shape
    torch.Size([1, 16, 2, 8, 8])
    >>> posterior.kl()
    tensor([0.])
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """Returns the posterior with mean and logvar from moments ``(B, 2 * z_dim, T, H, W)``."""
        return cls(*moments.chunk(2, dim=1))

    def mode(self) -> Tensor:
        """Returns the most likely latents: the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns random latents of the distribution; differentiable in mean and logvar.

        A seed gives the noise that it gives diffusers, in whatever order the mean is in memory.
        """
        mean = self.mean
        noise = torch.empty(mean.shape, dtype=mean.dtype, device=mean.device)
        noise.normal_(generator=generator)
        return mean + torch.exp(0.5 * self._clamped_logvar()).to(noise.dtype) * noise

    def kl(self) -> Tensor:
        """Returns the KL divergence from N(0, 1) in nats, ``(B,)``: the sum over all latents.

        Computed in at least float32.
        """
        mean = self.mean.to(wide_dtype(self.mean))
        logvar = self._clamped_logvar()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)

    def kl_from(self, other: Posterior) -> Tensor:
        """Returns the KL divergence from another posterior in nats, ``(B,)``, summed as in ``kl``.

        Computed in at least float32.
        """
        ours, theirs = self._clamped_logvar(), other._clamped_logvar()
        error = self.mean.to(wide_dtype(self.mean)) - other.mean.to(wide_dtype(other.mean))
        spread = (ours.exp() + error.square()) * (-theirs).exp()
        return 0.5 * (spread - 1 + theirs - ours).flatten(1).sum(1)

    def _clamped_logvar(self) -> Tensor:
        return self.logvar.to(wide_dtype(self.logvar)).clamp(*LOGVAR_RANGE)
