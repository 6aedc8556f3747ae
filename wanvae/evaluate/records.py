"""The results of one trial, in a folder of its own: ``record.json``, features and media."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from wanvae.engine.files import atomic_path
from wanvae.engine.json_files import read_value, write_value
from wanvae.errors import UserError
from wanvae.evaluate.models import Cost, Judged
from wanvae.evaluate.scores import Scores
from wanvae.evaluate.trials import Trial
from wanvae.report.elements import number

RECORD = "record.json"
FEATURES = "features.safetensors"
# The name of the features of the original videos. Features of models have numbers.
ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class WorstRecord:
    """One of the worst frames of a clip, and its pictures.

    Attributes:
        number: number of the frame in the clip.
        psnr: PSNR in dB.
        levels: the absolute error, in 8-bit levels, that is brightest in the error map.
        original, image, difference: files in the folder of the trial.
    """

    number: int
    psnr: float | None
    levels: float
    original: str
    image: str
    difference: str


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The figures of a model on a clip. A figure that does not exist is None.

    Attributes:
        model: name of the model.
        psnr: PSNR in dB, the mean over frames.
        ssim, ms_ssim, lpips: means over frames.
        temporal: mean absolute error of the differences between consecutive frames, in 8-bit
            levels.
        flicker: the temporal error where groups of frames begin, over the error inside groups.
        compression: values of the video per value of the latents.
        bits: bits per pixel and frame, of latents stored in 16 bits.
        information: KL divergence of the latents from N(0, 1), in bits per pixel and frame.
        encode_seconds, decode_seconds: time spent.
        frame_psnr: PSNR of each frame, in dB.
        worst: frames with pictures, the worst first.
        alpha: mean absolute error of alpha, in 8-bit levels; None without alpha.
    """

    model: str
    psnr: float | None
    ssim: float | None
    ms_ssim: float | None
    lpips: float | None
    temporal: float | None
    flicker: float | None
    compression: float
    bits: float
    information: float
    encode_seconds: float
    decode_seconds: float
    frame_psnr: tuple[float | None, ...]
    worst: tuple[WorstRecord, ...]
    alpha: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """The results of a trial.

    Attributes:
        folder: folder of the trial, relative to the folder of all trials.
        name: name of the video.
        size: name of the size in tables.
        height, width: size of the frames in pixels.
        frames: number of frames.
        length: number of frames that was asked for; None is all.
        start: start of the clip in the video, in seconds.
        fps: frames per second.
        models: figures of each model, in the order of the settings.
        video: file with the original and all models side by side; None without media.
        head: the ``head`` of the stamp of the file; empty in evaluations of earlier versions.
    """

    folder: str
    name: str
    size: str
    height: int
    width: int
    frames: int
    length: int | None
    start: float
    fps: float
    models: tuple[ModelRecord, ...]
    video: str | None
    head: str = ""


def model_record(
    judged: Judged, trial: Trial, scores: Scores, cost: Cost, worst: tuple[WorstRecord, ...]
) -> ModelRecord:
    """Returns the figures of a model on a finished clip."""
    height, width = trial.clip.size
    pixels = len(scores.psnr) * height * width
    return ModelRecord(
        model=judged.facts.name,
        psnr=scores.mean_psnr,
        ssim=scores.ssim.value,
        ms_ssim=scores.ms_ssim.value,
        lpips=scores.lpips.value,
        temporal=scores.temporal.value,
        flicker=scores.temporal.flicker,
        compression=judged.vae.config.in_channels * pixels / cost.values,
        bits=16 * cost.values / pixels,
        information=cost.nats / math.log(2) / pixels,
        encode_seconds=cost.encoding.seconds - cost.reading.seconds,
        decode_seconds=cost.decoding.seconds,
        frame_psnr=tuple(map(number, scores.psnr)),
        worst=worst,
        alpha=scores.alpha.value,
    )


def trial_record(
    trial: Trial,
    times: Sequence[float],
    models: tuple[ModelRecord, ...],
    video: str | None,
) -> TrialRecord:
    """Returns the results of a trial with frames at these times, in seconds."""
    clip = trial.clip
    return TrialRecord(
        folder=trial.folder,
        name=clip.source,
        size=trial.size,
        height=clip.size[0],
        width=clip.size[1],
        frames=len(times),
        length=trial.length,
        start=times[0],
        fps=float(clip.fps),
        models=models,
        video=video,
        head=clip.entry.head,
    )


def new_folder(trials: Path, trial: Trial) -> Path:
    """Returns an empty folder for a trial, and removes what an interrupted run left there."""
    folder = trials / trial.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_record(folder: Path, record: TrialRecord, features: dict[str, Tensor]) -> None:
    """Writes the results of a trial. The record comes last, so a trial with a record is done."""
    if features:
        with atomic_path(folder / FEATURES) as temporary:
            save_file(features, temporary)
    write_value(folder / RECORD, record)


def read_record(trials: Path, trial: Trial) -> TrialRecord | None:
    """Returns the results of a trial; None if it is not done, or its record is damaged.

    Results of a file that has changed do not count.
    """
    with suppress(OSError, UserError):
        record = read_value(trials / trial.folder / RECORD, TrialRecord)
        if len({record.head, trial.clip.entry.head} - {""}) <= 1:
            return record
    return None


def read_features(trials: Path, record: TrialRecord) -> dict[str, Tensor]:
    """Returns the features of the original and of each model, ``(N, D)``, by name."""
    return load_file(trials / record.folder / FEATURES)
