"""From file to file through the model: video to latents to video, piece by piece.

Frames whose sizes are not multiples of the spatial factor are padded by repeating their edges, and
cropped back; a video whose length is not 1 + 4n is padded by repeating its last frame, and trimmed.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice, takewhile
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wanvae.config import WanVAEConfig
from wanvae.engine.checkpoint import CheckpointError
from wanvae.execution.budget import TooLittleMemory, parse_memory
from wanvae.execution.limits import Memory, Processes, TileSize
from wanvae.execution.sessions import StreamEncoder
from wanvae.execution.sharding import FIRST
from wanvae.latents.file import LatentsFile, VideoShape, read_latents, write_latents
from wanvae.metrics.images import psnr, ssim
from wanvae.model import WanVAE, check_reconstructs
from wanvae.posterior import Posterior
from wanvae.video import Frame, VideoError, VideoInfo, VideoReader, VideoWriter

# The rate of the videos that Wan models make.
WAN_RATE = Fraction(16)


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """What a reconstruction came to.

    Attributes:
        frames: how many.
        psnr: peak signal-to-noise ratio in dB, the mean over frames.
        ssim: structural similarity, the mean over frames; NaN for frames under 11 pixels.
        compression: values of the video per value of the latents.
        seconds: spent, reading and writing included.
    """

    frames: int
    psnr: float
    ssim: float
    compression: float
    seconds: float


def reconstruct_file(
    vae: WanVAE,
    source: str | PathLike[str],
    destination: str | PathLike[str],
    *,
    side_by_side: bool = False,
    crf: int = 18,
    start: float = 0.0,
    duration: float | None = None,
    tile_size: TileSize | None = None,
    max_memory: Memory | None = None,
    shard: Processes | None = None,
    progress: bool = False,
) -> ReconstructionReport | None:
    """Encode and decode a video or image file, of any length in constant memory.

    Args:
        destination: the file to write; its suffix tells the kind.
        side_by_side: put the original at the left of the reconstruction.
        crf: quality of the written video, 0 (best) to 51.
        start: where to begin, in seconds.
        duration: how much to take, in seconds; None is all.
        tile_size: work in tiles of at most so many pixels a side.
        max_memory: bytes, or text like "4GB", for the work, besides the model.
        shard: processes that all call this, and share the work; the first one writes.
        progress: show a progress bar.

    Returns:
        What it came to; None in any process but the first.

    Raises:
        VideoError: a file cannot be read or written, or has nothing from ``start`` on.
        ValueError: the model cannot stream, or makes other videos than it takes.
    """
    check_reconstructs(vae.config)
    began = time.perf_counter()
    first = is_first(shard)
    frames, total_psnr, total_ssim, latent_values = 0, 0.0, 0.0, 0
    with open_part(source, start, duration) as part:
        info = part.info
        waiting: deque[Frame] = deque()
        # Encoder and decoder are at work at the same time.
        share = half(max_memory)
        encoder = vae.stream_encode(tile_size=tile_size, max_memory=share, shard=shard)
        decoder = vae.stream_decode(tile_size=tile_size, max_memory=share, shard=shard)
        width = 2 * info.width if side_by_side else info.width
        options = {"width": width, "height": info.height, "fps": info.fps, "crf": crf}
        with (
            VideoWriter(destination, **options) if first else nullcontext() as writer,
            show_progress(part.frames, part.count, progress and first) as originals,
            limit_shared_by(2),
        ):
            for posterior in encode_frames(vae, encoder, originals, waiting.append):
                latent_values += posterior.mean.numel()
                decoded = decoder.push(posterior.mode())[0, :, :, : info.height, : info.width]
                for image in decoded.float().cpu().unbind(1)[: len(waiting)]:
                    original = waiting.popleft()
                    frames += 1
                    pair = image[None], original.image[None]
                    total_psnr += psnr(*pair)
                    total_ssim += ssim(*pair)
                    shown = torch.cat([original.image, image], dim=2) if side_by_side else image
                    writer.write(shown[:, None], [original.time])
                if not first:
                    waiting.clear()
    if not first:
        return None
    return ReconstructionReport(
        frames=frames,
        psnr=total_psnr / frames,
        ssim=total_ssim / frames,
        compression=3 * frames * info.width * info.height / latent_values,
        seconds=time.perf_counter() - began,
    )


def encode_file(
    vae: WanVAE,
    source: str | PathLike[str],
    destination: str | PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    tile_size: TileSize | None = None,
    max_memory: Memory | None = None,
    shard: Processes | None = None,
    progress: bool = False,
) -> tuple[int, ...] | None:
    """Encode a video or image file to a latents file; returns the shape of its mean.

    Args:
        start: where to begin, in seconds.
        duration: how much to take, in seconds; None is all.
        tile_size: work in tiles of at most so many pixels a side.
        max_memory: bytes, or text like "4GB", for the work, besides the model.
        shard: processes that all call this, and share the work; the first one writes, and alone
            gets the shape.
        progress: show a progress bar.

    Raises:
        VideoError: ``source`` cannot be read, or has nothing from ``start`` on.
        CheckpointError: ``destination`` cannot be written.
    """
    first = is_first(shard)
    with open_part(source, start, duration) as part:
        info = part.info
        shape = VideoShape(
            width=info.width, height=info.height, fps=str(info.fps), source=Path(source).name
        )
        with (
            write_latents(destination, shape) if first else nullcontext() as writer,
            show_progress(part.frames, part.count, progress and first) as frames,
        ):
            encoder = vae.stream_encode(tile_size=tile_size, max_memory=max_memory, shard=shard)
            seen = (lambda frame: writer.write_time(frame.time)) if first else (lambda frame: None)
            for posterior in encode_frames(vae, encoder, frames, seen):
                if first:
                    writer.write(posterior)
            return writer.shape if first else None


def decode_file(
    vae: WanVAE,
    source: str | PathLike[str],
    destination: str | PathLike[str],
    *,
    normalized: bool = False,
    fps: Fraction | None = None,
    crf: int = 18,
    tile_size: TileSize | None = None,
    max_memory: Memory | None = None,
    shard: Processes | None = None,
    progress: bool = False,
) -> int:
    """Decode a latents file to a video or image file; returns the number of frames written.

    Args:
        source: as ``encode_file`` or ``encode_dataset`` wrote it, or a safetensors file with a
            tensor "latents". The video is as large as the encoded one, times the upscale factor of
            the model.
        normalized: the latents are as a diffusion model gives them: denormalize them first. Those
            of a file that says so itself always are.
        fps: frames per second; None keeps those of the encoded video, or 16 if unknown.
        crf: quality of the written video, 0 (best) to 51.
        tile_size: work in tiles of at most so many pixels a side.
        max_memory: bytes, or text like "4GB", for the work, besides the model.
        shard: processes that all call this, and share the work; the first one writes.
        progress: show a progress bar.

    Raises:
        CheckpointError: ``source`` cannot be read, or is not of this model.
        VideoError: ``destination`` cannot be written.
    """
    with read_latents(source) as latents:
        check_origin(latents, vae.config, source)
        factor, scale = vae.config.decoded_spatial_factor, vae.config.upscale_factor
        height, width = latents.height * factor, latents.width * factor
        frames, rate = 1 + (latents.length - 1) * vae.config.temporal_factor, WAN_RATE
        if latents.video is not None:
            height, width = scale * latents.video.height, scale * latents.video.width
            frames, rate = len(latents.times), latents.video.rate
        times = latents.times if fps is None else ()
        done, first = 0, is_first(shard)
        options = {"width": width, "height": height, "fps": fps or rate, "crf": crf}
        with (
            VideoWriter(destination, **options) if first else nullcontext() as writer,
            show_progress(range(latents.length), latents.length, progress and first) as starts,
        ):
            pieces = (latents.piece(start, start + 1) for start in starts)
            if normalized or latents.normalized:
                pieces = map(vae.denormalize, pieces)
            for decoded in decode_pieces(vae, pieces, tile_size, max_memory, shard):
                decoded = decoded[0, :, : frames - done, :height, :width]
                count = decoded.shape[1]
                if count:
                    writer.write(decoded, times[done : done + count] or None)
                done += count
    return done


@dataclass(frozen=True)
class Part:
    """A part of a video.

    Attributes:
        info: of the whole.
        frames: those of the part, with times from its first.
        count: how many, as far as is known.
    """

    info: VideoInfo
    frames: Iterator[Frame]
    count: int | None


@contextmanager
def open_part(source: str | PathLike[str], start: float, duration: float | None) -> Iterator[Part]:
    """So many seconds of a video from ``start`` on; None is all the rest.

    Raises:
        VideoError: ``source`` cannot be read or has no frame there, or there is no such part.
    """
    if not 0 <= start < math.inf or not (math.inf if duration is None else duration) > 0:
        raise VideoError(
            f"cannot read {source} from {start} s for {duration} s: the start must be 0 or more, "
            "the duration more than 0"
        )
    with VideoReader(source) as reader:
        if start > 0:
            reader.seek(start)
        first = next(reader, None)
        if first is None:
            raise VideoError(f"{source} has no frame from {start} s on; start earlier")
        end = math.inf if duration is None else start + duration
        count = reader.info.frames
        if count is not None:
            most = math.inf if duration is None else math.ceil(duration * reader.info.fps)
            count = max(1, min(count - round(start * reader.info.fps), most))
        frames = takewhile(lambda frame: frame.time < end, chain([first], reader))
        yield Part(
            reader.info, (replace(frame, time=frame.time - first.time) for frame in frames), count
        )


def is_first(shard: Processes | None) -> bool:
    """Whether this process writes, and speaks, for all."""
    return shard is None or shard.process_index == FIRST


def decode_pieces(
    vae: WanVAE,
    pieces: Iterable[Tensor],
    tile_size: TileSize | None,
    max_memory: Memory | None,
    shard: Processes | None,
) -> Iterator[Tensor]:
    """The video of latents, piece by piece.

    Where ``max_memory`` is too little for the states of all tiles of a stream, it comes in one
    piece: made tile after tile, only one tile has a state at a time.
    """
    pieces = iter(pieces)
    first = next(pieces)
    decoder = vae.stream_decode(tile_size=tile_size, max_memory=max_memory, shard=shard)
    try:
        decoded = decoder.push(first)
    except TooLittleMemory:
        latents = torch.cat([first, *pieces], dim=2)
        yield vae.decode(latents, max_memory=max_memory, shard=shard)
        return
    yield decoded
    yield from map(decoder.push, pieces)


def encode_frames(
    vae: WanVAE, encoder: StreamEncoder, frames: Iterable[Frame], seen: Callable[[Frame], Any]
) -> Iterator[Posterior]:
    """The posterior of a stream of frames, piece by piece; ``seen`` is told of each frame read."""
    frames = iter(frames)
    count = 1
    while batch := list(islice(frames, count)):
        for frame in batch:
            seen(frame)
        video = pad_to_multiple(
            torch.stack([frame.image for frame in batch], dim=1)[None], vae.config.spatial_factor
        )
        posterior = encoder.push(video)
        factor = vae.config.temporal_factor
        count = max(1, encoder.plan.frames // factor) * factor
        if posterior is not None:
            yield posterior
    end = encoder.finish()
    if end.posterior is not None:
        yield end.posterior


def pad_to_multiple(video: Tensor, factor: int) -> Tensor:
    """``(B, C, T, H, W)`` with right and bottom edges repeated to multiples of ``factor``."""
    height, width = video.shape[3:]
    return F.pad(video, (0, -width % factor, 0, -height % factor, 0, 0), mode="replicate")


def check_origin(latents: LatentsFile, config: WanVAEConfig, source: str | PathLike[str]) -> None:
    """Raise CheckpointError if ``latents`` of the file ``source`` are not of such a model."""
    if latents.channels != config.z_dim:
        raise CheckpointError(
            f"{source} has latents of {latents.channels} channels, but those of this model have "
            f"{config.z_dim}; decode them with the checkpoint that made them"
        )
    video = latents.video
    if video is None:
        return
    groups = -(-(len(latents.times) - 1) // config.temporal_factor)
    sides = (-(-side // config.spatial_factor) for side in (video.height, video.width))
    expected, found = (1 + groups, *sides), (latents.length, latents.height, latents.width)
    if found != expected:
        raise CheckpointError(
            f"{source} has latents of {found} (T, H, W), but this model makes {expected} of its "
            f"{len(latents.times)} frames of {video.width}x{video.height}; decode them with the "
            "checkpoint that made them"
        )


def half(max_memory: Memory | None) -> int | None:
    """Half of a limit, in bytes."""
    return None if max_memory is None else parse_memory(max_memory) // 2


@contextmanager
def limit_shared_by(coders: int) -> Iterator[None]:
    """Where a memory limit is too little, say that each of so many coders has a part of it."""
    try:
        yield
    except TooLittleMemory as error:
        raise TooLittleMemory(f"{error}; the limit is shared by {coders} coders") from error


def show_progress(items: Iterable[Any], total: int | None, progress: bool) -> tqdm:
    """``items`` with a progress bar, if asked for; as a context manager it ends the bar's line."""
    return tqdm(items, total=total, unit="frame", disable=not progress)
