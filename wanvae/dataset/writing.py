"""Writes the files of a data set from the latents of its clips, one file after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from wanvae.dataset import layouts
from wanvae.dataset.files import WRITERS, clip_metadata, index_file
from wanvae.dataset.records import FailureLog, IndexedClip
from wanvae.dataset.settings import DatasetOptions, DatasetSettings
from wanvae.dataset.stored import LatentsFilePlan, StoredClip, Timeline
from wanvae.dataset.unfinished import SavedClip, unfinished_name
from wanvae.engine.files import unwritable
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.engine.storage.temporary_files import temporary_file_in, temporary_folder
from wanvae.folders.clips import Clip
from wanvae.folders.failure import Failure
from wanvae.folders.frames import ClipError, Row, raised
from wanvae.latents.formats.layout import ClipFacts, Condition
from wanvae.latents.spool import LatentsSpool
from wanvae.posterior import LOGVAR_RANGE, Posterior


class UnfinishedError(ClipError):
    """A clip is given up, because the process has to end."""


@dataclass(frozen=True)
class Piece:
    """Latents of some frames of a clip.

    Attributes:
        posterior: ``(1, z_dim, T, H, W)`` in float32 on the CPU.
        timeline: when the frames are shown.
    """

    posterior: Posterior
    timeline: Timeline


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
                files.enter_context(temporary_file_in(folder)), tensors, options.torch_dtype
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
            RemoteError: a server cannot be reached, or the disk with temporary files is full.
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
        # On a disk it has become the finished file.
        if finished and file.name in self._saved and isinstance(self._folder, RemotePath):
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
                    timeline = collect_clip(spools, clip, rows, self._settings, facts)
                except UnfinishedError:
                    return
                except ClipError as error:
                    self._record(Failure(clip.name, clip.source, str(error)))
                    done.append(clip.name)
                else:
                    done.append(clip.name)
                    metadata = clip_metadata(clip, self._settings, timeline)
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
    with temporary_folder() as temporary:
        yield temporary


def collect_clip(
    spools: Spools, clip: Clip, rows: Rows, settings: DatasetSettings, facts: ClipFacts | None
) -> Timeline:
    """Puts the latents of a clip and of its conditions into ``spools``.

    Args:
        rows: the latents of each clip and control. The next ones are of this clip.

    Returns:
        When the frames of the clip are shown.

    Raises:
        UnfinishedError: there are no more latents.
        ClipError: as ``collect``, ``check_frames`` or ``collect_control``.
    """
    failure = None
    timeline = Timeline((), None)
    try:
        timeline = collect(spools, clip, next_row(rows), settings)
        check_frames(timeline.times, facts)
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
    return timeline


def next_row(rows: Rows) -> Row[Piece]:
    """Returns the latents of the next clip.

    Raises:
        UnfinishedError: there are no more.
    """
    for _, row in rows:
        return row
    raise UnfinishedError("there was no time for it")


def collect(spools: Spools, clip: Clip, row: Row[Piece], settings: DatasetSettings) -> Timeline:
    """Puts the latents of a clip into ``spools``, with times from the first frame of the clip.

    The model is causal, so the first latent of a clip is the latent of its first frame alone.

    Returns:
        When the frames are shown.

    Raises:
        ClipError: there is one in the row, or the dtype to store cannot hold the latents.
    """
    generator = generator_of(settings, clip.name)
    first = spools.conditions.get("first_frame")
    times: list[float] = []
    end = None
    for piece in raised(row):
        if first is not None and not first.length:
            frame = Posterior(piece.posterior.mean[:, :, :1], piece.posterior.logvar[:, :, :1])
            of_frame = generator_of(settings, f"{clip.name}/first_frame")
            first.write(latents_to_store(frame, settings, of_frame))
        spools.clip.write(latents_to_store(piece.posterior, settings, generator))
        times.extend(piece.timeline.times)
        end = piece.timeline.end
    spools.clip.times.extend(time - times[0] for time in times)
    return Timeline(tuple(times), end)


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
        frames += len(piece.timeline.times)
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
