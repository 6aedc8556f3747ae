"""Training data: windows of recordings, which are kept in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeAlias, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from motion.config import RVQVAEConfig
from motion.errors import MotionError, SkeletonError
from motion.features import humanml3d
from motion.features.recording import Recording, find_files, read_recording
from motion.features.rotations import extract_features
from motion.features.statistics import FeatureStatistics
from motion.features.turning import turn_features
from motion.files.reading import GUESSED, Reading
from motion.skeleton.mirror import mirror
from motion.skeleton.tree import Skeleton
from motion.train.splits import FileSplit, split_files
from wanvae.engine.config import check
from wanvae.engine.digest import digest_of_file
from wanvae.engine.training.notices import warn_about

T = TypeVar("T")
# Turns features ``(T, D)`` about the vertical by an angle in radians.
Turn: TypeAlias = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training motion.

    Attributes:
        folder: a motion file, or a folder that is searched for motion files, with its subfolders.
            For HumanML3D and KIT it is the folder of the data set, or its new_joint_vecs. If it has
            train.txt, only the files that train.txt names are trained on.
        window: the number of frames of a sample.
        held_out: the share of each recording, at its end, that is evaluated and not trained on. If
            it is 0, the files that val.txt of HumanML3D and KIT names are evaluated.
        mirror: also train on each recording in a mirror: left and right, told by the names of the
            joints, change places.
        turn: turn each window about the vertical by a random angle.
        feature_bias: the root and the contacts of HumanML3D and KIT count so many times as much as
            other features; their standard deviations are divided by it. 1 for other motion.
        reading: what the files do not tell, such as their unit.
    """

    # The files that are trained on are compared instead: a folder can be moved.
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"folder"})

    folder: str = "data"
    window: int = 64
    held_out: float = 0.0
    mirror: bool = False
    turn: bool = False
    feature_bias: float = 1.0
    reading: Reading = GUESSED

    def __post_init__(self) -> None:
        check(self.window >= 2, "window", self.window, "at least 2 frames")
        check(0 <= self.held_out < 1, "held_out", self.held_out, "in [0, 1)")
        check(0 < self.feature_bias < float("inf"), "feature_bias", self.feature_bias, "above 0")


