"""Encodes a folder of videos and images to a data set of latents, in one process or several.

Reading videos, running the model and writing files go on at the same time, each in a thread.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from os import PathLike
from pathlib import Path
from signal import Signals
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from wanvae.config import encodes_alpha
from wanvae.dataset import layouts
from wanvae.dataset.files import WRITERS, clip_metadata, index_file
from wanvae.dataset.parts import DatasetPart, write_part
from wanvae.dataset.plan import DatasetPlan, map_files, prepare
from wanvae.dataset.records import (
    FAILURES,
    INDEX,
    FailureLog,
    IndexedClip,
    read_failures,
    remove_logs,
)
from wanvae.dataset.settings import DatasetOptions, DatasetSettings
from wanvae.dataset.stored import LatentsFilePlan, StoredClip
from wanvae.dataset.unfinished import SavedClip, read_unfinished, unfinished_name
from wanvae.engine.ahead import ahead
from wanvae.engine.files import unwritable
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.json_files import write_lines
from wanvae.engine.processes import gather_objects, run_on_first_process
from wanvae.engine.sharing import neighbouring_share, progress_bar
from wanvae.engine.signals import Interrupted, StopRequest, stopped_by_sigterm
from wanvae.engine.storage.remote_path import Location, RemotePath, location
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
# Seconds after SIGTERM after which a clip under way is given up. Schedulers give 30 and more.
GRACE = 15.0


class UnfinishedError(ClipError):
    """A clip is given up, because the process has to end."""


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
# The latents of one clip after the other.
Rows: TypeAlias = Iterator[tuple[Clip, Row[Piece]]]


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
    part: DatasetPart | None = None,
    tile_size: TileSize | None = None,
    max_memory: Memory | None = None,
    progress: bool = False,
) -> DatasetReport | None:
    """Encodes the videos and images of a folder. Latents that are there already are kept.

    With a file for each clip, clips of videos that have changed are encoded again. After SIGTERM
    the clip under way is finished, if that takes no longer than 15 seconds, and what is there is
    written.

    Args:
        vae: the model.
        checkpoint: where the model comes from.
        source: a folder, or its manifest; on a disk or at an address like ``s3://bucket/videos``.
        destination: a new folder, or the folder of an earlier run with the same settings; on a
            disk or at an address.
        processes: the processes of the run. All of them call this function and share the work.
        part: encode only this part, and write a list of it, which ``merge_parts`` joins with the
            lists of others; None encodes everything, and writes the index.
        tile_size, max_memory: as for ``WanVAE.stream_encode``.
        progress: show a progress bar with the clips of the first process.

    Returns:
        The results of all processes in the first process; None in the others.

    Raises:
        UserError: there is nothing to encode, ``options`` do not fit the model or the folder, one
            folder lies inside the other, or another job works in ``destination``.
        FileError: a file cannot be written.
        RemoteError: a server cannot be reached.
        Interrupted: SIGTERM has ended the work before all was done.
    """
    source, destination = location(source), location(destination)
    if source.name == MANIFEST:
        source = source.parent
    with ExitStack() as held:
        plan = run_on_first_process(
            lambda: prepare(vae, checkpoint, source, destination, options, part, held)
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
    source: Location,
    destination: Location,
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
    saved = {
        file.name: read_unfinished(destination, file)
        for file in files
        if file.name in plan.unfinished
    }
    clips = [
        clip for file in files for clip in file.clips if clip.name not in saved.get(file.name, {})
    ]
    config = vae.config
    control = plan.settings.options.control
    read = read_clips(
        clips,
        source,
        config.temporal_factor,
        alpha=encodes_alpha(config),
        control=None if control is None else location(control),
    )
    with (
        stopped_by_sigterm(GRACE) as stop,
        progress_bar(processes, "clip", total=len(clips), show=progress) as bar,
    ):
        frames = ahead(read, FRAMES_AHEAD)
        pieces = ahead(encode_clips(vae, frames, tile_size, max_memory, stop), PIECES_AHEAD)
        log = FailureLog(destination, log_name(plan, destination, rank))
        writer = FileWriter(destination, plan.settings, saved, log, bar)
        work = writer.write_all(files, pieces)
    if stop.signal is not None and plan.part is None:
        raise interruption(stop.signal)
    # A process is only sure to see its own files, and the files that were there before.
    layout = layouts.layout_of(plan.settings.options)
    indexed = map_files(
        lambda file: index_file(destination, file.name, layout),
        plan.kept[rank::ranks],
        destination,
    )
    everything = gather_objects((work, list(chain(*indexed)), stop.signal))
    signals = [signal for *_, signal in everything if signal is not None]
    if signals and not processes.is_main_process:
        raise interruption(signals[0])
    if not processes.is_main_process:
        return None
    works = [work for work, *_ in everything]
    written = list(chain(*(work.written for work in works)))
    kept = list(chain(*(kept for _, kept, _ in everything)))
    failed = list(chain(*(work.failures for work in works)))
    with SidecarReader(source, plan.descriptions) as sidecars:
        failures = write_lists(destination, plan, written + kept, failed, sidecars)
        notes = (*plan.notes, *sidecars.notes)
    if signals:
        raise interruption(signals[0])
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
    vae: WanVAE,
    frames: Frames,
    tile_size: TileSize | None,
    max_memory: Memory | None,
    stop: StopRequest,
) -> Pieces:
    """Yields the latents of each clip in turn, piece by piece. An error ends its clip.

    Once the process has been asked to stop, no further clip begins. A clip that is given up has an
    UnfinishedError as its last piece.
    """
    before: Clip | None = None
    with closing(frames):
        for clip, row in groupby(frames, key=lambda pair: pair[0]):
            # The control of a clip is encoded after the clip, and is needed to store it.
            if stop.asked and (before is None or before.control is not clip):
                return
            before = clip
            encoder = vae.stream_encode(tile_size=tile_size, max_memory=max_memory)
            times: list[float] = []

            def note_time(frame: Frame, times: list[float] = times) -> None:
                times.append(frame.time)
                if stop.overdue:
                    raise UnfinishedError("there was no time for it")

            try:
                for posterior in encode_frames(vae.config, encoder, raised(row), note_time):
                    on_cpu = Posterior(posterior.mean.float().cpu(), posterior.logvar.float().cpu())
                    yield clip, Piece(on_cpu, tuple(times))
                    times.clear()
            except UnfinishedError as error:
                yield clip, error
                return
            except (ClipError, NotFiniteError) as error:
                yield clip, ClipError(str(error))


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

    Args:
        folder: the folder of the data set.
        saved: for each file that an interrupted run has left unfinished, the clips in it by name.
        log: where failures are recorded.
        bar: is moved by each clip that is encoded.

    Attributes:
        work: the results so far.
    """

    def __init__(
        self,
        folder: Location,
        settings: DatasetSettings,
        saved: Mapping[str, Mapping[str, SavedClip]],
        log: FailureLog,
        bar: tqdm,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._saved = saved
        self._log = log
        self._bar = bar
        self.work = Work()

    def write_all(self, files: Sequence[LatentsFilePlan], pieces: Pieces) -> Work:
        """Writes files, until there are no more latents, and returns the results.

        Args:
            pieces: the latents of all clips of the files that are not saved, in order.

        Raises:
            FileError: the disk is full, or cannot be written.
            RemoteError: a server cannot be reached.
        """
        with closing(pieces):
            rows = groupby(pieces, key=lambda pair: pair[0])
            try:
                for file in files:
                    if not self.write(file, rows):
                        break
            except OSError as error:
                raise unwritable(self._folder, error) from error
        return self.work

    def write(self, file: LatentsFilePlan, rows: Rows) -> bool:
        """Writes the latents of the clips of one file.

        A file for one clip is not written if the clip cannot be read. A file for many clips is
        always written, with the clips that can be read. If there are no more latents, it keeps
        another name, under which the next run finds it.

        Args:
            rows: the latents of each clip, of which this file takes the next ones.

        Returns:
            Whether there were latents of all clips of the file.
        """
        layout = layouts.layout_of(self._settings.options)
        many = self._settings.options.many
        with local_folder(self._folder) as folder:
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = folder / unfinished_name(file.name)
            target = unfinished if many else path
            done: list[str] = []
            clips = self._stored(rows, file, folder, done)
            if layout is None:
                WRITERS[self._settings.options.container](target, clips)
            else:
                layouts.write_clips(target, clips, layout)
            finished = len(done) == len(file.clips)
            if many and finished:
                unfinished.replace(path)
            elif many and (layout is not None or not done):
                # What this layout stores of a clip is not all that its file needs.
                unfinished.unlink()
            if path.exists():
                self.work.written += index_file(folder, file.name, layout)
                self.work.size += path.stat().st_size
            self._upload(folder, file.name if finished else unfinished_name(file.name))
        if many and finished and isinstance(self._folder, RemotePath) and self._saved:
            (self._folder / unfinished_name(file.name)).unlink(missing_ok=True)
        return finished

    def _upload(self, folder: Path, name: str) -> None:
        """Uploads a file, if it is there and the data set is at an address."""
        if isinstance(self._folder, RemotePath) and (folder / name).exists():
            (self._folder / name).upload(folder / name)

    def _stored(
        self, rows: Rows, file: LatentsFilePlan, folder: Path, done: list[str]
    ) -> Iterator[StoredClip]:
        """Yields the clips that can be read, ready to be written, and records the others.

        Args:
            folder: where temporary files are.
            done: gets the name of each clip that need not be tried again.
        """
        options = self._settings.options
        saved = self._saved.get(file.name, {})
        for number, clip in enumerate(file.clips):
            facts = file.facts[number] if file.facts else None
            with open_spools(folder, options) as spools:
                if clip.name in saved:
                    metadata = saved[clip.name].metadata
                    saved[clip.name].copy_to([spools.clip, *spools.conditions.values()], options)
                    done.append(clip.name)
                    yield StoredClip(clip.name, metadata, spools.clip, facts, spools.conditions)
                    continue
                try:
                    times = collect_clip(spools, clip, rows, self._settings, facts)
                except UnfinishedError:
                    return
                except ClipError as error:
                    self._record(Failure(clip.name, clip.source, str(error)))
                    done.append(clip.name)
                else:
                    done.append(clip.name)
                    metadata = clip_metadata(clip, self._settings, times)
                    yield StoredClip(clip.name, metadata, spools.clip, facts, spools.conditions)
            self._bar.update()

    def _record(self, failure: Failure) -> None:
        self.work.failures.append(failure)
        self._log.add(failure)


@contextmanager
def local_folder(folder: Location) -> Iterator[Path]:
    """Gives a folder on a disk: ``folder``, or a temporary folder if it is at an address."""
    if isinstance(folder, Path):
        yield folder
        return
    with TemporaryDirectory() as temporary:
        yield Path(temporary)


def log_name(plan: DatasetPlan, folder: Location, rank: int) -> str | None:
    """Returns the name of a process in ``FailureLog``; None where all processes share a file."""
    if plan.part is not None:
        return f"{plan.part.tag}.rank-{rank}"
    return f"rank-{rank}" if isinstance(folder, RemotePath) else None


def interruption(number: Signals) -> Interrupted:
    """Returns what ends a process that was asked to stop."""
    return Interrupted(
        "files that were written are complete; run it again to go on from there", number
    )


def collect_clip(
    spools: Spools, clip: Clip, rows: Rows, settings: DatasetSettings, facts: ClipFacts | None
) -> list[float]:
    """Puts the latents of a clip and of its conditions into ``spools``.

    Args:
        rows: the latents of each clip and control. The next ones are of this clip.

    Returns:
        The times from the first frame of the video.

    Raises:
        UnfinishedError: there are no more latents.
        ClipError: as ``collect``, ``check_frames`` or ``collect_control``.
    """
    failure = None
    times: list[float] = []
    try:
        times = collect(spools, clip, next_row(rows), settings)
        check_frames(times, facts)
    except UnfinishedError:
        raise
    except ClipError as error:
        failure = error
    if clip.control is not None:
        # Its row is taken in any case, so that the next row is of the next clip.
        row = next_row(rows)
        try:
            if failure is None:
                collect_control(spools, clip, row, settings)
        except UnfinishedError:
            raise
        except ClipError as error:
            failure = ClipError(f"its control {clip.control.source}: {error}")
    if failure is not None:
        raise failure
    return times


def next_row(rows: Rows) -> Row[Piece]:
    """Returns the latents of the next clip.

    Raises:
        UnfinishedError: there are no more.
    """
    for _, row in rows:
        return row
    raise UnfinishedError("there was no time for it")


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
    folder: Location,
    plan: DatasetPlan,
    clips: Sequence[IndexedClip],
    failed: Sequence[Failure],
    sidecars: SidecarReader,
) -> list[Failure]:
    """Writes the index and the list of failures, or the list of a part, and returns the failures.

    Args:
        clips: the clips that are there.
        failed: clips that could not be encoded this time.
    """
    index = {clip.name: clip for clip in clips}
    described = (
        replace(index[clip.name], sidecars=sidecars.read(clip.entry))
        for file in plan.files
        for clip in file.clips
        if clip.name in index
    )
    if plan.part is not None:
        known = (*read_failures(folder), *failed)
        return write_part(folder, plan.part, plan.files, described, known, plan.broken)
    names = [clip.name for file in plan.files for clip in file.clips]
    recorded = {failure.name: failure for failure in (*read_failures(folder), *failed)}
    failures = [recorded[name] for name in names if name in recorded and name not in index]
    failures.extend(plan.broken)
    write_lines(folder / FAILURES, failures)
    remove_logs(folder)
    write_lines(folder / INDEX, described, whole=False)
    layout = layouts.layout_of(plan.settings.options)
    if layout is not None and isinstance(folder, Path):
        layouts.finish(folder, [file.name for file in plan.files], layout)
    return failures
