"""The evaluation of features of which nothing is known but their number of channels.

Such features have no joints, so nothing is in millimetres or degrees. Errors are in standard
deviations of the channels, which the model normalizes with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from motion.evaluate.code_use import CodeUse
from motion.evaluate.evaluation import decode_by_layers
from motion.evaluate.folder import gather_files, measure_files
from motion.evaluate.report import write_content
from motion.features.recording import Recording, find_files
from motion.files.reading import GUESSED
from motion.metrics import feature_errors
from motion.models import MotionModel
from wanvae.engine.evaluating import evaluating
from wanvae.engine.processes import gather_objects
from wanvae.engine.text import writable

if TYPE_CHECKING:
    from accelerate import PartialState

# The number of channels that a table shows.
WORST = 5


@dataclass(frozen=True, kw_only=True)
class FeatureSummary:
    """The figures of some frames. Tuples have a value for each layer of the quantizer.

    Attributes:
        frames: the number of frames.
        error: mean absolute errors from the first 1, 2, ... layers, in standard deviations.
        codes_used: the number of codes of each layer that were chosen.
        perplexity: the exponential of the entropy of the codes of each layer.
    """

    frames: int
    error: tuple[float, ...]
    codes_used: tuple[int, ...]
    perplexity: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureEvaluation(CodeUse):
    """Sums over the frames of recordings, which can be added.

    Attributes:
        errors: ``(N, D)``, absolute errors of the channels in standard deviations, for N numbers of
            layers; the last is all.
    """

    errors: Tensor

    def __add__(self, other: FeatureEvaluation) -> FeatureEvaluation:
        """Returns the sums over the frames of both, which must have the same channels."""
        return FeatureEvaluation(
            frames=self.frames + other.frames,
            counts=self.counts + other.counts,
            errors=self.errors + other.errors,
        )

    @property
    def channel_errors(self) -> Tensor:
        """``(D,)``, mean errors of the channels, with all layers of the quantizer."""
        return self.errors[-1] / self.frames

    @property
    def summary(self) -> FeatureSummary:
        """All figures, except the figures of single channels and codes."""
        return FeatureSummary(
            frames=self.frames,
            error=tuple((self.errors.mean(1) / self.frames).tolist()),
            codes_used=tuple(self.used.tolist()),
            perplexity=tuple(self.perplexity.tolist()),
        )


@dataclass(frozen=True, kw_only=True)
class FeatureFolder:
    """The figures of the files of a folder.

    Attributes:
        source: the folder, or the file if only one was given.
        window: codes were counted in windows of so many frames; None is whole files.
        whole: the sums over all frames of all files.
        files: the name and the figures of each file, sorted.
        failures: a line for each file that was left out, sorted by path.
        ignored: how many files of the folder are no features, by suffix; or empty.
    """

    source: str
    window: int | None
    whole: FeatureEvaluation
    files: tuple[tuple[str, FeatureSummary], ...]
    failures: tuple[str, ...]
    ignored: str = ""


def measure_features(
    model: MotionModel,
    recording: Recording,
    *,
    numbers_of_layers: Iterable[int] | None = None,
    window: int | None = None,
) -> FeatureEvaluation:
    """Reconstructs a recording as a whole, and compares it with the original.

    Args:
        numbers_of_layers: the numbers of layers to decode with, the last one all layers; None is
            1, 2, ... up to all.
        window: count the codes of all windows of so many frames; None is the whole recording.
    """
    length, std = len(recording), model.normalizer.std.cpu()
    with evaluating(model):
        counts, results = decode_by_layers(model, recording, numbers_of_layers, window)
        errors = [feature_errors(decoded, recording.features, std) for decoded in results]
    return FeatureEvaluation(frames=length, counts=counts, errors=torch.stack(errors) * length)


def evaluate_features(
    model: MotionModel, recordings: Sequence[Recording], *, rank: int = 0, ranks: int = 1
) -> FeatureEvaluation:
    """Reconstructs recordings with all layers, each as a whole.

    Args:
        rank, ranks: the number of this process, and how many processes share the recordings. All
            processes must call this function, and each gets the whole result.
    """
    layers = [model.config.num_layers]
    share = recordings[rank::ranks]
    own = [measure_features(model, each, numbers_of_layers=layers) for each in share]
    return add_up_all(own)


def evaluate_feature_folder(
    model: MotionModel,
    source: str | os.PathLike[str],
    processes: PartialState,
    *,
    window: int | None = None,
    progress: bool = False,
) -> FeatureFolder:
    """Reconstructs all files of features of a folder, or one file; see ``evaluate_folder``.

    Raises:
        MotionError: there are no files, or none can be evaluated.
    """
    found, failures = find_files(source, model.config), []
    files: list[tuple[Path, str, FeatureSummary]] = []
    own: list[FeatureEvaluation] = []
    for path, name, measured in measure_files(
        model,
        found.paths,
        Path(source),
        processes,
        lambda recording: measure_features(model, recording, window=window),
        GUESSED,
        failures,
        progress=progress,
    ):
        files.append((path, name, measured.summary))
        own = [reduce(add, [*own, measured])]
    files, failures = gather_files(files, failures, source, lambda file: file[0])
    return FeatureFolder(
        source=writable(str(source)),
        window=window,
        whole=add_up_all(own),
        files=tuple((name, summary) for _, name, summary in files),
        failures=tuple(line for _, line in failures),
        ignored=found.ignored,
    )


def add_up_all(own: Sequence[FeatureEvaluation]) -> FeatureEvaluation:
    """Adds the evaluations of all processes. All processes must call it, and each gets all."""
    return reduce(add, (each for part in gather_objects(list(own)) for each in part))


def make_feature_table(evaluation: FeatureEvaluation) -> Iterator[str]:
    """Yields the lines of a table: errors for each number of layers, and the use of codes."""
    summary, codes = evaluation.summary, evaluation.counts.shape[1]
    yield f"{summary.frames} frames of {evaluation.errors.shape[1]} channels"
    yield "what the features are is not known: errors are in standard deviations of the channels"
    if not codes:
        yield f"mean error {summary.error[-1]:.4f}"
    else:
        yield from describe_feature_layers(summary, codes)
    errors = evaluation.channel_errors
    worst = errors.argsort(descending=True)[:WORST].tolist()
    shown = ", ".join(f"{channel} {errors[channel]:.3f}" for channel in worst)
    yield f"largest errors of channels: {shown}"


def describe_feature_layers(summary: FeatureSummary, codes: int) -> Iterator[str]:
    """Yields a table of the numbers of layers, of codebooks of ``codes`` codes."""
    yield "layers  mean error  perplexity of the last  codes it uses"
    rows = zip(summary.error, summary.perplexity, summary.codes_used, strict=True)
    for layer, (error, perplexity, count) in enumerate(rows, start=1):
        share = f"{count} of {codes} ({count / codes:.0%})"
        yield f"{layer:6}  {error:10.4f}  {perplexity:22.1f}  {share}"


def write_feature_figures(
    folder: str | os.PathLike[str], evaluation: FeatureFolder, checkpoint: str
) -> None:
    """Writes evaluation.json, and evaluation.csv with a row for each file, to a folder.

    Args:
        checkpoint: the file of the model.

    Raises:
        FileError: the files cannot be written.
    """
    whole = evaluation.whole
    content = {
        "motion": evaluation.source,
        "window": evaluation.window,
        **asdict(whole.summary),
        "code_use": whole.code_use.tolist(),
        "channel_errors": whole.channel_errors.tolist(),
        "code_counts": whole.counts.tolist(),
        "files": [{"file": name, **asdict(summary)} for name, summary in evaluation.files],
        "failures": list(evaluation.failures),
    }
    write_content(folder, content, checkpoint)
