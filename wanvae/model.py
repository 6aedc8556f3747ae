"""The video VAE: encoder, decoder, and the methods that people call."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from wanvae.autoencoder import VideoAutoencoder
from wanvae.checkpoints import formats
from wanvae.checkpoints.checkpoint import Layout
from wanvae.checkpoints.diffusers_layout import QWEN_IMAGE_CLASS, DiffusersClass, fitting_class
from wanvae.checkpoints.pair import join_alpha
from wanvae.checkpoints.source import Source, source_of
from wanvae.config import WanVAEConfig, check_has
from wanvae.engine.checkpoint import load_tensors
from wanvae.engine.cudnn import warn_of_convolutions
from wanvae.engine.tensors import check_is_tensor, parse_dtype, parse_given_dtype, widest
from wanvae.errors import UserError
from wanvae.execution.network import Network, make_network
from wanvae.nn import AlphaDecoder, CausalConv, Decoder, Encoder, State, use_channels_last
from wanvae.nn.kernels.precision import choose_dtypes
from wanvae.posterior import Posterior
from wanvae.tiny import TinyVAE
from wanvae.tiny_config import TinyVAEConfig

LOGGER = logging.getLogger("wanvae")

if TYPE_CHECKING:
    from wanvae.diffusers_adapter import DiffusersVAE


@dataclass(frozen=True)
class Reconstruction:
    """A decoded video and the posterior of its latents, for a training step.

    Attributes:
        video: the decoded video ``(B, C, T, H, W)``, not clamped.
        posterior: the distribution that the latents come from.
    """

    video: Tensor
    posterior: Posterior


class WanVAE(VideoAutoencoder[WanVAEConfig]):
    """The causal 3D video VAE of Wan2.1, Wan2.2 or Qwen-Image. The config says which.

    A video ``(B, C, T, H, W)`` in [-1, 1], with T = 1 + 4n and H and W multiples of 8, has latents
    ``(B, z_dim, 1 + n, H / 8, W / 8)``. The factors 4 and 8 and the size of decoded videos follow
    from the config; Wan2.2 has 16 instead of 8. For an image model (``ndim: 2``) T is any number of
    unrelated frames, and each frame has its own latent. Parameters have the names of the official
    checkpoints.

    >>> from wanvae.demo import demo_weights
    >>> vae = WanVAE.from_pretrained(demo_weights())
    >>> video = torch.zeros(1, 3, 5, 64, 64)
    >>> latents = vae.encode(video).mode()
    >>> latents.shape
    torch.Size([1, 16, 2, 8, 8])
    >>> vae.decode(latents, tile_size=32).shape
    torch.Size([1, 3, 5, 64, 64])
    """

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__(config)
        if config.half != "decoder":
            self.encoder = Encoder(
                config.coder, config.in_channels, 2 * config.z_dim, patch_size=config.patch_size
            )
            self.conv1 = CausalConv(3, 2 * config.z_dim, 2 * config.z_dim, 1)
        if config.half != "encoder":
            self.conv2 = CausalConv(3, config.z_dim, config.z_dim, 1)
            decoder = AlphaDecoder if config.alpha_decoder else Decoder
            self.decoder = decoder(
                config.decoder, config.z_dim, config.out_channels, config.unpatchify
            )
        # The class that the checkpoint has in diffusers.
        self.diffusers_class: DiffusersClass = fitting_class(config)

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        key: str | None = None,
        latent_statistics: str | PathLike[str] | None = None,
        alpha: str | PathLike[str] | None = None,
        encode_dtype: torch.dtype | str | None = None,
        decode_dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
    ) -> WanVAE | TinyVAE:
        """Loads a checkpoint of any known layout. The model is in evaluation mode.

        A checkpoint of a tiny autoencoder gives a ``TinyVAE``.

        Args:
            path: a native ``.safetensors``; an official ``.pth``, or a ``.safetensors`` with the
                official names; a folder or file of diffusers, also of Qwen-Image; or, if this path
                does not exist, the ``"org/name"`` of a repository on the Hugging Face Hub. The
                layout and the architecture are detected.
            dtype: dtype of the parameters, also as text like "bfloat16"; None keeps the dtype of
                the file, or takes float32 if the CPU only emulates that dtype (float16 on most
                CPUs), and logs so.
            device: device of the parameters; None is the CPU.
            subfolder: the folder in ``path`` that holds the checkpoint.
            variant: the variant of a diffusers folder, like "fp16"; None takes the plain files, or
                the only variant.
            key: what is before the names of the tensors of the model, like "vae.", in a file that
                holds several models.
            latent_statistics: "none", "wan2.1", "wan2.2", or a JSON file with latents_mean and
                latents_std. None takes the statistics of the file, or those that its architecture
                tells; if these are only assumed, ``normalize`` warns once.
            alpha: a checkpoint whose decoder decodes alpha from the same latents, as in Wan-Alpha.
                The model then encodes RGB and decodes RGBA.
            encode_dtype: dtype of the parameters that encode; None is ``dtype``.
            decode_dtype: dtype of the parameters that decode; None is ``dtype``. In bfloat16,
                decoded videos have smaller errors than encoded latents.
            torch_dtype: the name of diffusers for ``dtype``; give one of them.

        Raises:
            UserError: a dtype is unknown, or both ``dtype`` and ``torch_dtype`` are given.
            CheckpointError: the file cannot be read or downloaded, or holds another model (the
                message names the keys).
        """
        dtype = parse_given_dtype(dtype, torch_dtype)
        encode_dtype, decode_dtype = parse_dtype(encode_dtype), parse_dtype(decode_dtype)
        source = source_of(path)
        source = Source(
            source.path,
            source.key if key is None else key,
            source.latent_statistics if latent_statistics is None else latent_statistics,
            source.variant if variant is None else variant,
        )
        asked = widest(encode_dtype, decode_dtype, dtype)
        loaded = formats.load(source, subfolder, dtype=asked)
        if alpha is not None:
            loaded = join_alpha(loaded, formats.load(alpha, dtype=asked), alpha)
        for change in loaded.changes:
            LOGGER.warning("%s: %s", path, change)
        with torch.device("meta"):
            vae = make_model(loaded.config)
        vae.assumed_statistics = loaded.assumed
        vae.decodes = loaded.decodes
        if isinstance(vae, WanVAE) and loaded.layout is Layout.QWEN_IMAGE:
            vae.diffusers_class = QWEN_IMAGE_CLASS
        load_tensors(vae, loaded.tensors, path)
        use_channels_last(vae)
        target = torch.device(device or "cpu")
        parts = [
            (modules, asked)
            for modules, asked in (
                (vae.encoding_modules(), encode_dtype or dtype),
                (vae.decoding_modules(), decode_dtype or dtype),
            )
            if modules
        ]
        dtypes = [(widest_dtype(modules), asked) for modules, asked in parts]
        chosen = choose_dtypes(path, dtypes, target)
        for (modules, _), (stored, _), kept in zip(parts, dtypes, chosen, strict=True):
            for module in modules:
                # One dtype, also if the file has several.
                module.to(device=target, dtype=kept or stored)
        warn_of_convolutions(vae.device, {vae.encode_dtype, vae.decode_dtype})
        return vae.eval()

    def as_diffusers(self, class_name: DiffusersClass | None = None) -> DiffusersVAE:
        """Returns this model as the ``vae`` of a diffusers pipeline.

        It is an object of diffusers' own class with the parameters of this model, not copies of
        them. Its ``encode`` and ``decode`` run this model.

        Args:
            class_name: the class of diffusers; None is the class of the checkpoint. If it does not
                tell, the class is "AutoencoderKLWan", and "AutoencoderKLQwenImage21" for a model
                like Qwen-Image 2.1.

        Raises:
            ImportError: diffusers is not installed.
            UserError: ``class_name`` is unknown, or the class cannot express this architecture.
        """
        self.prepare_for_diffusers()
        from wanvae.diffusers_adapter import make_diffusers_vae

        return make_diffusers_vae(self, class_name or self.diffusers_class)

    def encoding_modules(self) -> tuple[nn.Module, ...]:
        return () if self.config.half == "decoder" else (self.conv1, self.encoder)

    def decoding_modules(self) -> tuple[nn.Module, ...]:
        return () if self.config.half == "encoder" else (self.conv2, self.decoder)

    def forward(self, video: Tensor, *, recompute: bool = False) -> Reconstruction:
        """Encodes and decodes a whole clip for training. Each layer runs once over all of time.

        In training mode the latents are a sample of the posterior. In evaluation mode, and if the
        encoder is frozen, they are the mode of the posterior.

        Args:
            recompute: keep only the tensors between every two blocks for the backward pass, and
                compute the tensors inside again: less memory, more time, the same gradients.
        """
        check_has(self.config, "decoder")
        latents, posterior = self.encode_for_training(video, recompute=recompute)
        video = self.decode_step(latents, None, recompute=recompute)[0]
        return Reconstruction(video, posterior)

    def encode_for_training(
        self, video: Tensor, *, recompute: bool = False
    ) -> tuple[Tensor, Posterior]:
        """Returns the latents that ``forward`` decodes, and the posterior that they come from.

        Args:
            video, recompute: as for ``forward``.
        """
        self.check_clip(video)
        video = video.to(self.device, self.encode_dtype)
        frozen = self.encoder_is_frozen
        wanted = torch.is_grad_enabled() and (video.requires_grad or not frozen)
        # A frozen encoder runs without autocast, so that its latents stay exact.
        kind = self.device.type
        narrow = torch.is_autocast_enabled(kind) and not frozen
        with torch.set_grad_enabled(wanted), torch.autocast(kind, enabled=narrow):
            moments = self.encode_step(video, None, recompute=recompute)[0]
        posterior = Posterior.from_moments(moments)
        latents = posterior.sample() if self.training and not frozen else posterior.mode()
        return latents.to(self.decode_dtype), posterior

    def freeze_encoder(self) -> None:
        """Freezes the encoder, so that only the decoder is trained from now on.

        Latents do not change, so diffusion models keep working. The encoder stays in evaluation
        mode and runs without gradients. The decoder gets the mode of the posterior, as it does
        after training, because noise would only blur its results.
        """
        for module in self.encoding_modules():
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether all parameters that encode are frozen."""
        return not any(
            parameter.requires_grad
            for module in self.encoding_modules()
            for parameter in module.parameters()
        )

    def train(self, mode: bool = True) -> WanVAE:
        """Sets training or evaluation mode. A frozen half stays in evaluation mode."""
        super().train(mode)
        for modules in (self.encoding_modules(), self.decoding_modules()):
            learns = any(p.requires_grad for module in modules for p in module.parameters())
            for module in modules:
                module.train(mode and learns)
        return self

    def encoder_network(self) -> Network:
        """Returns the layers from video to moments; UserError if this is a decoder alone."""
        check_has(self.config, "encoder")
        return make_network(
            core=(*self.encoder.core(), self.conv1),
            shell=self.encoder.shell(),
            core_first=False,
            out_channels=2 * self.config.z_dim,
            spatial_factor=self.config.spatial_factor,
            temporal_factor=self.config.temporal_factor,
            architecture=self.config,
        )

    def decoder_network(self) -> Network:
        """Returns the layers from latents to video; UserError if this is an encoder alone."""
        check_has(self.config, "decoder")
        return make_network(
            core=(self.conv2, *self.decoder.core()),
            shell=self.decoder.shell(),
            core_first=True,
            out_channels=self.config.out_channels,
            spatial_factor=self.config.decoded_spatial_factor,
            temporal_factor=self.config.temporal_factor,
            architecture=self.config,
        )

    def encode_step(
        self, video: Tensor, state: State, *, recompute: bool = False
    ) -> tuple[Tensor, State]:
        """Returns the moments of the next frames of a stream, and the next state; keeps gradients.

        The moments are ``(B, 2 * z_dim, ...)``: mean and logvar of the latents.

        Args:
            video: ``(B, C, T, H, W)``; T is 1 + 4n in the first step and 4n in later steps.
            state: the state after the last step; None starts a stream.
            recompute: as for ``forward``.
        """
        check_has(self.config, "encoder")
        check_is_tensor(video, "video")
        features, state = self.encoder.step(video, state, recompute=recompute)
        return self.conv1(features), state

    def decode_step(
        self, latents: Tensor, state: State, *, recompute: bool = False
    ) -> tuple[Tensor, State]:
        """Returns the video of the next latents of a stream, and the next state; keeps gradients.

        The video is not clamped.

        Args:
            latents: raw latents ``(B, z_dim, T, H, W)``, any T.
            state: the state after the last step; None starts a stream.
            recompute: as for ``forward``.
        """
        check_has(self.config, "decoder")
        check_is_tensor(latents, "latents")
        return self.decoder.step(self.conv2(latents), state, recompute=recompute)


# What ``WanVAE.from_pretrained`` returns.
AnyVAE: TypeAlias = "WanVAE | TinyVAE"


def make_model(config: WanVAEConfig | TinyVAEConfig) -> AnyVAE:
    """Returns a new model of the kind that ``config`` describes."""
    return TinyVAE(config) if isinstance(config, TinyVAEConfig) else WanVAE(config)


def require_wan_vae(vae: AnyVAE, path: object, purpose: str) -> WanVAE:
    """Returns ``vae``; raises UserError if it is a tiny autoencoder, which is for previews.

    Args:
        path: where the model comes from.
        purpose: what the model is for.
    """
    if isinstance(vae, TinyVAE):
        raise UserError(
            f"{path} is a tiny autoencoder, which is for previews; {purpose} needs the Wan VAE "
            "whose latents it shares"
        )
    return vae


def widest_dtype(modules: Iterable[nn.Module]) -> torch.dtype:
    """Returns the dtype that holds every parameter of some modules.

    A model computes in one dtype, also if its file has several.
    """
    dtype = widest(*(p.dtype for module in modules for p in module.parameters()))
    if dtype is None:
        raise RuntimeError("a model without parameters has no dtype")
    return dtype
