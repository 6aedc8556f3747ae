"""Training motion: windows of recordings, which are kept in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from motion.config import RVQVAEConfig
from motion.errors import MotionError
from motion.features import humanml3d
from motion.features.recording import Recording, find_files, read_recording
from motion.features.statistics import FeatureStatistics
from motion.skeleton.tree import Skeleton
from wanvae.engine.config import check

# How many of the files that are left out a warning names.
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where training motion comes from.

    Attributes:
        folder: a motion file, or a folder that is searched for them, with its subfolders; of
            HumanML3D and KIT that of the data set or its new_joint_vecs.
        window: frames of a sample.
        held_out: the share of each recording, at its end, that is not trained on but evaluated.
        feature_bias: how many times more than other features the root and the contacts of
            HumanML3D and KIT count; their deviations are divided by it. 1 for other motion.
    """

    folder: str = "data"
    window: int = 64
    held_out: float = 0.0
    feature_bias: float = 1.0

    def __post_init__(self) -> None:
        check(self.window >= 2, "window", self.window, "at least 2 frames")
        check(0 <= self.held_out < 1, "held_out", self.held_out, "in [0, 1)")
        check(0 < self.feature_bias < float("inf"), "feature_bias", self.feature_bias, "above 0")


class MotionWindows(Dataset):
    """An endless list of windows ``(window, D)``.

    Sample ``number`` is drawn from (seed, number) alone, every window of every recording with the
    same probability: any number of workers and processes sees the same samples, and a run that
    resumes needs to know only how many it has used.

    Args:
        recordings: features ``(T, D)``, each at least a window long.
        window: frames.
    """

    def __init__(self, recordings: Sequence[Tensor], window: int, seed: int) -> None:
        self.recordings = recordings
        self.window = window
        self.seed = seed
        # Windows of all recordings are counted through; these are the first ones of the next.
        self._ends = np.cumsum([len(features) - window + 1 for features in recordings])

    def __getitem__(self, number: int) -> Tensor:
        drawn = np.random.default_rng([self.seed, number]).integers(self._ends[-1])
        recording = np.searchsorted(self._ends, drawn, side="right")
        # Counted from the last window, as the ends are.
        stop = len(self.recordings[recording]) - int(self._ends[recording] - 1 - drawn)
        return self.recordings[recording][stop - self.window : stop]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A recording, cut in two.

    Attributes:
        path: its file.
        skeleton: whose joints move.
        training: ``(T, D)``, float32, the features of its beginning.
        held_out: its end; None where nothing is held out.
    """

    path: Path
    skeleton: Skeleton
    training: Tensor
    held_out: Recording | None

    @classmethod
    def read(cls, path: Path, model: RVQVAEConfig, held_out: float) -> Source:
        """Read a file; MotionError if it cannot be, or does not fit the model."""
        recording = read_recording(path, model)
        cut = int((1 - held_out) * len(recording))
        return cls(
            path=path,
            skeleton=recording.skeleton,
            training=recording.features[:cut],
            held_out=recording[cut:] if cut < len(recording) else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionData:
    """What a run learns from, and what it is judged by.

    Attributes:
        windows: the samples.
        held_out: the ends of the recordings, if some share of them is held out.
        skeleton: of the first recording; all have its joints.
        statistics: of the features that are trained on, for the normalizer of the model.
    """

    windows: MotionWindows
    held_out: tuple[Recording, ...]
    skeleton: Skeleton
    statistics: FeatureStatistics


def load_data(config: DataConfig, model: RVQVAEConfig, seed: int, *, report: bool) -> MotionData:
    """Read all of the data for a model.

    Args:
        seed: of the samples.
        report: show progress, and warn of files that are left out; one process of a run should.

    Raises:
        MotionError: there is no motion that fits the model and is long enough, or motion of several
            skeletons.
        ValueError: the config does not fit the model.
    """
    if model.features is not None:
        bias = config.feature_bias
        check(bias == 1, "feature_bias", bias, "1 for features other than HumanML3D's and KIT's")
    sources = read_sources(config, model, report)
    check_joints(sources)
    sources = long_enough(sources, config, report)
    training = [source.training for source in sources]
    return MotionData(
        windows=MotionWindows(training, config.window, seed),
        held_out=tuple(source.held_out for source in sources if source.held_out is not None),
        skeleton=sources[0].skeleton,
        statistics=find_statistics(config, model, training),
    )


def read_sources(config: DataConfig, model: RVQVAEConfig, report: bool) -> list[Source]:
    """The recordings of a folder that can be read; MotionError if none can."""
    files = find_files(config.folder, model)
    sources, broken = [], []
    for path in tqdm(files, "reading", unit="file", leave=False, disable=not report):
        try:
            sources.append(Source.read(path, model, config.held_out))
        except MotionError as error:
            broken.append(str(error))
    if not sources:
        raise MotionError(
            f"no motion in {config.folder!r} can be used, of {len(files)} files; the first: "
            f"{broken[0]}"
        )
    if broken and report:
        warn_of(f"{len(broken)} files in {config.folder!r} cannot be used", broken)
    return sources


def check_joints(sources: Sequence[Source]) -> None:
    """Raise MotionError if two recordings have different joints."""
    first = sources[0]
    for source in sources:
        one, other = first.skeleton, source.skeleton
        if (one.names, one.parents) != (other.names, other.parents):
            raise MotionError(
                f"{first.path} and {source.path} have different joints; train on files of one "
                "skeleton"
            )


def long_enough(sources: Sequence[Source], config: DataConfig, report: bool) -> list[Source]:
    """The recordings that have a window to train on; MotionError if none has."""
    window, folder = config.window, config.folder
    usable = [source for source in sources if len(source.training) >= window]
    if not usable:
        longest = max(len(source.training) for source in sources)
        raise MotionError(
            f"no recording in {folder!r} has {window} frames to train on, the longest has "
            f"{longest}: lower data.window"
        )
    short = [source for source in sources if len(source.training) < window]
    if short and report:
        lines = [f"{source.path}: {len(source.training)} frames" for source in short]
        warn_of(f"{len(short)} recordings in {folder!r} have no {window} frames to train on", lines)
    return usable


def warn_of(problem: str, lines: Sequence[str]) -> None:
    """Say what is left out and why."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    message = [f"{problem}; they are left out:", *lines[:SHOWN], *more]
    warnings.warn("\n  ".join(message), stacklevel=2)


def find_statistics(
    config: DataConfig, model: RVQVAEConfig, training: Sequence[Tensor]
) -> FeatureStatistics:
    """Those of the features; of HumanML3D and KIT those beside their files, where there are any."""
    if model.features is not None:
        return FeatureStatistics.fit(training)
    folder = Path(config.folder)
    found = humanml3d.read_statistics(folder if folder.is_dir() else folder.parent)
    statistics = FeatureStatistics.fit(training) if found is None else found
    return humanml3d.biased(statistics, config.feature_bias)