class MotionWindows(Dataset):
    """An endless list of windows ``(window, D)``.

    Sample ``number`` depends on (seed, number) alone, and every window of every recording has the
    same probability. So any number of workers and processes sees the same samples, and a run that
    resumes needs to know only how many samples it has used.

    Args:
        recordings: features ``(T, D)``, each at least a window long.
        window: the number of frames of a sample.
        seed: the seed of the samples.
        turn: turns features by an angle in radians, which is random; None leaves windows as they
            are.
    """

    def __init__(
        self, recordings: Sequence[Tensor], window: int, seed: int, turn: Turn | None = None
    ) -> None:
        self.recordings = recordings
        self.turn = turn
        self.window = window
        self.seed = seed
        # The windows of all recordings are numbered; a recording ends before each of these numbers.
        self._ends = np.cumsum([len(features) - window + 1 for features in recordings])

    def __getitem__(self, number: int) -> Tensor:
        random = np.random.default_rng([self.seed, number])
        drawn = random.integers(self._ends[-1])
        recording = np.searchsorted(self._ends, drawn, side="right")
        # The window is counted back from the last window of the recording.
        stop = len(self.recordings[recording]) - int(self._ends[recording] - 1 - drawn)
        sample = self.recordings[recording][stop - self.window : stop]
        return sample if self.turn is None else self.turn(sample, random.uniform(0, 2 * math.pi))


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitRecording:
    """A recording that is cut in two: a training part, and a held-out part at its end.

    Attributes:
        path: the file.
        skeleton: the skeleton that moves.
        training: ``(T, D)``, float32, the features of the training part.
        held_out: the held-out part; None if nothing is held out.
        mirrored: ``(T, D)``, the training part in a mirror; None if it is not trained on.
    """

    path: Path
    skeleton: Skeleton
    training: Tensor
    held_out: Recording | None
    mirrored: Tensor | None = None

    @classmethod
    def read(
        cls, path: Path, model: RVQVAEConfig, config: DataConfig, skeleton: Skeleton | None = None
    ) -> SplitRecording:
        """Reads a file; MotionError if it cannot be read, or does not fit the model.

        Args:
            skeleton: the skeleton whose joints the file must have; None takes any.
        """
        recording = read_recording(path, model, config.reading, skeleton)
        cut = int((1 - config.held_out) * len(recording))
        mirrored = None
        if config.mirror and recording.clip is not None and model.features is not None:
            clip = mirror(recording.clip[:cut])
            mirrored = extract_features(clip, model.features).float()
        return cls(
            path=path,
            skeleton=recording.skeleton,
            training=recording.features[:cut],
            held_out=recording[cut:] if cut < len(recording) else None,
            mirrored=mirrored,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionData:
    """The motion that a run trains on, and the motion that it is evaluated on.

    Attributes:
        windows: the training samples.
        held_out: the recordings, or parts of recordings, that are not trained on but evaluated;
            empty if nothing is held out.
        skeleton: the skeleton of the first recording; all recordings have the same joints.
        statistics: the statistics of the training features, for the normalizer of the model.
        files: the files of the recordings.
        folder: where the files lie, or the only file.
        ignored: how many other files lie there, by suffix; or empty.
        split: which files the lists of the data set leave for which use; or empty.
    """

    windows: MotionWindows
    held_out: tuple[Recording, ...]
    skeleton: Skeleton
    statistics: FeatureStatistics
    files: tuple[Path, ...]
    folder: Path
    ignored: str = ""
    split: str = ""

    def describe(self) -> Iterator[str]:
        """A line for each recording: which file it is and the SHA-256 of the file."""
        folder = self.folder if self.folder.is_dir() else self.folder.parent
        for path, features in zip(self.files, self.windows.recordings, strict=False):
            name = path.relative_to(folder).as_posix()
            yield f"{name}: {digest_of_file(path)}, {len(features)} frames"


def load_data(
    config: DataConfig,
    model: RVQVAEConfig,
    seed: int,
    *,
    report: bool,
    skeleton: Skeleton | None = None,
) -> MotionData:
    """Reads all data for a model. All files have the joints of one skeleton, in any order.

    Args:
        config: the files to read.
        model: the config of the model.
        seed: the seed of the samples.
        report: show progress, and warn of files that are left out. One process of a run should.
        skeleton: the skeleton of the model. Files with other joints are left out. None is the
            skeleton of the first file, and files with other joints are an error.

    Raises:
        MotionError: no motion fits the model and is long enough, or skeletons differ.
        UserError: ``config`` does not fit the model.
    """
    if model.features is not None:
        bias = config.feature_bias
        check(bias == 1, "feature_bias", bias, "1 for features other than HumanML3D's and KIT's")
    check_changes(config, model)
    found = find_files(config.folder, model)
    split = FileSplit(found.paths)
    if model.features is None:
        split = split_files(found.paths, Path(config.folder), validate=not config.held_out)
    read = SkeletonReader(config, model, skeleton)
    sources = read_all(config.folder, split.training, read, report)
    sources = drop_short(sources, config, report)
    mirrored = [source.mirrored for source in sources if source.mirrored is not None]
    training = [*(source.training for source in sources), *mirrored]
    turn = make_turn(model, sources[0].skeleton) if config.turn else None
    held_out = [source.held_out for source in sources if source.held_out is not None]
    if split.validation:
        held_out = read_all(
            config.folder,
            split.validation,
            lambda path: read_recording(path, model, config.reading),
            report,
        )
    return MotionData(
        windows=MotionWindows(training, config.window, seed, turn),
        held_out=tuple(held_out),
        skeleton=sources[0].skeleton,
        statistics=find_statistics(config, model, training, turn),
        files=tuple(source.path for source in sources),
        folder=Path(config.folder),
        ignored=found.ignored,
        split=split.note,
    )


def read_all(
    folder: str, files: Sequence[Path], read: Callable[[Path], T], report: bool
) -> list[T]:
    """Reads files of a folder by ``read``, except files that cannot be read.

    Raises:
        MotionError: no file can be read.
        SkeletonError: ``read`` raises it.
    """
    found, broken = [], []
    for path in tqdm(files, "reading", unit="file", leave=False, disable=not report):
        try:
            found.append(read(path))
        except SkeletonError:
            raise
        except MotionError as error:
            broken.append(str(error))
    if not found:
        raise MotionError(
            f"no motion in {folder!r} can be used, of {len(files)} files; the first: {broken[0]}"
        )
    if broken and report:
        warn_about(f"{len(broken)} files in {folder!r} cannot be used", broken)
    return found


class SkeletonReader:
    """Reads recordings with the joints of one skeleton.

    Args:
        config: the data.
        model: the config of the model.
        skeleton: the skeleton; None is the skeleton of the first file that can be read.
    """

    def __init__(self, config: DataConfig, model: RVQVAEConfig, skeleton: Skeleton | None) -> None:
        self.config, self.model, self.skeleton = config, model, skeleton
        self._first: Path | None = None

    def __call__(self, path: Path) -> SplitRecording:
        """Reads a file.

        Raises:
            MotionError: it cannot be read, or does not fit the model.
            SkeletonError: it has other joints than the first file.
        """
        try:
            source = SplitRecording.read(path, self.model, self.config, self.skeleton)
        except SkeletonError as error:
            if self._first is None:
                raise MotionError(str(error)) from None
            raise SkeletonError(
                f"{self._first} and {path} have different joints or rest poses: {error}; train on "
                "files of one skeleton"
            ) from None
        if self.skeleton is None and self.model.features is not None:
            self.skeleton, self._first = source.skeleton, path
        return source


def drop_short(
    sources: Sequence[SplitRecording], config: DataConfig, report: bool
) -> list[SplitRecording]:
    """Returns the recordings with at least a window to train on; MotionError if there is none."""
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
        warn_about(
            f"{len(short)} recordings in {folder!r} have no {window} frames to train on", lines
        )
    return usable


def check_changes(config: DataConfig, model: RVQVAEConfig) -> None:
    """Raises MotionError if windows of a model cannot be mirrored or turned, as a config asks."""
    spec = model.features
    if spec is None and (config.mirror or config.turn):
        raise MotionError(
            "features of HumanML3D and KIT cannot be mirrored or turned: the data sets have "
            "mirrored files, and the features turn with the person; set data.mirror and data.turn "
            "to false"
        )
    if spec is not None and spec.relative and config.turn:
        raise MotionError(
            "features relative to the heading stay the same if the motion is turned; set data.turn "
            "to false"
        )


def make_turn(model: RVQVAEConfig, skeleton: Skeleton) -> Turn | None:
    """Returns the function that turns features of a model about the vertical."""
    spec = model.features
    if spec is None:
        return None
    return partial(turn_features, spec, skeleton.joints)


def find_statistics(
    config: DataConfig, model: RVQVAEConfig, training: Sequence[Tensor], turn: Turn | None
) -> FeatureStatistics:
    """Returns the statistics of training features.

    For HumanML3D and KIT they are read from the files beside the features, if there are such files.
    """
    if turn is not None:
        # Four directions have the mean and the deviation of all directions.
        quarters = [quarter * math.pi / 2 for quarter in range(4)]
        return FeatureStatistics.fit(turn(x, angle) for x in training for angle in quarters)
    if model.features is not None:
        return FeatureStatistics.fit(training)
    folder = Path(config.folder)
    found = humanml3d.read_statistics(folder if folder.is_dir() else folder.parent)
    statistics = FeatureStatistics.fit(training) if found is None else found
    return humanml3d.apply_bias(statistics, config.feature_bias)
