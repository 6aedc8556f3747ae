"""A WanVAE as the VAE of a diffusers pipeline. No other file imports diffusers."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Protocol

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from wanvae.checkpoints import formats
from wanvae.checkpoints.diffusers_layout import (
    DIFFUSERS_CONFIG,
    diffusers_content,
    is_like_qwen_image_21,
)
from wanvae.config import WanVAEConfig
from wanvae.errors import UserError
from wanvae.execution.limits import Memory, TileSize
from wanvae.posterior import Posterior

# The default of the largest tile in pixels, as in diffusers.
TILE_SIZE = 256


class VAE(Protocol):
    """The methods and attributes of a ``WanVAE`` that the adapter uses."""

    config: WanVAEConfig

    @property
    def encode_dtype(self) -> torch.dtype: ...

    @property
    def decode_dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def encode(
        self, video: Tensor, *, tile_size: TileSize | None, max_memory: Memory | None
    ) -> Posterior: ...

    def decode(
        self, latents: Tensor, *, tile_size: TileSize | None, max_memory: Memory | None
    ) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...


class DiffusersVAE(ModelMixin, ConfigMixin):
    """The ``vae`` of a pipeline of Wan or Qwen-Image; it shares the weights of a WanVAE.

    It has the methods and the config of ``AutoencoderKLWan``. No gradients are kept.

    Attributes:
        vae: the model that does the work.
    """

    config_name = DIFFUSERS_CONFIG
    # Hooks of layers are not called, because streams call ``step`` and not ``forward``.
    _supports_group_offloading = False

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae
        values = diffusers_content(vae.config)
        self.register_to_config(**{k: v for k, v in values.items() if not k.startswith("_")})
        self.z_dim = vae.config.z_dim
        self.temperal_downsample = list(vae.config.temporal_downsample)
        self.temperal_upsample = self.temperal_downsample[::-1]
        self.spatial_compression_ratio = vae.config.spatial_factor
        self.use_slicing = False
        self.use_tiling = False
        self.tile_size: tuple[int, int] | None = None
        self.max_memory: Memory | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of videos and latents of pipelines: the wider of the model's two dtypes."""
        return torch.promote_types(self.vae.encode_dtype, self.vae.decode_dtype)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.vae.device

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
        *,
        max_memory: Memory | None = None,
    ) -> None:
        """Encodes and decodes in tiles from now on. The result equals the result of whole frames.

        Args:
            tile_sample_min_height, tile_sample_min_width: sides of the largest tile in pixels,
                multiples of 8; None means 256.
            tile_sample_stride_height, tile_sample_stride_width: not used, because exact tiles are
                not blended.
            max_memory: text like "4GB", or bytes. Steps and tiles are chosen to fit this limit,
                and the tile size is not used.
        """
        size = tile_sample_min_height or TILE_SIZE, tile_sample_min_width or TILE_SIZE
        self.use_tiling = True
        self.tile_size = size if max_memory is None else None
        self.max_memory = max_memory

    def disable_tiling(self) -> None:
        """Encodes and decodes whole frames again, which is faster."""
        self.use_tiling = False
        self.tile_size = self.max_memory = None

    def enable_slicing(self) -> None:
        """Processes one video of a batch at a time from now on: less memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Processes whole batches again."""
        self.use_slicing = False

    @apply_forward_hook
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Returns the distribution of latents of a video ``(B, C, 1 + 4n, H, W)`` in [-1, 1].

        Returns:
            ``latent_dist``, the distribution of raw latents ``(B, z_dim, 1 + n, H / 8, W / 8)``; a
            tuple of it without ``return_dict``.

        Raises:
            UserError: as ``WanVAE.encode``, or the weights are on no device.
        """
        self._require_weights()
        posteriors = [
            self.vae.encode(part, tile_size=self.tile_size, max_memory=self.max_memory)
            for part in self._slices(x)
        ]
        moments = [torch.cat([p.mean, p.logvar], dim=1) for p in posteriors]
        distribution = DiagonalGaussianDistribution(torch.cat(moments))
        return AutoencoderKLOutput(distribution) if return_dict else (distribution,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Returns the video in [-1, 1] of raw latents ``(B, z_dim, 1 + n, H, W)``.

        Returns:
            ``sample``, the video ``(B, C, 1 + 4n, 8H, 8W)``; a tuple of it without
            ``return_dict``.

        Raises:
            UserError: as ``WanVAE.decode``, or the weights are on no device.
        """
        self._require_weights()
        videos = [
            self.vae.decode(part, tile_size=self.tile_size, max_memory=self.max_memory)
            for part in self._slices(z)
        ]
        video = torch.cat(videos)
        return DecoderOutput(video) if return_dict else (video,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encodes a video, and decodes the mode of its latents or a sample of them."""
        (distribution,) = self.encode(sample, return_dict=False)
        latents = distribution.sample(generator) if sample_posterior else distribution.mode()
        return self.decode(latents, return_dict=return_dict)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **options: object
    ) -> DiffusersVAE:
        """Raises UserError, because a saved pipeline must be given its ``vae``.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{pretrained_model_name_or_path} is read by WanVAE.from_pretrained: "
            "pass vae=vae.as_diffusers() to the pipeline"
        )

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Writes a folder that ``AutoencoderKLWan.from_pretrained`` loads; creates its parents.

        For a model like Qwen-Image 2.1 the class is ``AutoencoderKLQwenImage21``.

        Raises:
            CheckpointError: as ``formats.save_diffusers``.
        """
        Path(save_directory).parent.mkdir(parents=True, exist_ok=True)
        images = is_like_qwen_image_21(self.vae.config)
        save = formats.save_qwen_image_21 if images else formats.save_diffusers
        save(save_directory, self.vae.config, self.vae.state_dict())

    def _slices(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(1) if self.use_slicing else (x,)

    def _require_weights(self) -> None:
        if self.device.type == "meta":
            raise UserError(
                "sequential offload took the weights of the VAE away; "
                "use enable_model_cpu_offload instead"
            )
