"""The judged models. Each one turns the frames of a clip into their reconstructions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from wanvae.checkpoints import formats
from wanvae.config import check_reconstructs, encodes_alpha
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.storage.temporary_files import temporary_folder
from wanvae.errors import UserError
from wanvae.evaluate.settings import ModelFacts
from wanvae.execution.limits import TileSize
from wanvae.frames import encode_frames, pad_to_multiple
from wanvae.model import AnyVAE, WanVAE
from wanvae.posterior import Posterior
from wanvae.video import Frame

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan  # pyright: ignore[reportPrivateImportUsage]

T = TypeVar("T")


@dataclass
class Stopwatch:
    """Seconds of work on a device."""

    device: torch.device
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time that the block takes."""
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - began

    def over(self, items: Iterator[T]) -> Iterator[T]:
        """Yields ``items``, and counts the time that it takes to compute them."""
        while True:
            with self.running():
                following = list(islice(items, 1))
            if not following:
                return
            yield from following


@dataclass
class Cost:
    """The time and the size of the latents of a clip.

    Attributes:
        device: where the model computes.
        values: number of values in the latents.
        nats: KL divergence of their distribution from N(0, 1), in nats.
        reading, encoding, decoding: time spent. The time of encoding includes the time of reading.
    """

    device: torch.device
    values: int = 0
    nats: float = 0.0
    reading: Stopwatch = field(init=False)
    encoding: Stopwatch = field(init=False)
    decoding: Stopwatch = field(init=False)

    def __post_init__(self) -> None:
        self.reading, self.encoding, self.decoding = (Stopwatch(self.device) for _ in range(3))

    def add(self, posterior: Posterior) -> None:
        """Counts the next latents."""
        self.values += posterior.mean.numel()
        self.nats += posterior.kl().sum().item()


# Turns the frames of a clip into as many images ``(C, H, W)`` in [-1, 1], and counts the cost.
Reconstruct: TypeAlias = Callable[[Iterator[Frame], Cost], Iterator[Tensor]]
# Makes a smaller video ``(B, C, T, H, W)`` of a video.
ScaleDown: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judged:
    """A model that is judged.

    Attributes:
        facts: which model it is.
        vae: the model. A model of diffusers has the config and device of this one.
        reconstruct: reconstructs the frames of a clip.
    """

    facts: ModelFacts
    vae: AnyVAE
    reconstruct: Reconstruct


def facts_of_model(vae: AnyVAE, name: str, digests: tuple[str, str], library: str) -> ModelFacts:
    """Returns what the figures of a model depend on.

    Args:
        digests: of the file of the weights, and of the model.
    """
    dtypes = [str(dtype).removeprefix("torch.") for dtype in (vae.encode_dtype, vae.decode_dtype)]
    return ModelFacts(
        name=name,
        checkpoint=digests[0],
        model=digests[1],
        library=library,
        encode_dtype=dtypes[0],
        decode_dtype=dtypes[1],
    )


def judge_stream(
    vae: AnyVAE,
    facts: ModelFacts,
    tile_size: TileSize | None = None,
    max_memory: int | None = None,
    *,
    decoded_by: AnyVAE | None = None,
    scale_down: ScaleDown | None = None,
) -> Judged:
    """Returns our model. Its memory does not grow with the length of a clip.

    Args:
        max_memory: bytes, half of them to encode and half to decode.
        decoded_by: another model, which decodes the latents; None is the same model.
        scale_down: makes what is encoded of frames, if the decoder upscales. So it is judged at the
            size of the frames.

    Raises:
        UserError: the model cannot stream, or decodes other videos than it encodes, and is no model
            that upscales with ``scale_down``.
    """
    decoding = decoded_by or vae
    factor = decoding.config.upscale_factor
    if scale_down is None or factor == 1:
        check_reconstructs(vae.config)
    for network in (vae.encoder_network(), decoding.decoder_network()):
        network.require_streamable()
    share = None if max_memory is None else max_memory // 2

    def reconstruct(frames: Iterator[Frame], cost: Cost) -> Iterator[Tensor]:
        encoder = vae.stream_encode(tile_size=tile_size, max_memory=share)
        decoder = decoding.stream_decode(tile_size=tile_size, max_memory=share)
        # Sizes of the frames that were read and are not decoded yet.
        waiting: list[torch.Size] = []

        def encoded() -> Iterator[Frame]:
            for frame in frames:
                waiting.append(frame.image.shape)
                yield frame if scale_down is None else shrink(frame, factor, scale_down)

        posteriors = encode_frames(
            vae.config, encoder, cost.reading.over(encoded()), lambda frame: None
        )
        for posterior in cost.encoding.over(posteriors):
            cost.add(posterior)
            height, width = waiting[0][1:]
            with cost.decoding.running():
                decoded = decoder.push(posterior.mode())[0, :, : len(waiting), :height, :width]
            del waiting[: decoded.shape[1]]
            yield from decoded.float().unbind(1)

    return Judged(facts, vae, reconstruct)


