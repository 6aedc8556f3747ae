"""Encodes a folder of videos and images to a data set of latents, in one process or several.

Reading videos, running the model and writing files go on at the same time, each in a thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import chain, groupby
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias

from wanvae.config import encodes_alpha
from wanvae.dataset import layouts
from wanvae.dataset.files import index_file, write_index
from wanvae.dataset.parts import DatasetPart, write_part
from wanvae.dataset.plan import DatasetPlan, map_files, prepare
from wanvae.dataset.records import FAILURES, FailureLog, IndexedClip, read_failures
from wanvae.dataset.settings import DatasetOptions
from wanvae.dataset.stored import Timeline
from wanvae.dataset.unfinished import read_unfinished
from wanvae.dataset.writing import FileWriter, Piece, Pieces, UnfinishedError
from wanvae.engine.ahead import ahead
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.json_files import write_lines
from wanvae.engine.processes import gather_objects, run_on_first_process
from wanvae.engine.sharing import neighbouring_share, progress_bar
from wanvae.engine.signals import GO_ON, Interrupted, StopRequest, stopped_by_sigterm
from wanvae.engine.storage.remote_path import Location, RemotePath, location
from wanvae.execution.limits import Memory, TileSize
from wanvae.folders.clips import Clip
from wanvae.folders.failure import Failure
from wanvae.folders.frames import ClipError, raised, read_clips
from wanvae.folders.listing import MANIFEST
from wanvae.folders.sidecars import SidecarReader
from wanvae.frames import encode_frames
from wanvae.model import WanVAE
from wanvae.posterior import Posterior
from wanvae.video import Frame, ReadOptions
from wanvae.video.reading.hardware import check_hardware
from wanvae.video.reading.options import parse_options, refuse_background

if TYPE_CHECKING:
    from accelerate import PartialState

# Frames that wait to be encoded, and pieces of latents that wait to be written.
FRAMES_AHEAD = 8
PIECES_AHEAD = 8
# Seconds after SIGTERM after which a clip under way is given up. Schedulers give 30 and more.
GRACE = 15.0

Frames: TypeAlias = Generator[tuple[Clip, Frame | ClipError], None, None]


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
    hwaccel: str | None = None,
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
        hwaccel: the device that decodes videos, as in ``ReadOptions``.
        progress: show a progress bar with the clips of the first process.

    Returns:
        The results of all processes in the first process; None in the others.

    Raises:
        VideoError: the background is no colour or has no use, or there is no device ``hwaccel``.
        UserError: there is nothing to encode, ``options`` do not fit the model or the folder, one
            folder lies inside the other, or another job works in ``destination``.
        FileError: a file cannot be written.
        RemoteError: a server cannot be reached.
        Interrupted: SIGTERM has ended the work before all was done.
    """
    source, destination = location(source), location(destination)
    reading = parse_options(
        deinterlace=options.deinterlace, background=options.background, hwaccel=hwaccel
    )
    refuse_background(options.background, alpha=encodes_alpha(vae.config))
    check_hardware(hwaccel)
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
            reading=reading,
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
    reading: ReadOptions,
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
        options=reading,
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
        raise Interrupted(GO_ON, stop.signal)
    # A process is only sure to see its own files, and the files that were there before.
    layout = layouts.layout_of(plan.settings.options)
    indexed = map_files(
        lambda file: index_file(destination, file.name, layout),
        plan.kept[rank::ranks],
        destination,
    )
    everything = gather_objects((work, list(chain(*indexed)), stop.signal))
    signals = [signal for *_, signal in everything if signal is not None]
    if not processes.is_main_process:
        if signals:
            raise Interrupted(GO_ON, signals[0])
        return None
    works = [work for work, *_ in everything]
    written = list(chain(*(work.written for work in works)))
    kept = list(chain(*(kept for _, kept, _ in everything)))
    failed = list(chain(*(work.failures for work in works)))
    with SidecarReader(source, plan.descriptions) as sidecars:
        failures = write_lists(destination, plan, written + kept, failed, sidecars)
        notes = (*plan.notes, *sidecars.notes)
    if signals:
        raise Interrupted(GO_ON, signals[0])
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
            times: list[tuple[float, float | None]] = []

            def note_time(frame: Frame, times: list[tuple[float, float | None]] = times) -> None:
                times.append((frame.time, frame.end))
                if stop.overdue:
                    raise UnfinishedError("there was no time for it")

            try:
                for posterior in encode_frames(vae.config, encoder, raised(row), note_time):
                    on_cpu = Posterior(posterior.mean.float().cpu(), posterior.logvar.float().cpu())
                    begin, end = zip(*times, strict=True)
                    yield clip, Piece(on_cpu, Timeline(begin, end[-1]))
                    times.clear()
            except UnfinishedError as error:
                yield clip, error
                return
            except (ClipError, NotFiniteError) as error:
                yield clip, ClipError(str(error))


def log_name(plan: DatasetPlan, folder: Location, rank: int) -> str | None:
    """Returns the name of a process in ``FailureLog``; None where all processes share a file."""
    if plan.part is not None:
        return f"{plan.part.tag}.rank-{rank}"
    return f"rank-{rank}" if isinstance(folder, RemotePath) else None


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
    known = (*read_failures(folder), *failed)
    if plan.part is not None:
        return write_part(folder, plan.part, plan.files, described, known, plan.broken)
    names = [clip.name for file in plan.files for clip in file.clips]
    recorded = {failure.name: failure for failure in known}
    failures = [recorded[name] for name in names if name in recorded and name not in index]
    failures.extend(plan.broken)
    write_lines(folder / FAILURES, failures)
    write_index(folder, plan.settings.options, described, [file.name for file in plan.files])
    return failures
