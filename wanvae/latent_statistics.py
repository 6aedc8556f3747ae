"""Latent statistics that are known of published models."""

from __future__ import annotations

from dataclasses import replace

from wanvae.config import WanVAEConfig

WAN21_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN21_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916),
)

OFFICIAL_STATISTICS = "latent statistics: those of Wan2.1, for the architecture is the same"
NO_STATISTICS = "latent statistics: none, so mean 0 and standard deviation 1"


def with_known_statistics(config: WanVAEConfig) -> tuple[WanVAEConfig, str]:
    """``config`` with the latent statistics of Wan2.1, if it is its architecture, and a note."""
    if config != WanVAEConfig():
        return config, NO_STATISTICS
    return replace(config, latents_mean=WAN21_MEAN, latents_std=WAN21_STD), OFFICIAL_STATISTICS
