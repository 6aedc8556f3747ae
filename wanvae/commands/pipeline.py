"""Videos to latents and back, from file to file, piece by piece.

Frames whose sides are not multiples of the spatial factor are padded by repeating their edges, and
cropped again. A video whose length is not 1 + 4n is padded by repeating its last frame, and trimmed
again.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, takewhile
from os import PathLike
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from wanvae.checkpoints.formats import digest_of_model, digests_of_encoder, load
from wanvae.commands.overlap import FRAMES_BEHIND, Comparison, Shown, read_ahead, write_behind
from wanvae.config import RGB, RGBA, VideoConfig, check_reconstructs, decodes_alpha, encodes_alpha
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.files import refuse_overwriting
from wanvae.engine.finite import NotFiniteError
from wanvae.errors import UserError
from wanvae.execution.budget import TooLittleMemory, parse_memory
from wanvae.execution.limits import Memory, Processes, TileSize
from wanvae.execution.sharding import FIRST
from wanvae.frames import encode_frames
from wanvae.latents.file import LatentsFile, VideoShape, write_latents
from wanvae.latents.reading import open_latents
from wanvae.latents.scale import Scale, choose_scale
from wanvae.model import AnyVAE
from wanvae.tiny import TinyVAE
from wanvae.video import (
    Beside,
    Encoding,
    Frame,
    ReadOptions,
    VideoError,
    VideoInfo,
    VideoReader,
    VideoWriter,
    beside_of,
    sound_of,
)
from wanvae.video.common import is_pipe
from wanvae.video.reading.options import AS_STORED, refuse_background
from wanvae.video.writing.output import Destination

T = TypeVar("T")

LOGGER = logging.getLogger("wanvae")
# Latent frames that are looked at to tell raw from normalized latents.
MEASURED_FRAMES = 64
DEFAULT_ENCODING = Encoding()
# The frame rate of videos that Wan models generate.
WAN_RATE = Fraction(16)


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """The results of a reconstruction.

    Attributes:
        frames: number of frames.
        psnr: peak signal-to-noise ratio in dB, the mean over frames.
        ssim: structural similarity, the mean over frames; NaN for frames under 11 pixels.
        compression: values of the video per value of the latents.
        seconds: time spent, with reading and writing.
    """

    frames: int
    psnr: float
    ssim: float
    compression: float
    seconds: float


def reconstruct_file(
    vae: AnyVAE,
    source: str | PathLike[str],
    destination: Destination,
    *,
    side_by_side: bool = False,
    encoding: Encoding = DEFAULT_ENCODING,
    start: float = 0.0,
    duration: float | None = None,
    fps: Fraction | None = None,
    sound: bool = True,
    options: ReadOptions = AS_STORED,
    tile_size: TileSize | None = None,
    max_memory: Memory | None = None,
    shard: Processes | None = None,
    progress: bool = False,
) -> ReconstructionReport | None:
    """Encodes and decodes a video or image file. Memory does not grow with the length.

    Sound, subtitles, chapters and tags are copied as far as ``destination`` can hold them. Sound
    that it cannot hold is encoded again. The rest is told.

    Args:
        destination: the file to write; its suffix tells the kind. Or a binary file that is open for
            writing.
        side_by_side: put the original at the left of the reconstruction.
        encoding: codec, bits and quality of the written video.
        start: start of the part to take, in seconds.
        duration: length of the part to take, in seconds; None takes the rest.
        fps: frames per second of several images, like frames/%05d.png; None takes 25. Only for
            them.
        sound: keep the sound.
        options: how pictures come out of the file.
        tile_size: work in tiles with at most this many pixels along each side.
        max_memory: bytes, or text like "4GB", for the work, besides the model.
        shard: processes that share the work. All of them call this function; the first one writes.
        progress: show a progress bar.

    Returns:
        The results in the first process; None in the others.

    Raises:
        FileError: ``destination`` is ``source``.
        VideoError: a file cannot be read or written, or has no frame from ``start`` on.
        UserError: the model cannot stream, or decodes other videos than it encodes.
        NotFiniteError: latents or frames are not finite.
    """
    if isinstance(destination, (str, PathLike)):
        refuse_overwriting(destination, [source])
    refuse_shared_pipe(source, shard)
    check_reconstructs(vae.config)
    began = time.perf_counter()
    first = is_first(shard)
    compared, latent_values = Comparison(), 0
    with open_excerpt(source, start, duration, fps, options, vae.config) as excerpt:
        info = excerpt.info
        if excerpt.beside is None and first:  # a pipe
            tell_left_out(info, source)
        waiting: deque[Frame] = deque()
        # Encoder and decoder work at the same time, so each gets half of the memory.
        share = half(max_memory)
        encoder = vae.stream_encode(tile_size=tile_size, max_memory=share, shard=shard)
        decoder = vae.stream_decode(tile_size=tile_size, max_memory=share, shard=shard)
        width = 2 * info.width if side_by_side else info.width
        with (
            read_ahead(excerpt.frames, source) as coming,
            show_progress(coming, excerpt.count, progress and first) as originals,
            open_writer(
                destination,
                first,
                width,
                info.height,
                info.fps,
                encoding,
                decodes_alpha(vae.config),
                excerpt.beside and replace(excerpt.beside, sound=sound),
            ) as writer,
            limit_shared_by(2),
        ):
            if writer is not None:
                writer.require_room(excerpt.count or 1)
            with write_behind(writer, FRAMES_BEHIND) as write, compared.behind() as compare:
                for posterior in encode_frames(vae.config, encoder, originals, waiting.append):
                    latent_values += posterior.mean.numel()
                    decoded = decoder.push(posterior.mode())[0, :, :, : info.height, : info.width]
                    if writer is None:
                        waiting.clear()
                        continue
                    for image in decoded.float().cpu().unbind(1)[: len(waiting)]:
                        original = waiting.popleft()
                        compare((image, original.image))
                        shown = torch.cat([original.image, image], dim=2) if side_by_side else image
                        write(Shown(shown[:, None], [original.time]))
            if writer is not None:
                writer.end_at(excerpt.end())
    if not first:
        return None
    frames = compared.frames
    return ReconstructionReport(
        frames=frames,
        psnr=compared.psnr / frames,
        ssim=compared.ssim / frames,
        compression=vae.config.in_channels * frames * info.width * info.height / latent_values,
        seconds=time.perf_counter() - began,
    )


def encode_file(
    vae: AnyVAE,
    source: str | PathLike[str],
    destination: str | PathLike[str],
    *,
    checkpoint: str | PathLike[str] | None = None,
    start: float = 0.0,
    duration: float | None = None,
    fps: Fraction | None = None,
    options: ReadOptions = AS_STORED,
    tile_size: TileSize | None = None,
    max_memory: Memory | None = None,
    shard: Processes | None = None,
    progress: bool = False,
) -> tuple[int, ...] | None:
    """Encodes a video or image file to a file of latents.

    Args:
        checkpoint: where the model comes from. The file then says which model encoded it.
        start: start of the part to take, in seconds.
        duration: length of the part to take, in seconds; None takes the rest.
        fps: frames per second of several images, like frames/%05d.png; None takes 25. Only for
            them.
        options: how pictures come out of the file.
        tile_size: work in tiles with at most this many pixels along each side.
        max_memory: bytes, or text like "4GB", for the work, besides the model.
        shard: processes that share the work. All of them call this function; the first one writes.
        progress: show a progress bar.

    Returns:
        The shape of the mean, (z_dim, T, H, W), in the first process; None in the others.

    Raises:
        VideoError: ``source`` cannot be read, or has no frame from ``start`` on.
        FileError: ``destination`` cannot be written, or is ``source`` or ``checkpoint``.
        NotFiniteError: the latents are not finite.
    """
    refuse_overwriting(destination, [source, checkpoint])
    refuse_shared_pipe(source, shard)
    first = is_first(shard)
    model, encoders = "", ()
    if checkpoint is not None and first:
        loaded = load(checkpoint)
        model, encoders = digest_of_model(loaded), digests_of_encoder(loaded)
    with open_excerpt(source, start, duration, fps, options, vae.config) as excerpt:
        info = excerpt.info
        tell_left_out(info, source)
        shape = VideoShape(
            width=info.width, height=info.height, fps=str(info.fps), source=Path(source).name
        )
        with (
            write_latents(destination, shape, model=model, encoders=encoders, start=excerpt.start)
            if first
            else nullcontext() as writer,
            read_ahead(excerpt.frames, source) as coming,
            show_progress(coming, excerpt.count, progress and first) as frames,
        ):
            encoder = vae.stream_encode(tile_size=tile_size, max_memory=max_memory, shard=shard)

            def note_time(frame: Frame) -> None:
                if writer is not None:
                    writer.write_time(frame.time)

            for posterior in encode_frames(vae.config, encoder, frames, note_time):
                if writer is not None:
                    writer.write(posterior)
            if writer is not None and not info.is_image:
                writer.end_at(excerpt.end())
            return None if writer is None else writer.shape


def decode_file(
    vae: AnyVAE,
    source: str | PathLike[str],
    destination: Destination,
    *,
    checkpoint: str | PathLike[str] | None = None,
    scale: Scale | None = None,
    entry: str | None = None,
    drop_alpha: bool = False,
    fps: Fraction | None = None,
    encoding: Encoding = DEFAULT_ENCODING,
    audio_from: str | PathLike[str] | None = None,
    tile_size: TileSize | None = None,
    max_memory: Memory | None = None,
    shard: Processes | None = None,
    progress: bool = False,
) -> int:
    """Decodes latents to a video or image file.

    Args:
        source: a file that ``encode_file`` or ``encode_dataset`` wrote, or a file or folder of
            another program, see ``wanvae.latents.formats``. The written video has the size of the
            encoded video, times the upscale factor of the model.
        checkpoint: where the model comes from. Warns if another model encoded the latents.
        scale: the scale of the latents of another program; None takes what the program stores, or
            what the values tell, and logs which. Normalized latents are denormalized first.
        entry: the name of the clip, where ``source`` holds several.
        drop_alpha: write colour alone if the model decodes alpha. Otherwise the format of
            ``destination`` must hold alpha.
        fps: frames per second; None keeps the rate of the encoded video, or takes 16 if unknown.
        encoding: codec, bits and quality of the written video.
        audio_from: the video that was encoded, or a file of sound. Its sound, subtitles, chapters
            and tags are kept as in ``reconstruct_file``, for the time that the latents cover.
        tile_size: work in tiles with at most this many pixels along each side.
        max_memory: bytes, or text like "4GB", for the work, besides the model.
        shard: processes that share the work. All of them call this function; the first one writes.
        progress: show a progress bar.

    Returns:
        The number of frames that this process wrote.

    Raises:
        CheckpointError: ``source`` cannot be read, does not fit the model, holds latents that are
            not finite or whose values do not tell their scale, holds several clips although
            ``entry`` is None, or says that its latents have another scale than ``scale``.
        FileError: ``destination`` is ``source``, ``checkpoint`` or ``audio_from``.
        VideoError: ``destination`` cannot be written, or ``audio_from`` has no sound.
        NotFiniteError: the decoded frames are not finite.
    """
    if isinstance(destination, (str, PathLike)):
        refuse_overwriting(destination, [source, checkpoint, audio_from])
    first = is_first(shard)
    with open_latents(source, vae.config.z_dim, entry) as latents:
        check_origin(latents, vae.config, source)
        normalized = find_normalized(latents, vae.config, scale, source, first)
        if checkpoint is not None and first:
            tiny = isinstance(vae, TinyVAE)
            warn_of_other_model(latents, checkpoint, source, tiny=tiny)
        factor, upscale = vae.config.decoded_spatial_factor, vae.config.upscale_factor
        height, width = latents.height * factor, latents.width * factor
        frames, rate = 1 + (latents.length - 1) * vae.config.temporal_factor, WAN_RATE
        if latents.video is not None:
            height, width = upscale * latents.video.height, upscale * latents.video.width
            frames, rate = len(latents.times), latents.video.rate
        times = latents.times if fps is None else ()
        alpha = decodes_alpha(vae.config) and not drop_alpha
        channels = RGBA if alpha else RGB
        done, beside = 0, None
        if audio_from is not None and first:
            beside = find_sound(audio_from, latents, source, frames, fps)
        with (
            show_progress(range(latents.length), latents.length, progress and first) as starts,
            open_writer(
                destination, first, width, height, fps or rate, encoding, alpha, beside
            ) as writer,
        ):
            if writer is not None:
                writer.require_room(frames)
            pieces = (finite_piece(latents, start, source) for start in starts)
            if normalized:
                pieces = map(vae.denormalize, pieces)
            with write_behind(writer, 1) as write:
                for decoded in decode_pieces(vae, pieces, tile_size, max_memory, shard):
                    decoded = decoded[0, :channels, : frames - done, :height, :width]
                    count = decoded.shape[1]
                    if count and writer is not None:
                        write(Shown(decoded.float().cpu(), times[done : done + count] or None))
                    done += count
            if writer is not None and times and latents.end is not None:
                writer.end_at(latents.end)
    return done


def refuse_shared_pipe(source: str | PathLike[str], shard: Processes | None) -> None:
    """Raises VideoError if several processes would read a pipe, which gives each a part of it."""
    if shard is not None and shard.num_processes > 1 and is_pipe(source):
        raise VideoError(
            f"cannot read {source}: several processes cannot share a pipe; write it to a file "
            "first, or leave out --shard"
        )


@dataclass(frozen=True)
class Excerpt:
    """The part of a video from one time to another.

    Attributes:
        info: facts of the whole video.
        frames: frames of the part, with times from its first frame.
        count: number of frames in the part, as far as it is known.
        start: time of its first frame, in seconds from the first frame of the video.
        beside: what the file holds beside these frames; None for images.
        end: returns when the last frame ends, in seconds from the first frame, once all are read.
    """

    info: VideoInfo
    frames: Generator[Frame, None, None]
    count: int | None
    start: float
    beside: Beside | None
    end: Callable[[], float]


def tell_left_out(info: VideoInfo, source: str | PathLike[str]) -> None:
    """Warns that sound and subtitles of a file are left out, if it has any."""
    if beside := info.beside:
        verb = "is" if beside == ("sound",) else "are"
        warnings.warn(f"{source}: its {' and '.join(beside)} {verb} left out", stacklevel=3)


@contextmanager
def open_excerpt(
    source: str | PathLike[str],
    start: float,
    duration: float | None,
    fps: Fraction | None,
    options: ReadOptions,
    config: VideoConfig,
) -> Iterator[Excerpt]:
    """Opens a video from ``start`` on, for ``duration`` seconds; None takes the rest.

    Args:
        fps: frames per second of several images.
        options: how pictures come out of the file.
        config: the model that encodes the video. It tells whether alpha is read.

    Raises:
        VideoError: ``source`` cannot be read, or has no frame there, or the times are wrong.
    """
    if not 0 <= start < math.inf or not (math.inf if duration is None else duration) > 0:
        length = "" if duration is None else f" for {duration} s"
        raise VideoError(
            f"cannot read {source} from {start} s{length}: the start must be 0 or more, "
            "the duration more than 0"
        )
    alpha = encodes_alpha(config)
    refuse_background(options.background, alpha=alpha)
    with VideoReader(source, fps=fps, alpha=alpha, options=options) as reader:
        if start > 0:
            reader.seek(start)
        first = next(reader, None)
        if first is None:
            raise VideoError(f"{source} has no frame from {start} s on; start earlier")
        end = math.inf if duration is None else start + duration
        count = reader.info.frames
        if count is not None:
            count -= round(start * reader.info.fps)
            if duration is not None and duration < math.inf:
                count = min(count, math.ceil(duration * reader.info.fps))
            count = max(1, count)
        frames = takewhile(lambda frame: frame.time < end, chain([first], reader))
        yield Excerpt(
            info=reader.info,
            frames=(replace(frame, time=frame.time - first.time) for frame in frames),
            count=count,
            start=first.time,
            beside=beside_of(reader, first.time, None if end == math.inf else end),
            end=lambda: min(float(reader.end), end) - first.time,
        )


@contextmanager
def open_writer(
    destination: Destination,
    first: bool,
    width: int,
    height: int,
    fps: Fraction,
    encoding: Encoding,
    alpha: bool,
    beside: Beside | None,
) -> Iterator[VideoWriter | None]:
    """Opens a video or image file to write in the ``first`` process; gives None to the others."""
    if not first:
        yield None
        return
    with VideoWriter(
        destination,
        width=width,
        height=height,
        fps=fps,
        crf=encoding.crf,
        alpha=alpha,
        codec=encoding.codec,
        bits=encoding.bits,
        container=encoding.container,
        beside=beside,
    ) as writer:
        yield writer


def is_first(shard: Processes | None) -> bool:
    """Returns whether this process writes and prints for all processes."""
    return shard is None or shard.process_index == FIRST


def decode_pieces(
    vae: AnyVAE,
    pieces: Iterable[Tensor],
    tile_size: TileSize | None,
    max_memory: Memory | None,
    shard: Processes | None,
) -> Iterator[Tensor]:
    """Yields the video ``(B, C, T, H, W)`` of latents, piece by piece.

    If ``max_memory`` is too little for the states of all tiles of a stream, the video comes in one
    piece: then tiles are decoded one after the other, and only one tile has a state at a time.
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


