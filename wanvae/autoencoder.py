"""What all video autoencoders have in common: the methods that people call."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from os import PathLike
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from wanvae.checkpoints import formats
from wanvae.checkpoints.hub import stored_files
from wanvae.checkpoints.latent_statistics import statistics_like
from wanvae.config import WanVAEConfig, check_length, check_size
from wanvae.engine.finite import check_input, check_result
from wanvae.engine.hub import upload
from wanvae.engine.tensors import check_is_tensor
from wanvae.errors import UserError
from wanvae.execution.compilation import Compilation, compiled_step
from wanvae.execution.flow import first_parameter
from wanvae.execution.graphs import CUDAGraphs
from wanvae.execution.limits import Limits, Memory, Processes, TileSize
from wanvae.execution.network import Network
from wanvae.execution.progress import Progress
from wanvae.execution.run import Runner
from wanvae.execution.sessions import SessionState, StreamDecoder, StreamEncoder
from wanvae.posterior import Posterior
from wanvae.tiny_config import TinyVAEConfig

ConfigT = TypeVar("ConfigT", WanVAEConfig, TinyVAEConfig)


class VideoAutoencoder(nn.Module, Generic[ConfigT]):
    """The base of models between a video and its latents.

    A subclass implements every method that raises NotImplementedError here.

    Attributes:
        config: the architecture, and the statistics of the latents.
        compilation: how steps are compiled; None runs layer by layer.
        decodes: of a decoder alone, the digests of the encoder whose latents it decodes, as its
            file says them; empty if nothing says so. ``save_pretrained`` keeps them.
        assumed_statistics: what ``normalize`` warns of the first time that it is called.
    """

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config
        self.compilation: Compilation | None = None
        self.assumed_statistics: str | None = None
        self.decodes: tuple[str, ...] = ()

    def encoder_network(self) -> Network:
        """Returns the layers from video to moments: mean and logvar of raw latents."""
        raise NotImplementedError(f"{type(self).__name__} has no encoder_network")

    def decoder_network(self) -> Network:
        """Returns the layers from raw latents to video."""
        raise NotImplementedError(f"{type(self).__name__} has no decoder_network")

    def encoding_modules(self) -> tuple[nn.Module, ...]:
        """Returns the modules that encode; none if the model only decodes."""
        raise NotImplementedError(f"{type(self).__name__} has no encoding_modules")

    def decoding_modules(self) -> tuple[nn.Module, ...]:
        """Returns the modules that decode."""
        raise NotImplementedError(f"{type(self).__name__} has no decoding_modules")

    @property
    def encode_dtype(self) -> torch.dtype:
        """The dtype of the parameters that encode; videos are converted to this dtype."""
        return first_parameter(self.encoding_modules() or self.decoding_modules()).dtype

    @property
    def decode_dtype(self) -> torch.dtype:
        """The dtype of the parameters that decode; latents are converted to this dtype."""
        return first_parameter(self.decoding_modules() or self.encoding_modules()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters; inputs are moved to this device."""
        return first_parameter(self.decoding_modules() or self.encoding_modules()).device

    @torch.no_grad()
    def encode(
        self,
        video: Tensor,
        *,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
        progress: Progress | None = None,
        graphs: CUDAGraphs | None = None,
    ) -> Posterior:
        """Returns the posterior of a video ``(B, C, T, H, W)`` in [-1, 1].

        Encodes the video a few frames at a time. The result equals encoding the whole video at
        once. No gradients are kept; use ``encode_step`` for gradients.

        Args:
            video: a video on any device. Frames move to the device of the model a few at a time.
            tile_size: the largest tile in pixels: one number, or height and width, all multiples
                of 8 (the spatial factor). Each frame is encoded in tiles of at most this size. The
                result equals encoding whole frames.
            max_memory: text like "4GB", or bytes. Steps and tiles are chosen so that the work and
                its result need no more than this. The model and the video are not counted.
            shard: an ``Accelerator`` or ``PartialState``. All its processes call this method with
                the same video and share the work. Each process gets the posterior.
            progress: a function that is told the share of the work that is done, from 0 to 1, after
                the step of each layer. What it raises ends the call. Compiled steps and
                graphs tell nothing.
            graphs: records the steps of whole frames on a GPU, and replays them. The same object
                serves all calls and sessions that shall share its graphs.

        Raises:
            UserError: T is not 1 + 4n, H, W or ``tile_size`` is not a multiple of 8, or
                ``max_memory`` is too small.
            NotFiniteError: the video has values that are NaN or infinite, or the output has.
        """
        moments = self.encode_moments(
            video,
            tile_size=tile_size,
            max_memory=max_memory,
            shard=shard,
            progress=progress,
            graphs=graphs,
        )
        return Posterior.from_moments(moments)

    @torch.no_grad()
    def encode_moments(
        self,
        video: Tensor,
        *,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
        progress: Progress | None = None,
        graphs: CUDAGraphs | None = None,
    ) -> Tensor:
        """Returns mean and logvar of ``encode`` in one tensor ``(B, 2 * z_dim, T, H, W)``."""
        self.check_clip(video)
        runner = self._runner(self.encoder_network(), Limits(tile_size, max_memory, shard), graphs)
        moments = runner.run(video, progress)
        check_result(moments, video, decoding=False)
        return moments

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        clamp: bool = True,
        *,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
        progress: Progress | None = None,
        graphs: CUDAGraphs | None = None,
        output_device: torch.device | str | None = None,
    ) -> Tensor:
        """Returns the video ``(B, C, 1 + 4n, 8H, 8W)`` of raw latents ``(B, z_dim, 1 + n, H, W)``.

        Decodes the latents a few at a time. The result equals decoding all latents at once. No
        gradients are kept; use ``decode_step`` for gradients.

        Args:
            latents: raw latents, as a ``Posterior`` gives them. Call ``denormalize`` on normalized
                latents first.
            clamp: limit the video to [-1, 1], as the official code does.
            tile_size: the largest tile in pixels of the video: one number, or height and width,
                all multiples of 8 (the decoded spatial factor). Each frame is decoded in tiles of
                at most this size. The result equals decoding whole frames.
            max_memory: text like "4GB", or bytes. Steps and tiles are chosen so that the work and
                its result need no more than this. The model and the latents are not counted.
            shard: an ``Accelerator`` or ``PartialState``. All its processes call this method with
                the same latents and share the work. The first process gets the video, the others
                get a video without frames.
            progress: as for ``encode``.
            graphs: as for ``encode``.
            output_device: the device of the video; None is the device of the model. With "cpu",
                frames leave a GPU while the GPU decodes the next ones, so a long video need not
                fit on the GPU. Tiles are still put together on the GPU.

        Raises:
            UserError: ``latents`` has another shape, ``tile_size`` is not a multiple of 8, or
                ``max_memory`` is too small.
            NotFiniteError: ``latents`` has values that are NaN or infinite, or the output has.
        """
        self.check_latents(latents)
        check_input(latents, "latents")
        runner = self._runner(self.decoder_network(), Limits(tile_size, max_memory, shard), graphs)
        device = None if output_device is None else torch.device(output_device)
        video = runner.run(latents, progress, device)
        check_result(video, latents, decoding=True)
        return video.clamp_(-1, 1) if clamp else video

    def stream_encode(
        self,
        state: SessionState = None,
        *,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
        graphs: CUDAGraphs | None = None,
    ) -> StreamEncoder:
        """Returns a session that encodes frames as they come.

        Args:
            state: the state of an earlier session, to continue its stream; None starts a stream.
            tile_size, max_memory: as for ``encode``. A session keeps the state of every tile, so
                it needs a larger ``max_memory`` than a clip.
            shard: as for ``encode``. Each process continues from its own state.
            graphs: as for ``encode``. The state of a session never lies in memory of a graph.
        """
        runner = self._runner(self.encoder_network(), Limits(tile_size, max_memory, shard), graphs)
        return StreamEncoder(runner, self.check_video, state)

    def stream_decode(
        self,
        state: SessionState = None,
        *,
        clamp: bool = True,
        tile_size: TileSize | None = None,
        max_memory: Memory | None = None,
        shard: Processes | None = None,
        graphs: CUDAGraphs | None = None,
    ) -> StreamDecoder:
        """Returns a session that decodes latents as they come.

        Args:
            state: the state of an earlier session, to continue its stream; None starts a stream.
            clamp: as for ``decode``.
            tile_size, max_memory: as for ``decode``. A session keeps the state of every tile, so
                it needs a larger ``max_memory`` than a clip.
            shard: as for ``decode``. Each process continues from its own state.
            graphs: as for ``encode``. The state of a session never lies in memory of a graph.
        """
        runner = self._runner(self.decoder_network(), Limits(tile_size, max_memory, shard), graphs)
        return StreamDecoder(runner, self.check_latents, state, clamp=clamp)

    def compile(self, **options: Any) -> None:
        """Compiles the steps of ``encode``, ``decode`` and sessions: slow at first, then faster.

        This is for GPUs. Calls of the model itself are compiled too. Each new size is compiled
        once, unless ``dynamic`` says otherwise. Tiles are not compiled, because they come in many
        sizes.

        Args:
            options: the options of ``torch.compile``, which refuses unknown options.
        """
        self.compilation = Compilation.from_options(options)
        compiled_step(self.compilation)  # refuses bad options now, not with the first video
        super().compile(**self.compilation.options)

    @property
    def compiled(self) -> bool:
        """Whether ``compile`` was called."""
        return self.compilation is not None

    def save_pretrained(self, path: str | PathLike[str], *, push_to_hub: str | None = None) -> None:
        """Writes a native checkpoint: one ``.safetensors`` with the config in its metadata.

        An existing file is replaced only when the new file is complete.

        Args:
            push_to_hub: the ``"org/name"`` of a repository on the Hugging Face Hub. The file is
                uploaded there too; a missing repository is created.

        Raises:
            CheckpointError: the file cannot be written or uploaded.
        """
        formats.save_native(path, self.config, self.state_dict(), self.decodes)
        if push_to_hub is not None:
            upload(path, push_to_hub, stored_files())

    def normalize(self, latents: Tensor) -> Tensor:
        """Returns latents for diffusion models: ``(raw latents - mean) / std`` per channel."""
        check_is_tensor(latents, "latents")
        mean, std = self._statistics_like(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """Returns raw latents of normalized latents: the inverse of ``normalize``."""
        check_is_tensor(latents, "latents")
        mean, std = self._statistics_like(latents)
        return latents * std + mean

    def check_video(self, video: Tensor) -> None:
        """Raises UserError if ``video`` is not a ``(B, C, T, H, W)`` that this model can encode."""
        self._check_tensor(video, "video", self.config.in_channels)
        check_size(self.config, *video.shape[3:])

    def check_clip(self, video: Tensor) -> None:
        """Raises UserError as ``check_video`` does, and if T is not 1 + 4n."""
        self.check_video(video)
        check_length(self.config, video.shape[2])

    def check_latents(self, latents: Tensor) -> None:
        """Raises UserError if ``latents`` are not ``(B, z_dim, T, H, W)`` of this model."""
        self._check_tensor(latents, "latents", self.config.z_dim)

    def prepare_for_diffusers(self) -> None:
        """Raises ImportError if diffusers is not installed. Warns of assumed statistics."""
        if find_spec("diffusers") is None:
            raise ImportError("as_diffusers needs diffusers: run pip install diffusers")
        self.warn_of_statistics(stacklevel=4)

    def warn_of_statistics(self, stacklevel: int) -> None:
        """Warns, the first time, if the latent statistics are assumed.

        Args:
            stacklevel: as for ``warnings.warn``.
        """
        assumed, self.assumed_statistics = self.assumed_statistics, None
        if assumed is not None:
            warnings.warn(
                f"{assumed}; if that is wrong, say which with latent_statistics=... or "
                "--latent-statistics",
                stacklevel=stacklevel,
            )

    def _statistics_like(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.warn_of_statistics(stacklevel=4)
        return statistics_like(latents, self.config.latents_mean, self.config.latents_std)

    def _runner(self, network: Network, limits: Limits, graphs: CUDAGraphs | None) -> Runner:
        return Runner(network, limits, self.compilation, graphs)

    def _check_tensor(self, x: Tensor, name: str, channels: int) -> None:
        check_is_tensor(x, name)
        if x.dim() != 5 or x.shape[1] != channels or x.numel() == 0:
            raise UserError(
                f"{name} must be (B, {channels}, T, H, W), none of them 0, not {tuple(x.shape)}"
            )
