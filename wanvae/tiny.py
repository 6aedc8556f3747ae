"""Tiny autoencoders (TAEHV): fast models for previews, with the latents of a Wan VAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from wanvae.autoencoder import VideoAutoencoder
from wanvae.checkpoints.diffusers_layout import WAN_CLASS, DiffusersClass
from wanvae.engine.tensors import check_is_tensor
from wanvae.errors import UserError
from wanvae.execution.network import Network, make_network
from wanvae.nn import Patchify, Sequential, State, Unpatchify
from wanvae.nn.sequential import step_through
from wanvae.nn.tiny import (
    Affine,
    WithLogvar,
    decoder_layers,
    encoder_layers,
    in_streaming_rows,
)
from wanvae.posterior import LOGVAR_RANGE
from wanvae.tiny_config import LatentScale, TinyVAEConfig

if TYPE_CHECKING:
    from wanvae.diffusers_adapter import DiffusersVAE


class TinyVAE(VideoAutoencoder[TinyVAEConfig]):
    """A tiny autoencoder: ``taew2_1``, ``taew2_2``, and LightX2V's ``lighttaew2_1``, ``2_2``.

    It is many times faster than the Wan VAE whose latents it shares, and less exact: a model for
    previews. It has the methods of ``WanVAE``, with the same videos in [-1, 1] and the same raw
    latents. The networks themselves have pixels in [0, 1] and mostly normalized latents:
    ``encoder_network`` and ``decoder_network`` convert at both ends, and nothing else does.

    A latent has no spread: ``mode`` and ``sample`` of a posterior are equal to 1e-6. The encoder
    reads the frames of a latent and three frames after them. At the end of a video the last frame
    is repeated for this.

    Parameters have the names and shapes of the published files. ``WanVAE.from_pretrained`` loads
    them.

    >>> import torch
    >>> vae = TinyVAE(TinyVAEConfig(encoder_dim=4, decoder_dims=(4, 4, 4, 4)))
    >>> latents = vae.encode(torch.zeros(1, 3, 5, 64, 64)).mode()
    >>> latents.shape
    torch.Size([1, 16, 2, 8, 8])
    >>> vae.decode(latents, tile_size=32).shape
    torch.Size([1, 3, 5, 64, 64])
    """

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__(config)
        channels = config.channels * config.patch_size**2
        self.encoder: Sequential | None = None
        if config.encoder_dim is not None:
            self.encoder = Sequential(
                *encoder_layers(
                    channels, config.encoder_dim, config.z_dim, config.pools, config.blocks
                )
            )
        self.decoder = Sequential(
            *decoder_layers(
                config.z_dim,
                config.decoder_dims,
                channels,
                config.grows,
                config.blocks,
                skipped=config.temporal_factor - 1,
            )
        )
        self._build_rows()

    def as_diffusers(self, class_name: DiffusersClass = WAN_CLASS) -> DiffusersVAE:
        """Returns this model as the ``vae`` of a diffusers pipeline, for previews.

        It is an object of diffusers' own class. It has the layers of this model, and the config of
        the Wan VAE whose latents it shares. It cannot be saved, because diffusers has no class for
        such layers, and keeps no gradients.

        Args:
            class_name: the class of diffusers, like "AutoencoderKLQwenImage".

        Raises:
            ImportError: diffusers is not installed.
            UserError: ``class_name`` is unknown, or the class has no such latents.
        """
        self.prepare_for_diffusers()
        from wanvae.diffusers_adapter import make_diffusers_preview

        return make_diffusers_preview(self, class_name)

    def encoding_modules(self) -> tuple[nn.Module, ...]:
        return () if self.encoder is None else (self.encoder,)

    def decoding_modules(self) -> tuple[nn.Module, ...]:
        return (self.decoder,)

    def set_network_latents(self, kind: LatentScale) -> None:
        """Says how the network itself has latents, if the file was taken for the wrong kind."""
        self.config = replace(self.config, network_latents=kind)
        self._build_rows()

    def encoder_network(self) -> Network:
        """Returns the layers from video to moments: raw latents, and ``logvar`` -30.

        Raises:
            UserError: the model has no encoder.
        """
        if self.encoder is None:
            raise UserError(
                "this tiny autoencoder has no encoder, as its file has none: encode with the Wan "
                "VAE whose latents it shares"
            )
        return self._network(
            self._encoder_rows, core_first=False, out_channels=2 * self.config.z_dim
        )

    def decoder_network(self) -> Network:
        return self._network(
            self._decoder_rows, core_first=True, out_channels=self.config.out_channels
        )

    def decode_step(
        self, latents: Tensor, state: State, *, recompute: bool = False
    ) -> tuple[Tensor, State]:
        """Returns the video of the next latents of a stream, and the next state; keeps gradients.

        The video is not clamped.

        Args:
            latents, state, recompute: as for ``WanVAE.decode_step``.
        """
        check_is_tensor(latents, "latents")
        return step_through(self._decoder_rows, latents, state, recompute=recompute)

    def _network(
        self, rows: tuple[Sequential, ...], *, core_first: bool, out_channels: int
    ) -> Network:
        config = self.config
        return make_network(
            core=(),
            shell=rows,
            core_first=core_first,
            out_channels=out_channels,
            spatial_factor=config.spatial_factor,
            temporal_factor=config.temporal_factor,
            architecture=config,
            lookahead=0 if core_first else config.temporal_factor - 1,
        )

    def _build_rows(self) -> None:
        """Puts the layers in rows, with what converts pixels and latents at both ends.

        The rows are no submodules, so that parameters keep their names.
        """
        config = self.config
        size = config.patch_size
        std = config.latents_std or (1.0,) * config.z_dim
        mean = config.latents_mean or (0.0,) * config.z_dim
        to_raw, to_network = [Affine(std, mean)], [inverse_affine(std, mean)]
        if config.network_latents == "raw":
            to_raw, to_network = [], []
        self._encoder_rows = in_streaming_rows(
            (
                Affine((0.5,), (0.5,)),
                *([Patchify(size, rows_first=True)] if size > 1 else []),
                *(self.encoder or ()),
                *to_raw,
                WithLogvar(LOGVAR_RANGE[0]),
            )
        )
        self._decoder_rows = in_streaming_rows(
            (
                *to_network,
                *self.decoder,
                *([Unpatchify(size, rows_first=True)] if size > 1 else []),
                Affine((2.0,), (-1.0,)),
            )
        )


def inverse_affine(scale: Sequence[float], shift: Sequence[float]) -> Affine:
    """Returns the inverse of ``Affine(scale, shift)``."""
    pairs = zip(scale, shift, strict=True)
    return Affine([1 / factor for factor in scale], [-added / factor for factor, added in pairs])