def check_origin(latents: LatentsFile, config: VideoConfig, source: str | PathLike[str]) -> None:
    """Raises CheckpointError if the latents of the file ``source`` do not fit the model."""
    if latents.channels != config.z_dim:
        raise CheckpointError(
            f"{source} has latents of {latents.channels} channels, but this model has "
            f"{config.z_dim}; decode them with the checkpoint that encoded them"
        )
    video = latents.video
    if video is None:
        return
    groups = -(-(len(latents.times) - 1) // config.temporal_factor)
    sides = (-(-side // config.spatial_factor) for side in (video.height, video.width))
    expected, found = (1 + groups, *sides), (latents.length, latents.height, latents.width)
    if found != expected:
        raise CheckpointError(
            f"{source} has latents of {found} (T, H, W), but this model encodes "
            f"{len(latents.times)} frames of {video.width}x{video.height} to {expected}; decode "
            "them with the checkpoint that encoded them"
        )


def find_normalized(
    latents: LatentsFile,
    config: VideoConfig,
    scale: Scale | None,
    source: str | PathLike[str],
    told: bool,
) -> bool:
    """Returns whether the latents of the file ``source`` are normalized.

    Args:
        scale: the scale that people name; None if they name none.
        told: log what is assumed of latents of another program.

    Raises:
        CheckpointError: the file says that its latents have another scale, or nothing tells it.
    """
    known: Scale | None = None
    if latents.normalized is not None:
        known = "normalized" if latents.normalized else "raw"
    if not latents.program:
        if scale is not None and scale != known:
            state = "normalized" if latents.normalized else "not normalized"
            raise CheckpointError(
                f"{source} holds latents that are {state}, as it says; leave out "
                f"{'--scale' if latents.normalized else '--normalized'}"
            )
        return known == "normalized"
    if scale is not None:
        return scale == "normalized"
    step = -(-latents.length // MEASURED_FRAMES)
    pieces = (finite_piece(latents, start, source)[0] for start in range(0, latents.length, step))
    means, stds = config.latents_mean, config.latents_std
    try:
        choice = choose_scale(known, latents.program, pieces, means, stds, "--scale {}")
    except NotFiniteError:
        raise
    except UserError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if told and choice.reason:
        LOGGER.warning("%s: its latents are %s", source, choice.reason)
    return choice.scale == "normalized"


def find_sound(
    path: str | PathLike[str],
    latents: LatentsFile,
    source: str | PathLike[str],
    frames: int,
    fps: Fraction | None,
) -> Beside:
    """Returns what lies in a file beside the frames of latents. Warns of what is not sure.

    Args:
        path: the file with the sound.
        source: the file of the latents.
        frames: number of frames of the decoded video.
        fps: the rate of the decoded video, if it is not the rate of the encoded video.

    Raises:
        VideoError: the file cannot be read, or has no sound.
    """
    if latents.start is None:
        warnings.warn(
            f"{source} does not say where in its video it begins; the sound is taken from the "
            f"beginning of {path}",
            stacklevel=3,
        )
    start = Fraction(latents.start or 0)
    length = frames / (fps or WAN_RATE)
    if latents.video is not None:
        encoded = Fraction(latents.times[-1]) + 1 / latents.video.rate
        if latents.end is not None:
            encoded = Fraction(latents.end)
        if fps is not None and abs(encoded - length) * fps > 1:
            warnings.warn(
                f"{source} has {float(encoded):.2f} s of video, which last {float(length):.2f} s "
                f"at {fps} frames per second; the sound keeps its speed",
                stacklevel=3,
            )
        length = encoded
    return sound_of(path, start, start + length)


def warn_of_other_model(
    latents: LatentsFile,
    checkpoint: str | PathLike[str],
    source: str | PathLike[str],
    *,
    tiny: bool,
) -> None:
    """Warns if the latents say that they come from another model than ``checkpoint``.

    A model with the same encoder is not another one: its decoder was trained for these latents. Nor
    is a copy that was rounded. A tiny autoencoder decodes latents of other models, so it is another
    one only if it says whose.
    """
    if not latents.model:
        return
    loaded = load(checkpoint)
    if latents.model == digest_of_model(loaded):
        return
    encoders = digests_of_encoder(loaded)
    if tiny and not encoders:
        return
    if not encoders:
        warnings.warn(
            f"{checkpoint} is a decoder alone and does not say whose latents it decodes; if "
            f"colours are wrong, {source} was encoded by another model than its own",
            stacklevel=3,
        )
    elif not set(latents.encoders) & set(encoders):
        warnings.warn(
            f"{source} was encoded by another model than {checkpoint}, or by a copy of it whose "
            "rounding is not known. If it is another model, colours and details may be wrong: "
            "decode it with the checkpoint that encoded it",
            stacklevel=3,
        )


def finite_piece(latents: LatentsFile, start: int, source: str | PathLike[str]) -> Tensor:
    """Returns one latent ``(1, z_dim, 1, H, W)``.

    Raises:
        CheckpointError: a value in it is not finite.
    """
    piece = latents.piece(start, start + 1)
    if not piece.isfinite().all():
        raise CheckpointError(
            f"{source} holds latents that are not finite (NaN or infinity), from number {start} "
            "on; encode the video again, in bfloat16 or float32"
        )
    return piece


def half(max_memory: Memory | None) -> int | None:
    """Returns half of a limit, in bytes."""
    return None if max_memory is None else parse_memory(max_memory) // 2


@contextmanager
def limit_shared_by(coders: int) -> Iterator[None]:
    """Adds to the error for a memory limit that this many coders share the limit."""
    try:
        yield
    except TooLittleMemory as error:
        message = f"{error}; the limit is shared by {coders} coders"
        raise TooLittleMemory(message, error.needed) from error


def show_progress(items: Iterable[T], total: int | None, progress: bool) -> tqdm[T]:
    """Returns ``items`` with a progress bar if ``progress`` is set, as a context manager."""
    return tqdm(items, total=total, unit="frame", disable=not progress)
