"""A folder of videos and images to a data set of latents, shared by the processes of a run.

Decoding, the work of the model and writing go on at the same time, each in a thread.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from wanvae.commands.pipeline import encode_frames
from wanvae.dataset.files import WRITERS, StoredClip, Unit, clip_metadata, index_file
from wanvae.dataset.plan import Job, prepare, share
from wanvae.dataset.records import (
    FAILURES,
    INDEX,
    Failure,
    IndexedClip,
    append_line,
    read_failures,
    write_lines,
)
from wanvae.dataset.settings import DatasetOptions, DatasetSettings
from wanvae.engine.ahead import ahead
from wanvae.engine.checkpoint import unwritable
from wanvae.engine.processes import made_by_first_process, objects_of_processes
from wanvae.execution.limits import Memory, TileSize
from wanvae.folders.clips import Clip
from wanvae.folders.frames import ClipError, Row, raised, read_clips
from wanvae.folders.manifest import MANIFEST
from wanvae.latents.spool import LatentsSpool
from wanvae.model import WanVAE
from wanvae.posterior import LOGVAR_RANGE, Posterior
from wanvae.video import Frame

if TYPE_CHECKING:
    from accelerate import PartialState

# Frames that wait to be encoded, and pieces of latents that wait to be written.
FRAMES_AHEAD = 8
PIECES_AHEAD = 8


@dataclass(frozen=True)
class Piece:
    """Latents of some frames of a clip: posterior ``(1, z_dim, T, H, W)`` on the CPU, and times."""

    posterior: Posterior
    times: tuple[float, ...]


Frames: TypeAlias = Generator[tuple[Clip, Frame | ClipError], None, None]
Pieces: TypeAlias = Generator[tuple[Clip, Piece | ClipError], None, None]


@dataclass
class Work:
    """What a process has done.

    Attributes:
        written: clips that it encoded.
        size: bytes of their files.
        failures: clips that could not be encoded.
    """

    written: list[IndexedClip] = field(default_factory=list)
    size: int = 0
    failures: list[Failure] = field(default_factory=list)


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
        source: a folder, or its manifest.
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
    if source.name == MANIFEST:
        source = source.parent
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
    # Here only files of this process, and those that were there before, are sure to be seen.
    kept = [clip for unit in job.kept[rank::ranks] for clip in index_file(destination, unit.file)]
    everything = objects_of_processes((work, kept))
    if not processes.is_main_process:
        return None
    works = [work for work, _ in everything]
    written = list(chain(*(work.written for work in works)))
    kept = list(chain(*(kept for _, kept in everything)))
    failed = chain(*(work.failures for work in works))
    return DatasetReport(
        written=len(written),
        kept=len(kept),
        frames=sum(clip.frames for clip in written),
        size=sum(work.size for work in works),
        seconds=time.perf_counter() - started,
        failures=tuple(write_lists(destination, job, written + kept, failed)),
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


def write_units(
    units: Sequence[Unit], pieces: Pieces, folder: Path, settings: DatasetSettings, bar: tqdm
) -> Work:
    """Write the files of a process from ``pieces`` of all their clips.

    Raises:
        CheckpointError: the disk is full, or not to be written to.
    """
    writer = UnitWriter(folder, settings, bar)
    with closing(pieces):
        rows = groupby(pieces, key=lambda pair: pair[0])
        try:
            for unit in units:
                writer.write(unit, rows)
        except OSError as error:
            raise unwritable(folder, error) from error
    return writer.work


class UnitWriter:
    """Writes files of a data set.

    Attributes:
        work: what it has done.
    """

    def __init__(self, folder: Path, settings: DatasetSettings, bar: tqdm) -> None:
        self._folder = folder
        self._settings = settings
        self._bar = bar
        self.work = Work()

    def write(self, unit: Unit, rows: Iterator[tuple[Clip, Row[Piece]]]) -> None:
        """Write a file of what comes of its clips; a file of none is written for many alone."""
        path = self._folder / unit.file
        path.parent.mkdir(parents=True, exist_ok=True)
        clips = self._stored(islice(rows, len(unit.clips)))
        WRITERS[self._settings.options.container](path, clips)
        if path.exists():
            self.work.written += index_file(self._folder, unit.file)
            self.work.size += path.stat().st_size

    def _stored(self, rows: Iterator[tuple[Clip, Row[Piece]]]) -> Iterator[StoredClip]:
        """The clips, ready to be written; what cannot be read is recorded instead."""
        options = self._settings.options
        for clip, row in rows:
            with TemporaryFile(dir=self._folder) as file:
                spool = LatentsSpool(file, options.tensors, options.torch_dtype)
                try:
                    collect(spool, clip, row, self._settings)
                except ClipError as error:
                    self._record(Failure(clip.name, clip.source, str(error)))
                else:
                    yield StoredClip(clip.name, clip_metadata(clip, self._settings), spool)
            self._bar.update()

    def _record(self, failure: Failure) -> None:
        self.work.failures.append(failure)
        append_line(self._folder / FAILURES, failure)


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
