"""Runs the trials of an evaluation, in one process or several."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from wanvae.engine.ahead import ahead
from wanvae.engine.files import unwritable
from wanvae.engine.finite import NotFiniteError, advice, is_finite
from wanvae.engine.processes import gather_objects
from wanvae.engine.sharing import balanced_share, progress_bar
from wanvae.engine.storage.remote_path import Location
from wanvae.evaluate.media import ComparisonWriter, over_gray, write_worst
from wanvae.evaluate.models import Cost, Judged, in_lockstep
from wanvae.evaluate.records import (
    ORIGINAL,
    TrialRecord,
    model_record,
    new_folder,
    read_record,
    trial_record,
    write_record,
)
from wanvae.evaluate.scores import Scores
from wanvae.evaluate.trials import Trial, TrialList
from wanvae.folders.failure import Failure
from wanvae.folders.frames import ClipError, raised, read_clips
from wanvae.metrics.frechet import I3D, Windows
from wanvae.metrics.lpips import Lpips
from wanvae.video import Frame, ReadOptions

if TYPE_CHECKING:
    from accelerate import PartialState

# The folder of trials inside the folder of an evaluation.
TRIALS = "trials"
# Frames that wait to be encoded.
FRAMES_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class Judging:
    """The models and networks that trials need.

    Attributes:
        models: the judged models.
        lpips: network of LPIPS; None leaves LPIPS out.
        i3d: network of rFVD; None leaves rFVD out.
        media_seconds: how many seconds of a clip the page shows.
        reading: how pictures come out of the files.
        device: where figures are computed.
        alpha: whether frames are RGBA, or RGB.
    """

    models: Sequence[Judged]
    lpips: Lpips | None
    i3d: I3D | None
    media_seconds: float
    reading: ReadOptions
    device: torch.device
    alpha: bool = False


@dataclass(frozen=True)
class Outcome:
    """The results of all trials.

    Attributes:
        records: results in the order of the trials.
        failures: clips that could not be read to their end.
    """

    records: tuple[TrialRecord, ...]
    failures: tuple[Failure, ...]


def run_trials(
    judging: Judging,
    found: TrialList,
    output: Path,
    processes: PartialState,
    *,
    progress: bool = False,
) -> Outcome | None:
    """Runs the trials that are not done yet.

    Args:
        output: folder of the evaluation, which all processes see.
        processes: the processes of the run. All of them call this function and share the work.
        progress: show a progress bar with the frames of the first process.

    Returns:
        The results of all trials in the first process; None in the others.

    Raises:
        FileError: a file cannot be written.
    """
    folder = output / TRIALS
    missing = [trial for trial in found.trials if read_record(folder, trial) is None]
    # No process writes before all of them have seen the same list of missing trials.
    gather_objects(None)
    pixels = [trial.clip.pixels for trial in missing]
    mine = balanced_share(missing, pixels, processes.process_index, processes.num_processes)
    failures: list[Failure] = []
    total = sum(trial.clip.frames for trial in mine)
    with progress_bar(processes, "frame", total=total, show=progress) as bar:
        for trial in mine:
            try:
                run_trial(judging, trial, found.folder, folder, bar)
            except (ClipError, NotFiniteError) as error:
                shutil.rmtree(folder / trial.folder)
                failures.append(Failure(trial.clip.name, trial.clip.source, str(error)))
            except OSError as error:
                raise unwritable(folder, error) from error
    failed = chain(*gather_objects(failures))
    if not processes.is_main_process:
        return None
    records = (read_record(folder, trial) for trial in found.trials)
    return Outcome(tuple(record for record in records if record is not None), tuple(failed))


def run_trial(judging: Judging, trial: Trial, source: Location, trials: Path, bar: tqdm) -> None:
    """Runs one trial, and writes its results.

    Raises:
        ClipError: the frames cannot be read.
        NotFiniteError: latents or frames of a model are not finite.
    """
    models = judging.models
    folder = new_folder(trials, trial)
    costs = [Cost(judging.device) for _ in models]
    scores = [Scores(model.vae.config.temporal_factor, judging.lpips) for model in models]
    windows = [] if judging.i3d is None else [Windows(judging.i3d) for _ in (None, *models)]
    times: list[float] = []
    video = None
    if trial.shown:
        video = "comparison.webp" if trial.clip.entry.is_image else "comparison.mp4"
    read = read_clips([trial.clip], source, 1, alpha=judging.alpha, options=judging.reading)
    with (
        closing(ahead(read, FRAMES_AHEAD)) as frames,
        nullcontext() if video is None else comparison(folder / video, trial, judging) as writer,
    ):
        for frame, images in in_lockstep(on_device(raised(frames), judging.device), models, costs):
            panels = frame.image, *images
            for model, score, image in zip(models, scores, images, strict=True):
                if not is_finite(image):
                    remedy = advice(model.vae.decode_dtype, "decode")
                    raise NotFiniteError(f"frames of {model.facts.name} are not finite: {remedy}")
                score.add(frame.image, image)
            for window, panel in zip(windows, panels, strict=False):  # no windows without I3D
                window.add(over_gray(panel))
            if writer is not None:
                writer.add(panels)
            times.append(frame.time)
            bar.update()
    worst = [
        write_worst(folder, f"worst-{number}", score.worst) if trial.shown else ()
        for number, score in enumerate(scores)
    ]
    rows = tuple(
        model_record(model, trial, score, cost, pictures)
        for model, score, cost, pictures in zip(models, scores, costs, worst, strict=True)
    )
    write_record(folder, trial_record(trial, times, rows, video), features_of(windows))


def comparison(path: Path, trial: Trial, judging: Judging) -> ComparisonWriter:
    """Returns the writer of the video of a trial for the page."""
    clip = trial.clip
    limit = max(1, round(judging.media_seconds * clip.fps))
    return ComparisonWriter(path, 1 + len(judging.models), clip.size, clip.fps, limit)


def on_device(frames: Iterator[Frame], device: torch.device) -> Iterator[Frame]:
    """Yields frames on the device where figures are computed."""
    for frame in frames:
        yield Frame(frame.image.to(device), frame.time)


def features_of(windows: Sequence[Windows]) -> dict[str, Tensor]:
    """Returns the features of the original and of each model, by name."""
    names = [ORIGINAL, *map(str, range(len(windows) - 1))]
    return {name: window.features for name, window in zip(names, windows, strict=False)}
