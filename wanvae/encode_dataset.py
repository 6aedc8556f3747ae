"""A folder of videos and images to a data set of latents, shared by the processes of a run.

Decoding, the work of the model and writing go on at the same time, each in a thread.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, islice
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from wanvae.clip_frames import ClipError, read_clips
from wanvae.clips import Clip
from wanvae.dataset_files import WRITERS, StoredClip, Unit, clip_metadata, index_file
from wanvae.dataset_plan import Job, prepare, share
from wanvae.dataset_records import (
    FAILURES,
    INDEX,
    Failure,
    IndexedClip,
    append_line,
    read_failures,
    write_lines,
)
from wanvae.dataset_settings import DatasetOptions, DatasetSettings
from wanvae.engine.ahead import ahead
from wanvae.engine.checkpoint import unwritable
from wanvae.engine.processes import made_by_first_process, objects_of_processes
from wanvae.latents_spool import LatentsSpool
from wanvae.model import WanVAE
from wanvae.pipeline import encode_frames
from wanvae.planning import Memory, TileSize
from wanvae.posterior import LOGVAR_RANGE, Posterior
from wanvae.video import Frame

if TYPE_CHECKING:
    from accelerate import PartialState

# Frames that wait to be encoded, and pieces of latents that wait to be written.
FRAMES_AHEAD = 8
PIECES_AHEAD = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """Latents of some frames of a clip: posterior ``(1, z_dim, T, H, W)`` on the CPU, and times."""

    posterior: Posterior
    times: tuple[float, ...]


Frames: TypeAlias = Generator[tuple[Clip, Frame | ClipError], None, None]
Pieces: TypeAlias = Generator[tuple[Clip, Piece | ClipError], None, None]
# What comes of one clip.
Row: TypeAlias = Iterator[tuple[Clip, T | ClipError]]


@dataclass
class Work:
    """What a process has done.

    Attributes:
        clips: encoded.
        frames: encoded.
        size: bytes of the files written.
        failures: clips that could not be encoded.
    """

    clips: int
    frames: int
    size: int
    failures: list[Failure]


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What became of the clips of a folder.

    Attributes:
        written: clips that were encoded.
        kept: clips that were there.
        frames: that were encoded.
        size: bytes that were written.
        seconds: that it took.
        failures: clips and files that could not be encoded, now or before.
        left_out: videos and images that no clip can be cut from, a line each.
    """

    written: int
    kept: int
    frames: int
    size: int
    seconds: float
    failures: tuple[Failure, ...]
    left_out: tuple[str, ...]


def encode_dataset(
    vae: WanVAE,
    checkpoint: str | PathLike[str],
    source: str | PathLike[str],
    destination: str | PathLike[str],
    options: DatasetOptions,
    processes: PartialState,
    *,
    tile_size: TileSize | None = None,
    max_memory: Memory | None = None,
    progress: bool = False,
) -> DatasetReport | None:
    """Encode the videos and images of a folder; files that are there and complete are kept.

    Args:
        vae: the model, and ``checkpoint`` where it is from.
        destination: a folder, new or that of a run before with the same settings.
        processes: those of the run, which all call this, and share the work.
        tile_size, max_memory: as for ``WanVAE.stream_encode``.
        progress: show a progress bar, of the clips of the first process.

    Returns:
        What became of all clips, in the process of rank 0; None in the others.

    Raises:
        ValueError: there is nothing to encode, ``options`` fit not the model or not what is there,
            or a folder is in the other.
        CheckpointError: a file cannot be written.
    """
    source, destination = Path(source), Path(destination)
    job = made_by_first_process(lambda: prepare(vae, checkpoint, source, destination, options))
    started = time.perf_counter()
    rank, ranks = processes.process_index, processes.num_processes
    units = share(job.missing, rank, ranks)
    clips = [clip for unit in units for clip in unit.clips]
    frames = ahead(read_clips(clips, source, vae.config.temporal_factor), FRAMES_AHEAD)
    pieces = encode_clips(vae, frames, tile_size, max_memory)
    shown = progress and processes.is_main_process
    with tqdm(total=len(clips), unit="clip", disable=not shown) as bar:
        work = write_units(units, ahead(pieces, PIECES_AHEAD), destination, job.settings, bar)
    # Only when all are done are all files there.
    works = objects_of_processes(work)
    there = (unit for unit in job.units[rank::ranks] if (destination / unit.file).exists())
    indexed = [clip for unit in there for clip in index_file(destination, unit.file)]
    indexes = objects_of_processes(indexed)
    if not processes.is_main_process:
        return None
    indexed = list(chain(*indexes))
    failures = write_lists(destination, job, indexed, chain(*(work.failures for work in works)))
    written = sum(work.clips for work in works)
    return DatasetReport(
        written=written,
        kept=len(indexed) - written,
        frames=sum(work.frames for work in works),
        size=sum(work.size for work in works),
        seconds=time.perf_counter() - started,
        failures=tuple(failures),
        left_out=job.left_out,
    )


