"""A VAE of wanvae as a VAE of ComfyUI, which all nodes of ComfyUI take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import comfy.utils
import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor, nn

from wanvae import TinyVAE, WanVAE
from wanvae.config import RGB, WanVAEConfig
from wanvae.errors import UserError
from wanvae.execution.budget import parse_memory
from wanvae.execution.limits import Limits, Memory
from wanvae.execution.network import Network
from wanvae.execution.run import Runner

LOGGER = logging.getLogger("wanvae")
# The share of free memory to use. Convolutions of libraries take what no plan knows.
USABLE = 0.9
# The value in [0, 1] of alpha that an image does not have: opaque.
OPAQUE = 1.0
# Steps of a progress bar for each clip.
PERCENT = 100


class FirstStage(nn.Module):
    """What ComfyUI calls the first stage model: it loads, moves and frees these modules.

    The modules are the modules of the VAE, with the same names, so parameters have the names of the
    checkpoint. ``encode`` and ``decode`` are what custom nodes call that bypass the VAE.
    """

    def __init__(self, vae: WanVAE | TinyVAE) -> None:
        super().__init__()
        for name, module in vae.named_children():
            self.add_module(name, module)
        # Not a module of this one, which would give every parameter a second name.
        object.__setattr__(self, "vae", vae)

    def encode(self, x: Tensor) -> Tensor:
        """Returns raw latents of images ``(B, C, H, W)`` or videos ``(B, C, T, H, W)``."""
        if x.dim() == 4:
            return self.encode(x.unsqueeze(2))[:, :, 0]
        return self.vae.encode(whole_groups(x, self.vae.config.temporal_factor)).mode()

    def decode(self, z: Tensor) -> Tensor:
        """Returns the images or videos in [-1, 1] of raw latents, not clamped."""
        if z.dim() == 4:
            return self.decode(z.unsqueeze(2))[:, :, 0]
        return self.vae.decode(z, clamp=False)


class WholePatcher(ModelPatcher):
    """A model that is on the device as a whole or not at all, because layers do not move alone."""

    def partially_unload(self, *_: object, **__: object) -> int:
        """Returns the freed memory: none, so ComfyUI unloads all of the model."""
        return 0


@dataclass(frozen=True)
class Options:
    """How to encode or decode.

    Attributes:
        tile_size: height and width in pixels of the largest tile; None is whole frames.
        max_memory: bytes, or text like "4GB"; None is what the VAE says, or what is free.
    """

    tile_size: tuple[int, int] | None = None
    max_memory: Memory | None = None


class ExactVAE(VAE):
    """A VAE of ComfyUI that encodes and decodes with a VAE of wanvae.

    Tiles change no value. Tiles are used if a node asks for them, or if ComfyUI has less free
    memory than whole frames need. Where ComfyUI would blend tiles, ``overlap`` has no use.

    Args:
        vae: the model, on the device where ComfyUI keeps models that are not in use.
        max_memory: bytes, or text like "4GB"; None is what ComfyUI says is free.

    Attributes:
        vae: the model.
        max_memory: the limit.
    """

    # The constructor of ComfyUI detects an architecture of its own. It is not called.
    def __init__(self, vae: WanVAE | TinyVAE, max_memory: Memory | None = None) -> None:
        config = vae.config
        self.vae = vae
        self.max_memory = None if max_memory is None else parse_memory(max_memory)
        self.first_stage_model = FirstStage(vae).eval()
        self.size = model_management.module_size(self.first_stage_model)
        self.device = model_management.vae_device()
        self.output_device = model_management.intermediate_device()
        self.vae_dtype = vae.decode_dtype
        self.working_dtypes = [torch.bfloat16, torch.float16, torch.float32]
        self.patcher = WholePatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=model_management.vae_offload_device(),
        )
        self.disable_offload = True
        self.latent_channels = config.z_dim
        self.output_channels = config.out_channels
        # Of the last convolution, before pixels of a larger video leave the channels.
        self.conv_out_channels = config.out_channels * config.upscale_factor**2
        self.not_video = is_image_model(config)
        # ComfyUI has latents of Qwen-Image 2.1 without an axis of time, and others with one.
        self.latent_dim = 2 if self.not_video and config.stage_shortcuts else 3
        scale, upscale = config.spatial_factor, config.decoded_spatial_factor
        self.downscale_ratio: Any = scale
        self.upscale_ratio: Any = upscale
        self.downscale_index_formula = self.upscale_index_formula = None
        if self.latent_dim == 3:
            frames = config.temporal_factor
            self.downscale_ratio = (counting_latents(frames), scale, scale)
            self.upscale_ratio = (counting_frames(frames), upscale, upscale)
            self.downscale_index_formula = (frames, scale, scale)
            self.upscale_index_formula = (frames, upscale, upscale)
        self.pad_channel_value = OPAQUE
        self.crop_input = True
        self.extra_1d_channel = None
        self.handles_tiling = False
        self.format_encoded = None
        self.audio_sample_rate = 44100  # of no meaning here; nodes for sound ask every VAE

    def process_input(self, image: Tensor) -> Tensor:
        """Returns pixels in [-1, 1] of pixels in [0, 1]."""
        return image * 2.0 - 1.0

    def process_output(self, image: Tensor) -> Tensor:
        """Changes pixels in [-1, 1] to pixels in [0, 1], and returns them."""
        return image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)

    def get_sd(self) -> dict[str, Tensor]:
        """Returns the tensors by their names in official files, as the node VAESave writes them."""
        return {name: x.contiguous() for name, x in super().get_sd().items()}

    def vae_output_dtype(self) -> torch.dtype:
        """Returns the dtype of images and latents between nodes."""
        of_comfyui: Callable[[], torch.dtype] | None = getattr(
            model_management, "intermediate_dtype", None
        )
        return torch.float32 if of_comfyui is None else of_comfyui()

    def memory_used_encode(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> int:
        """Returns the bytes that encoding takes: ``shape`` is ``(B, C, H, W)`` or with frames.

        The clips of a batch are encoded one after another. The dtype is the dtype of the model.
        """
        config = self.vae.config
        _, *frames, height, width = shape[1:]
        length = count_whole(frames[0], config.temporal_factor) if frames else 1
        sides = [
            max(1, side // config.spatial_factor) * config.spatial_factor
            for side in (height, width)
        ]
        network = self.vae.encoder_network()
        return Runner(network).estimate_memory((1, config.in_channels, length, *sides), self.device)

    def memory_used_decode(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> int:
        """Returns the bytes that decoding takes: ``shape`` is ``(B, C, H, W)`` or with latents.

        The clips of a batch are decoded one after another. The dtype is the dtype of the model.
        """
        channels, *latents, height, width = shape[1:]
        clip = (1, channels, latents[0] if latents else 1, height, width)
        return Runner(self.vae.decoder_network()).estimate_memory(clip, self.device)

    def vae_encode_crop_pixels(self, pixels: Tensor) -> Tensor:
        """Returns images ``(..., H, W, C)`` with sides and channels as the model takes them.

        What is over a multiple of the spatial factor is cropped, half of it at each side. One
        channel is gray. Missing alpha is opaque; more channels than the model has are dropped.

        Raises:
            UserError: nothing is left, or there are two channels.
        """
        if pixels.shape[-1] == 1:
            pixels = pixels.expand(*pixels.shape[:-1], RGB)
        height, width, channels = pixels.shape[-3:]
        factor, wanted = self.vae.config.spatial_factor, self.vae.config.in_channels
        if min(height, width) < factor or not pixels.numel():
            raise UserError(
                f"the VAE encodes images of at least {factor}x{factor} pixels, not "
                f"{prod(pixels.shape[:-3])} of {height}x{width}"
            )
        if channels < RGB:
            raise UserError(f"images must be gray, RGB or RGBA, not of {channels} channels")
        rest = height % factor, width % factor
        if any(rest):
            kept = height - rest[0], width - rest[1]
            LOGGER.warning(
                "wanvae crops images of %dx%d to %dx%d, multiples of %d, as ComfyUI does",
                *(height, width, *kept, factor),
            )
            for axis, (over, size) in enumerate(zip(rest, kept, strict=True)):
                pixels = pixels.narrow(axis - 3, over // 2, size)
        if channels > wanted:
            return pixels[..., :wanted]
        return nn.functional.pad(pixels, (0, wanted - channels), value=OPAQUE)

    def encode(self, pixel_samples: Tensor, not_video: bool | None = None) -> Tensor:
        """Returns raw latents ``(B, z_dim, T, H, W)``, or without T, of images ``(N, H, W, C)``.

        Args:
            pixel_samples: frames of a video in [0, 1], or images, or videos ``(B, T, H, W, C)``.
            not_video: whether the images are no frames of a video; None is what the model says.
        """
        return self.encode_with(Options(), pixel_samples, not_video)

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
        not_video: bool | None = None,
    ) -> Tensor:
        """Returns what ``encode`` returns, computed in tiles of at most this size in pixels."""
        factor = self.vae.config.spatial_factor
        height, width = pixel_samples.shape[-3:-1]
        sides = [tile_y or height, tile_x or width]
        tile_size = tuple(max(1, side // factor) * factor for side in sides)
        return self.encode_with(Options(tile_size), pixel_samples, not_video)

    def decode(self, samples_in: Tensor, vae_options: Mapping[str, object] | None = None) -> Tensor:
        """Returns images in [0, 1] of raw latents.

        Returns:
            ``(B, T, H, W, C)``, or ``(B, H, W, C)`` from a model whose latents have no time.
        """
        return self.decode_with(Options(), samples_in)

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """Returns what ``decode`` returns, computed in tiles of at most this size in latents."""
        factor = self.vae.config.decoded_spatial_factor
        height, width = samples.shape[-2:]
        tile_size = (tile_y or height) * factor, (tile_x or width) * factor
        return self.decode_with(Options(tile_size), samples)

    def encode_with(
        self, options: Options, pixels: Tensor, not_video: bool | None = None
    ) -> Tensor:
        """Returns what ``encode`` returns, with tiles and a memory limit."""
        pixels = self.vae_encode_crop_pixels(pixels)
        separate = self.not_video if not_video is None else not_video
        if pixels.dim() == 4:
            pixels = pixels.unsqueeze(1 if separate or self.latent_dim == 2 else 0)
        elif self.latent_dim == 2:
            pixels = pixels.flatten(0, 1).unsqueeze(1)
        clips = whole_groups(pixels.movedim(-1, 1), self.vae.config.temporal_factor)

        def encode(clip: Tensor, **limits: Any) -> Tensor:
            return self.vae.encode(self.process_input(clip), **limits).mode()

        latents = self._run(encode, self.vae.encoder_network(), clips, options)
        latents = latents.to(self.vae_output_dtype())
        return latents[:, :, 0] if self.latent_dim == 2 else latents

    def decode_with(self, options: Options, latents: Tensor) -> Tensor:
        """Returns what ``decode`` returns, with tiles and a memory limit.

        Raises:
            UserError: the latents are of another model.
        """
        if latents.shape[1] != self.latent_channels:
            raise UserError(
                f"this VAE decodes latents of {self.latent_channels} channels, not of "
                f"{latents.shape[1]}: take the VAE of the diffusion model, and empty latents for it"
            )
        if self.latent_dim == 2 and latents.dim() == 5:
            latents = latents.movedim(2, 1).flatten(0, 1)
        clips = latents.unsqueeze(2) if latents.dim() == 4 else latents
        video = self._run(self.vae.decode, self.vae.decoder_network(), clips, options)
        images = self.process_output(video.to(self.vae_output_dtype())).movedim(1, -1)
        return images[:, 0] if self.latent_dim == 2 else images

    def _run(
        self, run: Callable[..., Tensor], network: Network, clips: Tensor, options: Options
    ) -> Tensor:
        """Returns the results of clips ``(B, C, T, H, W)``, one after another, where nodes expect.

        ComfyUI loads the model, and frees memory for one clip.
        """
        self.throw_exception_if_invalid()
        limits = self._load(network, clips[:1], options)
        bar = comfy.utils.ProgressBar(PERCENT * len(clips))
        results: list[Tensor] = []
        for index, clip in enumerate(clips.split(1)):
            progress = telling(bar, PERCENT * index)
            result, limits = self._run_within(run, clip, limits, progress)
            results.append(result.to(self.output_device))
        return results[0] if len(results) == 1 else torch.cat(results)

    def _run_within(
        self,
        run: Callable[..., Tensor],
        clip: Tensor,
        limits: dict[str, Any],
        progress: Callable[[float], None],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Returns the result of a clip, and the limits that it was computed within.

        If the device runs out of memory all the same, half of it is tried, and so on.
        """
        while True:
            try:
                return run(clip, progress=progress, **limits), limits
            except model_management.OOM_EXCEPTION:
                free = limits.get("max_memory") or self._free_memory()
            # Here the exception, which holds the tensors of the run, is gone.
            limits = {"max_memory": free // 2}
            model_management.soft_empty_cache()
            LOGGER.warning("wanvae ran out of memory, and tries again with %d bytes", free // 2)

    def _load(self, network: Network, clip: Tensor, options: Options) -> dict[str, Any]:
        """Returns the limits of a run on a clip, after ComfyUI has loaded the model."""
        asked = Limits(options.tile_size, options.max_memory)  # refuses both
        limit = self.max_memory if asked.max_memory is None else parse_memory(asked.max_memory)
        need = Runner(network, Limits(options.tile_size)).estimate_memory(clip.shape, self.device)
        model_management.load_models_gpu(
            [self.patcher],
            memory_required=need if limit is None else min(need, limit),
            force_full_load=self.disable_offload,
        )
        usable = int(USABLE * self._free_memory()) - self._result_size(network, clip)
        if limit is None and need <= usable:
            return {"tile_size": options.tile_size}
        usable = usable if limit is None else min(limit, usable)
        # Tiles that a node asks for are kept if they fit.
        if options.tile_size is not None and need <= usable:
            return {"tile_size": options.tile_size}
        return {"max_memory": usable}

    def _free_memory(self) -> int:
        """Returns the bytes that ComfyUI says are free on the device."""
        of_patcher: Callable[[torch.device], int] | None = getattr(
            self.patcher, "get_free_memory", None
        )
        return int((of_patcher or model_management.get_free_memory)(self.device))

    def _result_size(self, network: Network, clip: Tensor) -> int:
        """Returns the bytes of the result as nodes get it, if it is on the same device."""
        if self.output_device != self.device:
            return 0
        frames = network.count_output_frames(
            network.count_input(network.count_latents(clip.shape[2])), starts=True
        )
        scale = network.spatial_factor
        sides = [side * scale if network.core_first else side // scale for side in clip.shape[3:]]
        return prod((network.out_channels, frames, *sides)) * self.vae_output_dtype().itemsize


def is_image_model(config: object) -> bool:
    """Returns whether each frame has a latent of its own."""
    return isinstance(config, WanVAEConfig) and config.ndim == 2


def counting_latents(factor: int) -> Callable[[int], int]:
    """Returns a function from a number of frames to the number of latents."""
    return lambda frames: max(0, (frames + factor - 1) // factor)


def counting_frames(factor: int) -> Callable[[int], int]:
    """Returns a function from a number of latents to the number of frames."""
    return lambda latents: max(0, latents * factor - (factor - 1))


def count_whole(frames: int, factor: int) -> int:
    """Returns the number of the first frames that fill whole latents."""
    return frames - (frames - 1) % factor


def whole_groups(video: Tensor, factor: int) -> Tensor:
    """Returns a video ``(B, C, T, H, W)`` without the last frames that do not fill a latent."""
    frames = video.shape[2]
    whole = count_whole(frames, factor)
    if whole < frames:
        LOGGER.warning(
            "wanvae encodes 1 + %dn frames, so it drops the last %d of %d, as ComfyUI does",
            *(factor, frames - whole, frames),
        )
    return video[:, :, :whole]


def telling(bar: comfy.utils.ProgressBar, start: int) -> Callable[[float], None]:
    """Returns a function that moves a progress bar, and ends the run if ComfyUI wants so.

    Args:
        start: where the bar is before the run.
    """

    def tell(share: float) -> None:
        model_management.throw_exception_if_processing_interrupted()
        percent = start + int(PERCENT * share)
        if percent > bar.current:
            bar.update_absolute(percent)

    return tell