def shrink(frame: Frame, factor: int, scale_down: ScaleDown) -> Frame:
    """Returns a frame for a model that upscales by ``factor``; its edges are repeated to fit."""
    video = pad_to_multiple(frame.image[None, :, None], factor)
    return replace(frame, image=scale_down(video)[0, :, 0])


def judge_diffusers(vae: WanVAE, facts: ModelFacts) -> Judged:
    """Returns the model of diffusers with the same weights. It takes each clip as a whole.

    Raises:
        UserError: diffusers is not installed, or has no such model; or the model encodes RGBA.
    """
    if encodes_alpha(vae.config):
        raise UserError("--diffusers compares RGB, and this model encodes RGBA; leave it out")
    autoencoder = diffusers_model(vae)
    factor, group = vae.config.spatial_factor, vae.config.temporal_factor

    def reconstruct(frames: Iterator[Frame], cost: Cost) -> Iterator[Tensor]:
        with cost.encoding.running(), torch.no_grad():
            images = [frame.image for frame in cost.reading.over(frames)]
            count, (height, width) = len(images), images[0].shape[1:]
            images += images[-1:] * (-(count - 1) % group)
            video = pad_to_multiple(torch.stack(images, dim=1)[None], factor)
            video = video.to(vae.device, vae.encode_dtype)
            (distribution,) = autoencoder.encode(video, return_dict=False)
            posterior = Posterior(distribution.mean, distribution.logvar)
        cost.add(posterior)
        with cost.decoding.running(), torch.no_grad():
            latents = posterior.mode().to(vae.decode_dtype)
            (decoded,) = autoencoder.decode(latents, return_dict=False)
        yield from decoded[0, :, :count, :height, :width].float().unbind(1)

    return Judged(facts, vae, reconstruct)


def diffusers_model(vae: WanVAE) -> AutoencoderKLWan:
    """Returns an ``AutoencoderKLWan`` with the weights, dtypes and device of a model."""
    if find_spec("diffusers") is None:
        raise UserError("--diffusers needs diffusers: run pip install diffusers, or leave it out")
    from diffusers import AutoencoderKLWan  # pyright: ignore[reportPrivateImportUsage]

    with temporary_folder() as folder:
        try:
            formats.save_diffusers(folder, vae.config, vae.state_dict())
        except CheckpointError as error:
            raise UserError(f"diffusers has no such model ({error}); leave out --diffusers") from (
                error
            )
        autoencoder = AutoencoderKLWan.from_pretrained(folder).eval()
    for modules, dtype in (
        ((autoencoder.encoder, autoencoder.quant_conv), vae.encode_dtype),
        ((autoencoder.decoder, autoencoder.post_quant_conv), vae.decode_dtype),
    ):
        for module in modules:
            module.to(vae.device, dtype)
    return autoencoder


def in_lockstep(
    frames: Iterator[Frame], models: Sequence[Judged], costs: Sequence[Cost]
) -> Iterator[tuple[Frame, tuple[Tensor, ...]]]:
    """Yields each frame with its reconstructions by all models.

    Frames are kept until the last model has read them. These are a few frames, unless a model
    takes clips as a whole.
    """
    originals, *copies = shared(frames, 1 + len(models))
    images = [
        model.reconstruct(copy, cost)
        for model, copy, cost in zip(models, copies, costs, strict=True)
    ]
    yield from zip(originals, zip(*images, strict=True), strict=True)


def shared(items: Iterator[T], readers: int) -> list[Iterator[T]]:
    """Returns iterators over ``items`` for several readers. An item is freed once all have it.

    ``itertools.tee`` would keep up to 57 items that nobody needs any more.
    """
    waiting: list[deque[T]] = [deque() for _ in range(readers)]

    def read(mine: deque[T]) -> Iterator[T]:
        while True:
            if not mine:
                for item in islice(items, 1):
                    for queue in waiting:
                        queue.append(item)
                if not mine:
                    return
            yield mine.popleft()

    return [read(queue) for queue in waiting]
