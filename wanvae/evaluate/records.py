"""What is known of a trial once it is done, in a folder of its own: ``record.json`` and media."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from wanvae.engine.config import from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.errors import UserError
from wanvae.evaluate.models import Cost
from wanvae.evaluate.scores import Scores
from wanvae.evaluate.trials import Trial
from wanvae.report.elements import number

RECORD = "record.json"
FEATURES = "features.safetensors"
# The name of the features of the videos themselves; those of models are numbered.
ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class WorstRecord:
    """A frame that came out badly, and its pictures.

    Attributes:
        number: of the frame in the clip.
        psnr: in dB.
        levels: the absolute error that is brightest in the map, in 8-bit levels.
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
    """The figures of a model on a clip; None where there is none.

    Attributes:
        model: its name.
        psnr: in dB, the mean over frames.
        ssim, ms_ssim, lpips: means over frames.
        temporal: error of the differences between frames, in 8-bit levels.
        flicker: that error where groups of frames begin over that inside them.
        compression: values of the video per value of the latents.
        bits: per pixel and frame, of latents kept in 16 bits.
        information: KL divergence of the latents from N(0, 1), in bits per pixel and frame.
        encode_seconds, decode_seconds: what it took.
        frame_psnr: of each frame, in dB.
        worst: frames with pictures, the worst first.
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


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What came of a trial.

    Attributes:
        folder: of the trial, below that of all trials.
        name: of the video.
        size: what the size is called in tables.
        height, width: of the frames, in pixels.
        frames: how many there were.
        length: how many were asked for; None is all.
        start: of the clip in the video, in seconds.
        fps: frames per second.
        models: in the order of the settings.
        video: file with the original and all models side by side; None without media.
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


def model_record(
    name: str, trial: Trial, scores: Scores, cost: Cost, worst: tuple[WorstRecord, ...]
) -> ModelRecord:
    """The figures of a model on a clip that is over."""
    height, width = trial.clip.size
    pixels = len(scores.psnr) * height * width
    return ModelRecord(
        model=name,
        psnr=scores.mean_psnr,
        ssim=scores.ssim.value,
        ms_ssim=scores.ms_ssim.value,
        lpips=scores.lpips.value,
        temporal=scores.temporal.value,
        flicker=scores.flicker,
        compression=3 * pixels / cost.values,
        bits=16 * cost.values / pixels,
        information=cost.nats / math.log(2) / pixels,
        encode_seconds=cost.encoding.seconds - cost.reading.seconds,
        decode_seconds=cost.decoding.seconds,
        frame_psnr=tuple(map(number, scores.psnr)),
        worst=worst,
    )


def trial_record(
    trial: Trial, frames: int, models: tuple[ModelRecord, ...], video: str | None
) -> TrialRecord:
    """What came of a trial of so many frames."""
    clip = trial.clip
    return TrialRecord(
        folder=trial.folder,
        name=clip.source,
        size=trial.size,
        height=clip.size[0],
        width=clip.size[1],
        frames=frames,
        length=trial.length,
        start=float(clip.start),
        fps=float(clip.fps),
        models=models,
        video=video,
    )


def new_folder(trials: Path, trial: Trial) -> Path:
    """An empty folder for a trial that is not done, whatever was left there."""
    folder = trials / trial.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_record(folder: Path, record: TrialRecord, features: dict[str, Tensor]) -> None:
    """Write what came of a trial, the record last: where it is, all is."""
    if features:
        with atomic_path(folder / FEATURES) as temporary:
            save_file(features, temporary)
    with atomic_path(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(to_json_dict(record)) + "\n", encoding="utf-8")


def read_record(trials: Path, trial: Trial) -> TrialRecord | None:
    """What came of a trial; None if it is not done, or its record is not one."""
    with suppress(OSError, UserError):
        text = (trials / trial.folder / RECORD).read_bytes()
        return from_json_dict(TrialRecord, parse_json(text))
    return None


def read_features(trials: Path, record: TrialRecord) -> dict[str, Tensor]:
    """The features of a trial and each model, ``(N, D)``, by name."""
    return load_file(trials / record.folder / FEATURES)