# At work


def encode_clips(
    vae: WanVAE, frames: Frames, tile_size: TileSize | None, max_memory: Memory | None
) -> Pieces:
    """The latents of each clip in turn, piece by piece; errors stay the last of their clip."""
    with closing(frames):
        for clip, row in groupby(frames, key=lambda pair: pair[0]):
            encoder = vae.stream_encode(tile_size=tile_size, max_memory=max_memory)
            times: list[float] = []
            try:
                for posterior in encode_frames(
                    vae, encoder, raised(row), lambda frame, times=times: times.append(frame.time)
                ):
                    on_cpu = Posterior(posterior.mean.float().cpu(), posterior.logvar.float().cpu())
                    yield clip, Piece(on_cpu, tuple(times))
                    times.clear()
            except ClipError as error:
                yield clip, error


def raised(row: Row[T]) -> Iterator[T]:
    """What comes of one clip; raises the error that may be in its place."""
    for _, item in row:
        if isinstance(item, ClipError):
            raise item
        yield item


def write_units(
    units: Sequence[Unit], pieces: Pieces, folder: Path, settings: DatasetSettings, bar: tqdm
) -> Work:
    """Write the files of a process from ``pieces`` of all their clips.

    Raises:
        CheckpointError: the disk is full, or not to be written to.
    """
    work = Work(0, 0, 0, [])
    write = WRITERS[settings.options.container]
    with closing(pieces):
        rows = groupby(pieces, key=lambda pair: pair[0])
        try:
            for unit in units:
                path = folder / unit.file
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, stored_clips(unit, rows, folder, settings, work, bar))
                if path.exists():
                    work.size += path.stat().st_size
        except OSError as error:
            raise unwritable(folder, error) from error
    return work


def stored_clips(
    unit: Unit,
    rows: Iterator[tuple[Clip, Row[Piece]]],
    folder: Path,
    settings: DatasetSettings,
    work: Work,
    bar: tqdm,
) -> Iterator[StoredClip]:
    """The clips of a file, ready to be written; what cannot be read is recorded instead."""
    options = settings.options
    for clip, row in islice(rows, len(unit.clips)):
        with TemporaryFile(dir=folder) as file:
            spool = LatentsSpool(file, options.tensors, options.torch_dtype)
            try:
                collect(spool, clip, row, settings)
            except ClipError as error:
                failure = Failure(clip.name, clip.source, str(error))
                work.failures.append(failure)
                append_line(folder / FAILURES, failure)
            else:
                yield StoredClip(clip.name, clip_metadata(clip, settings), spool)
                work.clips += 1
                work.frames += len(spool.times)
        bar.update()


def collect(spool: LatentsSpool, clip: Clip, row: Row[Piece], settings: DatasetSettings) -> None:
    """Put the latents of a clip in ``spool``; raises the ClipError among them, if there is one."""
    # Of the clip alone, so that neither processes nor other clips matter.
    seed = hashlib.sha256(f"{settings.options.seed}/{clip.name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
    for piece in raised(row):
        spool.write(latents_to_store(piece.posterior, settings, generator))
        spool.times.extend(piece.times)


def latents_to_store(
    posterior: Posterior, settings: DatasetSettings, generator: torch.Generator
) -> Tensor:
    """The tensors to store, one after the other, ``(channels, T, H, W)``."""
    mean, std = settings.statistics()
    if settings.options.scale == "raw":
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    store = settings.options.store
    latents = sample_frames(posterior, generator) if store == "sample" else posterior.mode()
    latents = (latents[0] - mean) / std
    if store != "moments":
        return latents
    logvar = posterior.logvar[0].clamp(*LOGVAR_RANGE)
    return torch.cat([latents, logvar - 2 * std.log()])


def sample_frames(posterior: Posterior, generator: torch.Generator) -> Tensor:
    """A sample, drawn for one latent frame after the other, so that pieces do not matter."""
    moments = zip(posterior.mean.split(1, 2), posterior.logvar.split(1, 2), strict=True)
    return torch.cat([Posterior(*frame).sample(generator) for frame in moments], dim=2)


# After


def write_lists(
    folder: Path, job: Job, clips: Iterable[IndexedClip], failed: Iterable[Failure]
) -> list[Failure]:
    """Write the index, and the failures there are now, which it returns."""
    index = {clip.name: clip for clip in clips}
    names = [clip.name for unit in job.units for clip in unit.clips]
    recorded = {failure.name: failure for failure in (*read_failures(folder), *failed)}
    failures = [recorded[name] for name in names if name in recorded and name not in index]
    failures.extend(job.broken)
    write_lines(folder / FAILURES, failures)
    write_lines(folder / INDEX, (index[name] for name in names if name in index))
    return failures
