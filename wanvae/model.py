"""The video VAE: encoder, decoder, and what people call on them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wanvae.checkpoints import formats
from wanvae.checkpoints.hub import WAN_VAE
from wanvae.checkpoints.latent_statistics import statistics_like
from wanvae.config import WanVAEConfig, check_length, check_size
from wanvae.engine.checkpoint import load_tensors
from wanvae.engine.cudnn import warn_of_convolutions
from wanvae.engine.finite import check_input, check_result
from wanvae.engine.hub import upload
from wanvae.errors import UserError
from wanvae.execution.compilation import Compilation, compiled_step
from wanvae.execution.limits import Limits, Memory, Processes, TileSize
from wanvae.execution.network import Network, make_network
from wanvae.execution.run import Runner
from wanvae.execution.sessions import SessionState, StreamDecoder, StreamEncoder
from wanvae.nn import CausalConv, Decoder, Encoder, State, use_channels_last
from wanvae.nn.kernels.precision import default_dtype, tell_of_emulation
from wanvae.posterior import Posterior

if TYPE_CHECKING:
    from wanvae.diffusers_adapter import DiffusersVAE


@dataclass(frozen=True)
class Reconstruction:
    """What a training step needs.

    Attributes:
        video: the decoded video ``(B, C, T, H, W)``, not clamped.
        posterior: the distribution its latents came from.
    """

    video: Tensor
    posterior: Posterior


class WanVAE(nn.Module):
    """The causal 3D video VAE of Wan2.1, Wan2.2 or Qwen-Image, as the config says.

    A video ``(B, C, T, H, W)`` in [-1, 1], with T = 1 + 4n and H and W multiples of 8, has latents
    ``(B, z_dim, 1 + n, H / 8, W / 8)``; both factors follow from the config (that of space is 16
    for Wan2.2), and so does the size of decoded videos. For an image model (``ndim: 2``) T is any
    number of unrelated frames, each with a latent. Parameter names are those of the official
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
        super().__init__()
        self.config = config
        self.encoder = Encoder(
            config.coder, config.in_channels, 2 * config.z_dim, patch_size=config.patch_size
        )
        self.conv1 = CausalConv(3, 2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv(3, config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config.decoder, config.z_dim, config.out_channels, config.unpatchify)
        self.compilation: Compilation | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        *,
        subfolder: str | None = None,
        encode_dtype: torch.dtype | None = None,
        decode_dtype: torch.dtype | None = None,
    ) -> WanVAE:
        """Load a checkpoint of any known layout, in evaluation mode.

        Args:
            path: a native ``.safetensors``; an official ``.pth``, or its keys in ``.safetensors``;
                a diffusers directory or file, of Qwen-Image too; or, if there is no such path, the
                ``"org/name"`` of a repository of the Hugging Face Hub. Layout and architecture are
                found out.
            dtype: of the parameters; None keeps the file's, except that a CPU computes in float32
                what it only emulates (float16 nearly everywhere); one line of the log says so.
            device: where to put them; None is the CPU.
            subfolder: the folder in ``path`` that holds the checkpoint.
            encode_dtype, decode_dtype: of those that encode, or decode, where it is another:
                latents encoded in bfloat16 are off by more than videos decoded in it.

        Raises:
            CheckpointError: the file cannot be read or downloaded, or is no such model (the keys
                are named).
        """
        loaded = formats.load(path, subfolder)
        with torch.device("meta"):
            vae = cls(loaded.config)
        load_tensors(vae, loaded.tensors, path)
        use_channels_last(vae)
        target = torch.device(device or "cpu")
        emulated = set()
        for asked, network, projection in (
            (encode_dtype or dtype, vae.encoder, vae.conv1),
            (decode_dtype or dtype, vae.decoder, vae.conv2),
        ):
            stored = projection.weight.dtype
            if asked is None and default_dtype(stored, target) != stored:
                asked = default_dtype(stored, target)
                emulated.add(stored)
            for module in (network, projection):
                module.to(device=target, dtype=asked)
        for stored in emulated:
            tell_of_emulation(path, stored)
        warn_of_convolutions(vae.device, {vae.encode_dtype, vae.decode_dtype})
        return vae.eval()

    def save_pretrained(self, path: str | PathLike[str], *, push_to_hub: str | None = None) -> None:
        """Write a native checkpoint: one ``.safetensors`` with the config in its metadata.

        A file of that name is replaced only once the new one is complete.

        Args:
            push_to_hub: the ``"org/name"`` of a repository of the Hugging Face Hub to put it into
                as well; made if it is not there.

        Raises:
            CheckpointError: it cannot be written or uploaded.
        """
        formats.save_native(path, self.config, self.state_dict())
        if push_to_hub is not None:
            upload(path, push_to_hub, WAN_VAE)

    def as_diffusers(self) -> DiffusersVAE:
        """This model as the ``vae`` of a diffusers pipeline of Wan or Qwen-Image.

        Raises:
            ImportError: diffusers is not installed.
        """
        if find_spec("diffusers") is None:
            raise ImportError("as_diffusers needs diffusers: run pip install diffusers")
        from wanvae.diffusers_adapter import DiffusersVAE

        return DiffusersVAE(self)

    @property
    def encode_dtype(self) -> torch.dtype:
        """The dtype to encode in; videos are converted to it."""
        return self.conv1.weight.dtype

    @property
    def decode_dtype(self) -> torch.dtype:
        """The dtype to decode in; latents are converted to it."""
        return self.conv2.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters; inputs are moved to it."""
        return self.conv1.weight.device

    def forward(self, video: Tensor, *, recompute: bool = False) -> Reconstruction:
        """Encode and decode a whole clip in one pass over each layer, for training.

        While training the latents are a sample of the posterior; in evaluation, and behind a frozen
        encoder, its mode.

        Args:
            recompute: for the backward pass keep only what goes from block to block, and compute
                what is inside them again: less memory, more time, the same gradients.
        """
        self.check_clip(video)
        video = video.to(self.device, self.encode_dtype)
        frozen = self.encoder_is_frozen
        wanted = torch.is_grad_enabled() and (video.requires_grad or not frozen)
        # Latents of a frozen encoder are exact, whatever the decoder is trained in.
        kind = self.device.type
        narrow = torch.is_autocast_enabled(kind) and not frozen
        with torch.set_grad_enabled(wanted), torch.autocast(kind, enabled=narrow):
            moments = self.encode_step(video, None, recompute=recompute)[0]
        posterior = Posterior.from_moments(moments)
        latents = posterior.sample() if self.training and not frozen else posterior.mode()
        latents = latents.to(self.decode_dtype)
        video = self.decode_step(latents, None, recompute=recompute)[0]
        return Reconstruction(video, posterior)

    def freeze_encoder(self) -> None:
        """Train the decoder alone from now on.

        Latents stay what they are, so diffusion models keep working. The encoder stays in
        evaluation mode, runs without gradients, and the decoder gets the mode of the posterior, as
        it does in use: noise would only blur what it learns.
        """
        for module in (self.encoder, self.conv1):
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether no parameter that latents depend on can be trained."""
        return not any(
            parameter.requires_grad
            for module in (self.encoder, self.conv1)
            for parameter in module.parameters()
        )

    def train(self, mode: bool = True) -> WanVAE:
        """Switch to training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.encoder_is_frozen)
        return self

    @torch.no_grad()
    def encode(
        self,
        video: Tensor,
        *,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
    ) -> Posterior:
        """The posterior of a video ``(B, C, T, H, W)`` in [-1, 1]; no gradients are kept.

        It is encoded a few frames at a time, with the result of the whole; for gradients there is
        ``encode_step``.

        Args:
            video: on any device: frames go to that of the model when it is their turn.
            tile_size: pixels, a multiple of 8 (of the spatial factor), or two of them for height
                and width: encode each frame in tiles of at most this size, with the result of the
                whole.
            max_memory: like "4GB", or bytes: encode in such steps and tiles that this suffices,
                with the result, besides the model and the video.
            shard: an ``Accelerator`` or ``PartialState`` whose processes all call this with the
                same video, and share the work: each gets the posterior.

        Raises:
            ValueError: T is not 1 + 4n, H, W or ``tile_size`` is not a multiple of 8, or
                ``max_memory`` is too little.
            NotFiniteError: the video, or what the model gives in this dtype, is not finite.
        """
        self.check_clip(video)
        runner = self._runner(self.encoder_network(), Limits(tile_size, max_memory, shard))
        moments = runner.run(video)
        check_result(moments, video, decoding=False)
        return Posterior.from_moments(moments)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        clamp: bool = True,
        *,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
    ) -> Tensor:
        """The video ``(B, C, 1 + 4n, 8H, 8W)`` of raw latents ``(B, z_dim, 1 + n, H, W)``.

        It is decoded a few frames at a time, with the result of the whole, and no gradients are
        kept; for those there is ``decode_step``.

        Args:
            latents: as ``Posterior`` gives them; normalized ones need ``denormalize`` first.
            clamp: limit the video to [-1, 1], as the official code does.
            tile_size: pixels, a multiple of 8 (of those decoded per latent), or two of them for
                height and width: decode each frame in tiles of at most this size, with the result
                of the whole.
            max_memory: like "4GB", or bytes: decode in such steps and tiles that this suffices,
                with the result, besides the model and the latents.
            shard: an ``Accelerator`` or ``PartialState`` whose processes all call this with the
                same latents, and share the work: the first gets the video, the others one of no
                frames.

        Raises:
            ValueError: ``latents`` has not this shape, ``tile_size`` is not a multiple of 8, or
                ``max_memory`` is too little.
            NotFiniteError: ``latents``, or what the model gives in this dtype, is not finite.
        """
        self.check_latents(latents)
        check_input(latents, "latents")
        runner = self._runner(self.decoder_network(), Limits(tile_size, max_memory, shard))
        video = runner.run(latents)
        check_result(video, latents, decoding=True)
        return video.clamp_(-1, 1) if clamp else video

    def stream_encode(
        self,
        state: SessionState = None,
        *,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
    ) -> StreamEncoder:
        """A session that encodes frames as they come; ``state`` continues an earlier one.

        Args:
            tile_size, max_memory: as for ``encode``; a session keeps the state of every tile, so
                that ``max_memory`` has to be more than for a clip.
            shard: as for ``encode``; each process goes on from a state of its own.
        """
        runner = self._runner(self.encoder_network(), Limits(tile_size, max_memory, shard))
        return StreamEncoder(runner, self.check_video, state)

    def stream_decode(
        self,
        state: SessionState = None,
        *,
        clamp: bool = True,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
    ) -> StreamDecoder:
        """A session that decodes latents as they come; ``state`` continues an earlier one.

        Args:
            clamp: as for ``decode``.
            tile_size, max_memory: as for ``decode``; a session keeps the state of every tile, so
                that ``max_memory`` has to be more than for a clip.
            shard: as for ``decode``; each process goes on from a state of its own.
        """
        runner = self._runner(self.decoder_network(), Limits(tile_size, max_memory, shard))
        return StreamDecoder(runner, self.check_latents, state, clamp=clamp)

    def compile(self, **options: Any) -> None:
        """Encode and decode by compiled steps from now on: slow at first, then faster on GPUs.

        Calls of the model itself are compiled too. Each new size is compiled once, unless
        ``dynamic`` says otherwise. Tiles run as before, because they come in many sizes.

        Args:
            options: the options of ``torch.compile``, which refuses unknown ones.
        """
        self.compilation = Compilation.from_options(options)
        compiled_step(self.compilation)  # refuses options now, and not with the first video
        super().compile(**self.compilation.options)

    @property
    def compiled(self) -> bool:
        """Whether ``compile`` was called."""
        return self.compilation is not None

    def encoder_network(self) -> Network:
        """The layers from video to moments."""
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
        """The layers from latents to video."""
        return make_network(
            core=(self.conv2, *self.decoder.core()),
            shell=self.decoder.shell(),
            core_first=True,
            out_channels=self.config.out_channels,
            spatial_factor=self.config.decoded_spatial_factor,
            temporal_factor=self.config.temporal_factor,
            architecture=self.config,
        )

    def normalize(self, latents: Tensor) -> Tensor:
        """Raw latents to those a diffusion model sees: ``(latents - mean) / std`` per channel."""
        mean, std = statistics_like(latents, self.config.latents_mean, self.config.latents_std)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        mean, std = statistics_like(latents, self.config.latents_mean, self.config.latents_std)
        return latents * std + mean

    def encode_step(
        self, video: Tensor, state: State, *, recompute: bool = False
    ) -> tuple[Tensor, State]:
        """Moments ``(B, 2 * z_dim, ...)`` of the next 1 + 4n (first) or 4n frames of a stream.

        Args:
            recompute: as for ``forward``.
        """
        features, state = self.encoder.step(video, state, recompute=recompute)
        return self.conv1(features), state

    def decode_step(
        self, latents: Tensor, state: State, *, recompute: bool = False
    ) -> tuple[Tensor, State]:
        """The video, not clamped, of the next latents of a stream.

        Args:
            recompute: as for ``forward``.
        """
        return self.decoder.step(self.conv2(latents), state, recompute=recompute)

    def check_video(self, video: Tensor) -> None:
        """Raise ValueError if ``video`` is no ``(B, C, T, H, W)`` that this model can encode."""
        self._check_tensor(video, "video", self.config.in_channels)
        check_size(self.config, *video.shape[3:])

    def check_clip(self, video: Tensor) -> None:
        """As ``check_video``, and ValueError if it is not a whole clip of 1 + 4n frames."""
        self.check_video(video)
        check_length(self.config, video.shape[2])

    def check_latents(self, latents: Tensor) -> None:
        """Raise ValueError if ``latents`` are no ``(B, z_dim, T, H, W)`` of this model."""
        self._check_tensor(latents, "latents", self.config.z_dim)

    def _runner(self, network: Network, limits: Limits) -> Runner:
        return Runner(network, limits, self.compilation)

    def _check_tensor(self, x: Tensor, name: str, channels: int) -> None:
        if x.dim() != 5 or x.shape[1] != channels or x.numel() == 0:
            raise UserError(
                f"{name} must be (B, {channels}, T, H, W), none of them 0, not {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise UserError(f"{name} must be floating point, not {x.dtype}")
