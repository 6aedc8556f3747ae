"""Encodes a folder of videos and images to a data set of latents, in one process or several.

Reading videos, running the model and writing files go on at the same time, each in a thread.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, repeat
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from wanvae.config import encodes_alpha
from wanvae.dataset import layouts
from wanvae.dataset.files import WRITERS, clip_metadata, index_file
from wanvae.dataset.plan import DatasetPlan, prepare
from wanvae.dataset.records import FAILURES, INDEX, IndexedClip, read_failures
from wanvae.dataset.settings import DatasetOptions, DatasetSettings
from wanvae.dataset.stored import LatentsFilePlan, StoredClip
from wanvae.engine.ahead import ahead
from wanvae.engine.files import unwritable
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.json_files import append_line, write_lines
from wanvae.engine.processes import gather_objects, run_on_first_process
from wanvae.engine.sharing import neighbouring_share, progress_bar
from wanvae.execution.limits import Memory, TileSize
from wanvae.folders.clips import Clip
from wanvae.folders.failure import Failure
from wanvae.folders.frames import ClipError, Row, raised, read_clips
from wanvae.folders.listing import MANIFEST
from wanvae.folders.sidecars import SidecarReader
from wanvae.frames import encode_frames
from wanvae.latents.formats.layout import ClipFacts, Condition
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
    """Latents of some frames of a clip.

    Attributes:
        posterior: ``(1, z_dim, T, H, W)`` in float32 on the CPU.
        times: times of the frames in seconds, from the first frame of the video.
    """

    posterior: Posterior
    times: tuple[float, ...]


Frames: TypeAlias = Generator[tuple[Clip, Frame | ClipError], None, None]
Pieces: TypeAlias = Generator[tuple[Clip, Piece | ClipError], None, None]


@dataclass
class Work:
    """The results of one process.

    Attributes:
        written: clips that the process encoded.
        size: bytes of their files.
        failures: clips that could not be encoded.
    """

    written: list[IndexedClip] = field(default_factory=list)
    size: int = 0
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """The results of encoding a folder.

    Attributes:
        written: number of clips that were encoded.
        kept: number of clips that were there before.
        frames: number of frames that were encoded.
        size: bytes that were written.
        seconds: how long it took.
        failures: clips and files that could not be encoded, now or before.
        left_out: videos, images and scenes that are too small or too short for a clip, one line
            each.
        changed: videos and images whose clips were encoded again, because they or their scenes have
            changed.
        gone: videos and images that are not in the folder any more. The index leaves out their
            clips; the files of these clips stay.
        ignored: how many files of the folder are no videos, images or tars, by suffix; or empty.
        unknown: number of clips of an earlier version, which does not tell whether their videos
            have changed since.
        notes: what people must know of clips that become larger, of the files of a layout, and of
            captions and metadata.
        shapes: how many clips have each number of frames, height and width, now or before.
        redescribed: videos and images whose captions or metadata have changed. The index has the
            new ones; the latents are as they were.
    """

    written: int
    kept: int
    frames: int
    size: int
    seconds: float
    failures: tuple[Failure, ...]
    left_out: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    ignored: str
    unknown: int
    notes: tuple[str, ...]
    shapes: Counter[tuple[int, int, int]]
    redescribed: tuple[str, ...]


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
    """Encodes the videos and images of a folder. Latents that are there already are kept.

    With a file for each clip, clips of videos that have changed are encoded again.

    Args:
        vae: the model.
        checkpoint: where the model comes from.
        source: a folder, or its manifest.
        destination: a new folder, or the folder of an earlier run with the same settings.
        processes: the processes of the run. All of them call this function and share the work.
        tile_size, max_memory: as for ``WanVAE.stream_encode``.
        progress: show a progress bar with the clips of the first process.

    Returns:
        The results of all processes in the first process; None in the others.

    Raises:
        UserError: there is nothing to encode, ``options`` do not fit the model or the folder, one
            folder lies inside the other, or another job works in ``destination``.
        FileError: a file cannot be written.
    """
    source, destination = Path(source), Path(destination)
    if source.name == MANIFEST:
        source = source.parent
    with ExitStack() as held:
        plan = run_on_first_process(
            lambda: prepare(vae, checkpoint, source, destination, options, held)
        )
        return carry_out(
            plan,
            vae,
            source,
            destination,
            processes,
            tile_size=tile_size,
            max_memory=max_memory,
            progress=progress,
        )


def carry_out(
    plan: DatasetPlan,
    vae: WanVAE,
    source: Path,
    destination: Path,
    processes: PartialState,
    *,
    tile_size: TileSize | None,
    max_memory: Memory | None,
    progress: bool,
) -> DatasetReport | None:
    """Encodes what is missing, as ``encode_dataset`` says, in the folder that ``prepare`` took."""
    started = time.perf_counter()
    rank, ranks = processes.process_index, processes.num_processes
    # Neighbours, so that the clips of one video mostly go to one process, which need not seek.
    files = neighbouring_share(plan.missing, [file.pixels for file in plan.missing], rank, ranks)
    clips = [clip for file in files for clip in file.clips]
    config = vae.config
    control = plan.settings.options.control
    read = read_clips(
        clips,
        source,
        config.temporal_factor,
        alpha=encodes_alpha(config),
        control=None if control is None else Path(control),
    )
    frames = ahead(read, FRAMES_AHEAD)
    pieces = encode_clips(vae, frames, tile_size, max_memory)
    with progress_bar(processes, "clip", total=len(clips), show=progress) as bar:
        work = write_files(files, ahead(pieces, PIECES_AHEAD), destination, plan.settings, bar)
    # A process is only sure to see its own files, and the files that were there before.
    layout = layouts.layout_of(plan.settings.options)
    kept = [
        clip
        for file in plan.kept[rank::ranks]
        for clip in index_file(destination, file.name, layout)
    ]
    everything = gather_objects((work, kept))
    if not processes.is_main_process:
        return None
    works = [work for work, _ in everything]
    written = list(chain(*(work.written for work in works)))
    kept = list(chain(*(kept for _, kept in everything)))
    failed = chain(*(work.failures for work in works))
    with SidecarReader(source, plan.descriptions) as sidecars:
        failures = write_lists(destination, plan, written + kept, failed, sidecars)
        notes = (*plan.notes, *sidecars.notes)
    return DatasetReport(
        written=len(written),
        kept=len(kept),
        frames=sum(clip.frames for clip in written),
        size=sum(work.size for work in works),
        seconds=time.perf_counter() - started,
        failures=tuple(failures),
        left_out=plan.left_out,
        changed=plan.changed,
        gone=plan.gone,
        ignored=plan.ignored,
        unknown=sum(clip.stamp is None for clip in kept),
        notes=notes,
        shapes=Counter((clip.frames, clip.height, clip.width) for clip in chain(written, kept)),
        redescribed=plan.redescribed,
    )


# In each process


def encode_clips(
    vae: WanVAE, frames: Frames, tile_size: TileSize | None, max_memory: Memory | None
) -> Pieces:
    """Yields the latents of each clip in turn, piece by piece. An error ends its clip."""
    with closing(frames):
        for clip, row in groupby(frames, key=lambda pair: pair[0]):
            encoder = vae.stream_encode(tile_size=tile_size, max_memory=max_memory)
            times: list[float] = []

            def note_time(frame: Frame, times: list[float] = times) -> None:
                times.append(frame.time)

            try:
                for posterior in encode_frames(vae.config, encoder, raised(row), note_time):
                    on_cpu = Posterior(posterior.mean.float().cpu(), posterior.logvar.float().cpu())
                    yield clip, Piece(on_cpu, tuple(times))
                    times.clear()
            except (ClipError, NotFiniteError) as error:
                yield clip, ClipError(str(error))


def write_files(
    files: Sequence[LatentsFilePlan],
    pieces: Pieces,
    folder: Path,
    settings: DatasetSettings,
    bar: tqdm,
) -> Work:
    """Writes the files of a process.

    Args:
        pieces: the latents of all clips of the files, in order.

    Raises:
        FileError: the disk is full, or cannot be written.
    """
    writer = FileWriter(folder, settings, bar)
    with closing(pieces):
        rows = groupby(pieces, key=lambda pair: pair[0])
        try:
            for file in files:
                writer.write(file, rows)
        except OSError as error:
            raise unwritable(folder, error) from error
    return writer.work


@dataclass(frozen=True)
class Spools:
    """Where the latents of a clip and of its conditions are collected."""

    clip: LatentsSpool
    conditions: dict[Condition, LatentsSpool]


@contextmanager
def open_spools(folder: Path, options: DatasetOptions) -> Iterator[Spools]:
    """Gives places for the latents of a clip, in temporary files in a folder."""
    with ExitStack() as files:
        names = [options.tensors, *map(options.tensors_of, options.conditions)]
        clip, *others = (
            LatentsSpool(
                files.enter_context(TemporaryFile(dir=folder)), tensors, options.torch_dtype
            )
            for tensors in names
        )
        yield Spools(clip, dict(zip(options.conditions, others, strict=True)))


class FileWriter:
    """Writes the files of a data set one after the other.

    Attributes:
        work: the results so far.
    """

    def __init__(self, folder: Path, settings: DatasetSettings, bar: tqdm) -> None:
        self._folder = folder
        self._settings = settings
        self._bar = bar
        self.work = Work()

    def write(self, file: LatentsFilePlan, rows: Iterator[tuple[Clip, Row[Piece]]]) -> None:
        """Writes the latents of the clips of one file.

        A file for one clip is not written if the clip cannot be read. A file for many clips is
        always written, with the clips that can be read.

        Args:
            rows: the latents of each clip, of which this file takes the next ones.
        """
        path = self._folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        clips = self._stored(file, rows)
        layout = layouts.layout_of(self._settings.options)
        if layout is None:
            WRITERS[self._settings.options.container](path, clips)
        else:
            layouts.write_clips(path, clips, layout)
        if path.exists():
            self.work.written += index_file(self._folder, file.name, layout)
            self.work.size += path.stat().st_size

    def _stored(
        self, file: LatentsFilePlan, rows: Iterator[tuple[Clip, Row[Piece]]]
    ) -> Iterator[StoredClip]:
        """Yields the clips that can be read, ready to be written, and records the others."""
        for clip, facts in zip(file.clips, file.facts or repeat(None), strict=False):
            with open_spools(self._folder, self._settings.options) as spools:
                failure = None
                times: list[float] = []
                try:
                    times = collect(spools, clip, next(rows)[1], self._settings)
                    check_frames(times, facts)
                except ClipError as error:
                    failure = error
                if clip.control is not None:
                    # Its row is taken in any case, so that the next row is of the next clip.
                    _, row = next(rows)
                    try:
                        if failure is None:
                            collect_control(spools, clip, row, self._settings)
                    except ClipError as error:
                        failure = ClipError(f"its control {clip.control.source}: {error}")
                if failure is None:
                    metadata = clip_metadata(clip, self._settings, times)
                    yield StoredClip(clip.name, metadata, spools.clip, facts, spools.conditions)
                else:
                    self._record(Failure(clip.name, clip.source, str(failure)))
            self._bar.update()

    def _record(self, failure: Failure) -> None:
        self.work.failures.append(failure)
        append_line(self._folder / FAILURES, failure)


def collect(spools: Spools, clip: Clip, row: Row[Piece], settings: DatasetSettings) -> list[float]:
    """Puts the latents of a clip into ``spools``, with times from the first frame of the clip.

    The model is causal, so the first latent of a clip is the latent of its first frame alone.

    Returns:
        The times from the first frame of the video.

    Raises:
        ClipError: there is one in the row, or the dtype to store cannot hold the latents.
    """
    generator = generator_of(settings, clip.name)
    first = spools.conditions.get("first_frame")
    times: list[float] = []
    for piece in raised(row):
        if first is not None and not first.length:
            frame = Posterior(piece.posterior.mean[:, :, :1], piece.posterior.logvar[:, :, :1])
            of_frame = generator_of(settings, f"{clip.name}/first_frame")
            first.write(latents_to_store(frame, settings, of_frame))
        spools.clip.write(latents_to_store(piece.posterior, settings, generator))
        times.extend(piece.times)
    spools.clip.times.extend(time - times[0] for time in times)
    return times


def collect_control(spools: Spools, clip: Clip, row: Row[Piece], settings: DatasetSettings) -> None:
    """Puts the latents of the control of a clip into ``spools``, as many as the clip has.

    Raises:
        ClipError: as ``collect``, or there are fewer.
    """
    spool = spools.conditions["control"]
    generator = generator_of(settings, f"{clip.name}/control")
    frames = 0
    for piece in raised(row):
        spool.write(latents_to_store(piece.posterior, settings, generator))
        frames += len(piece.times)
    if spool.length < spools.clip.length:
        raise ClipError(f"it has {frames} frames, but the clip has {len(spools.clip.times)}")
    spool.cut(spools.clip.length)


def generator_of(settings: DatasetSettings, name: str) -> torch.Generator:
    """Returns a generator for samples of a clip.

    Its seed depends on the clip alone, so that processes and other clips do not matter.
    """
    seed = hashlib.sha256(f"{settings.options.seed}/{name}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "little"))


def check_frames(times: Sequence[float], facts: ClipFacts | None) -> None:
    """Raises ClipError if the name of a file for another program tells a wrong number of frames."""
    if facts is not None and len(times) != facts.frames:
        raise ClipError(
            f"it has {len(times)} frames, not {facts.frames} as its header says, which the name of "
            "the file would tell"
        )


def latents_to_store(
    posterior: Posterior, settings: DatasetSettings, generator: torch.Generator
) -> Tensor:
    """Returns the tensors to store, one after the other, ``(channels, T, H, W)``.

    Raises:
        ClipError: the dtype to store cannot hold them.
    """
    latents = scaled_latents(posterior, settings, generator).to(settings.options.torch_dtype)
    if not latents.isfinite().all():
        raise ClipError(
            f"the latents do not fit into {settings.options.dtype}; use --store-dtype bfloat16 "
            "or float32"
        )
    return latents


def scaled_latents(
    posterior: Posterior, settings: DatasetSettings, generator: torch.Generator
) -> Tensor:
    """Returns the tensors to store, as ``latents_to_store``, in float32."""
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
    """Draws a sample one latent frame after the other, so that the size of pieces does not matter.

    Returns latents ``(1, z_dim, T, H, W)``.
    """
    moments = zip(posterior.mean.split(1, 2), posterior.logvar.split(1, 2), strict=True)
    return torch.cat([Posterior(*frame).sample(generator) for frame in moments], dim=2)


# In the first process


def write_lists(
    folder: Path,
    plan: DatasetPlan,
    clips: Iterable[IndexedClip],
    failed: Iterable[Failure],
    sidecars: SidecarReader,
) -> list[Failure]:
    """Writes the index and the list of failures, and returns the failures."""
    index = {clip.name: clip for clip in clips}
    names = [clip.name for file in plan.files for clip in file.clips]
    recorded = {failure.name: failure for failure in (*read_failures(folder), *failed)}
    failures = [recorded[name] for name in names if name in recorded and name not in index]
    failures.extend(plan.broken)
    write_lines(folder / FAILURES, failures)
    described = (
        replace(index[clip.name], sidecars=sidecars.read(clip.entry))
        for file in plan.files
        for clip in file.clips
        if clip.name in index
    )
    write_lines(folder / INDEX, described, whole=False)
    layout = layouts.layout_of(plan.settings.options)
    if layout is not None:
        layouts.finish(folder, plan.files, layout)
    return failures
