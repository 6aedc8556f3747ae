"""The figures of all trials together, by size and by length, as JSON and CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wanvae.engine.json_files import write_value
from wanvae.evaluate.records import ORIGINAL, ModelRecord, TrialRecord, read_features
from wanvae.evaluate.settings import EvaluationSettings
from wanvae.folders.failure import Failure
from wanvae.metrics.frechet import Moments, frechet_distance
from wanvae.metrics.means import mean_of
from wanvae.report import write_rows

JSON = "evaluation.json"
CSV = "evaluation.csv"
# Figures of clips that are averaged over clips.
MEANS = (
    "psnr",
    "ssim",
    "ms_ssim",
    "lpips",
    "alpha",
    "temporal",
    "flicker",
    "compression",
    "bits",
    "information",
)
# The fewest windows that have a covariance.
FEWEST_WINDOWS = 2


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of a model over a group of clips. A figure that does not exist is None.

    Attributes:
        group: name of the group, such as a size.
        model: name of the model.
        clips: number of clips.
        frames: number of frames in all clips.
        psnr, ssim, ms_ssim, lpips, alpha, temporal, flicker, compression, bits, information: means
            over clips of the figures of ``ModelRecord``.
        rfvd: Frechet distance between features of the originals and of the reconstructions.
        windows: number of windows that rfvd compares.
        encode_fps, decode_fps: frames per second.
    """

    group: str
    model: str
    clips: int
    frames: int
    psnr: float | None
    ssim: float | None
    ms_ssim: float | None
    lpips: float | None
    alpha: float | None
    temporal: float | None
    flicker: float | None
    compression: float | None
    bits: float | None
    information: float | None
    rfvd: float | None
    windows: int
    encode_fps: float | None
    decode_fps: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        settings: the settings of the evaluation.
        overall: a row for each model.
        by_size, by_length: a row for each group of clips and model.
        records: the results of the trials.
        failures: files and clips that could not be read.
        left_out: clips that are too short or too small for a length or size.
        notes: figures that are missing or not exact, each with the reason.
    """

    settings: EvaluationSettings
    overall: tuple[Summary, ...]
    by_size: tuple[Summary, ...]
    by_length: tuple[Summary, ...]
    records: tuple[TrialRecord, ...]
    failures: tuple[Failure, ...]
    left_out: tuple[Failure, ...]
    notes: tuple[tuple[str, str], ...]


def summarize(
    records: Sequence[TrialRecord],
    trials: Path,
    settings: EvaluationSettings,
    group: Callable[[TrialRecord], str],
) -> tuple[Summary, ...]:
    """Returns a row for each model and group of trials. Groups are sorted by pixels and frames.

    Args:
        trials: the folder of the records.
        group: returns the name of the group of a trial.
    """
    ordered = sorted(records, key=lambda record: (record.height * record.width, record.frames))
    groups: dict[str, list[TrialRecord]] = {}
    for record in ordered:
        groups.setdefault(group(record), []).append(record)
    return tuple(
        summarize_model(name, members, trials, settings, number)
        for name, members in groups.items()
        for number in range(len(settings.models))
    )


def summarize_model(
    group: str,
    records: Sequence[TrialRecord],
    trials: Path,
    settings: EvaluationSettings,
    number: int,
) -> Summary:
    """Returns the row of one model for a group of trials."""
    rows = [record.models[number] for record in records]
    frames = sum(record.frames for record in records)
    rfvd, windows = None, 0
    if settings.i3d is not None:
        rfvd, windows = distance(records, trials, str(number))
    return Summary(
        group=group,
        model=settings.models[number].name,
        clips=len(records),
        frames=frames,
        rfvd=rfvd,
        windows=windows,
        encode_fps=speed(frames, (row.encode_seconds for row in rows)),
        decode_fps=speed(frames, (row.decode_seconds for row in rows)),
        **{name: mean_of(getattr(row, name) for row in rows) for name in MEANS},
    )


def speed(frames: int, seconds: Iterable[float]) -> float | None:
    """Returns frames per second; None if no time was spent."""
    total = sum(seconds)
    return frames / total if total > 0 else None


def distance(records: Iterable[TrialRecord], trials: Path, number: str) -> tuple[float | None, int]:
    """Returns the Frechet distance of a model, None for too few windows, and their number."""
    originals, images = Moments(), Moments()
    for record in records:
        features = read_features(trials, record)
        originals.add(features[ORIGINAL])
        images.add(features[number])
    if images.count < FEWEST_WINDOWS:
        return None, images.count
    return frechet_distance(originals, images), images.count


def length_group(record: TrialRecord) -> str:
    """Returns the length that was asked for; for whole videos a range, because lengths differ."""
    if record.frames == 1:
        return "1 frame"
    if record.length is not None:
        return f"{record.length} frames"
    low = 1 << ((record.frames - 1).bit_length() - 1)
    return f"{low + 1} to {2 * low} frames"


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Writes ``evaluation.json``, and ``evaluation.csv`` with a row for each trial and model."""
    write_value(folder / JSON, evaluation, indent=1)
    rows = [csv_row(record, row) for record in evaluation.records for row in record.models]
    write_rows(folder / CSV, rows)


def csv_row(record: TrialRecord, row: ModelRecord) -> Mapping[str, object]:
    """Returns all figures of a model on a clip, except the figures of single frames."""
    clip, figures = asdict(record), asdict(row)
    for name in ("folder", "models", "video", "length"):
        del clip[name]
    for name in ("frame_psnr", "worst"):
        del figures[name]
    return clip | figures
