"""The architecture of a tiny autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wanvae.engine.config import check, check_option

# How the network itself has latents.
LatentScale = Literal["normalized", "raw"]


@dataclass(frozen=True, kw_only=True)
class TinyVAEConfig:
    """Architecture of a :class:`~wanvae.TinyVAE`. The defaults are ``taew2_1``, for Wan2.1.

    Attributes:
        z_dim: channels of the latents.
        encoder_dim: channels of the encoder; None is a model without encoder.
        decoder_dims: channels of each stage of the decoder, and after its last stage.
        blocks: memory blocks of each stage.
        pools: frames that each stage of the encoder makes one frame of. Each stage halves height
            and width.
        grows: frames that each stage of the decoder makes of one frame.
        channels: channels of the video.
        patch_size: side of the squares of pixels that become the channels of one position; 2 for
            Wan2.2.
        network_latents: how the network itself has latents. ``taew2_1`` and ``taew2_2`` have
            normalized latents, ``lighttaew2_1`` and ``lighttaew2_2`` have raw latents. The methods
            of the model take and give raw latents in both cases.
        latents_mean: mean of each channel of raw latents; empty means 0.
        latents_std: standard deviation of each channel of raw latents; empty means 1.

    >>> config = TinyVAEConfig(z_dim=48, patch_size=2)
    >>> config.temporal_factor, config.spatial_factor
    (4, 16)
    """

    z_dim: int = 16
    encoder_dim: int | None = 64
    decoder_dims: tuple[int, ...] = (256, 128, 64, 64)
    blocks: int = 3
    pools: tuple[int, ...] = (2, 2, 1)
    grows: tuple[int, ...] = (1, 2, 2)
    channels: int = 3
    patch_size: int = 1
    network_latents: LatentScale = "normalized"
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("z_dim", "blocks", "channels", "patch_size"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        width = self.encoder_dim
        check(width is None or width >= 1, "encoder_dim", width, "at least 1")
        stages = len(self.grows)
        fitting = len(self.decoder_dims) == stages + 1 and min(self.decoder_dims) >= 1
        expected = f"{stages + 1} positive whole numbers, one more than grows"
        check(fitting, "decoder_dims", self.decoder_dims, expected)
        check(
            stages > 0 and min(self.grows) >= 1,
            "grows",
            self.grows,
            "one positive whole number per stage",
        )
        same = len(self.pools) == stages and math.prod(self.pools) == math.prod(self.grows)
        check(
            same and min(self.pools) >= 1,
            "pools",
            self.pools,
            f"{stages} positive whole numbers with the product of grows, {math.prod(self.grows)}",
        )
        check_option("network_latents", self.network_latents, LatentScale)
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            check(len(values) in (0, self.z_dim), name, values, f"{self.z_dim} numbers (z_dim)")
            check(all(map(math.isfinite, values)), name, values, "finite")
        check(all(s > 0 for s in self.latents_std), "latents_std", self.latents_std, "positive")

    @property
    def half(self) -> Literal["decoder"] | None:
        """The only half that the model has; None is both."""
        return "decoder" if self.encoder_dim is None else None

    @property
    def in_channels(self) -> int:
        """Channels of the video to encode."""
        return self.channels

    @property
    def out_channels(self) -> int:
        """Channels of the decoded video."""
        return self.channels

    @property
    def temporal_factor(self) -> int:
        """Frames per latent after the first."""
        return math.prod(self.grows)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** len(self.grows) * self.patch_size

    @property
    def decoded_spatial_factor(self) -> int:
        """Decoded pixels per latent along height and width: as many as encoded pixels."""
        return self.spatial_factor

    @property
    def upscale_factor(self) -> int:
        """How many times larger the decoded video is: never larger."""
        return 1
