"""Shared code of the comparisons: results in a file, training, costs, options, plots."""

from __future__ import annotations

import argparse
import json
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from motion.errors import MotionError
from motion.features.feature_files import SUFFIX as FEATURES
from motion.features.joint_motion import read_joint_motion
from motion.features.recording import read_recording
from motion.files.formats import read_motion, write_motion
from motion.skeleton.packaged import SMPLX
from motion.skeleton.retarget import retarget
from motion.skeleton.sample import walk
from motion.train.losses import LossConfig
from motion.train.run import MotionTraining, TrainConfig
from motion.train.windows import DataConfig
from tools.benchmark import count_attention_flops
from tools.measuring import (
    BenchmarkError,
    check_outputs,
    describe,
    measure_peak_memory,
    time_call,
    write_content,
)
from wanvae.engine.evaluating import evaluating
from wanvae.engine.files import atomic_path
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.loop import make_accelerator
from wanvae.engine.training.optimization import Optimization
from wanvae.engine.training.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Values = dict[str, Any]
# Training runs by (variant, learning rate, seed).
Runs = Mapping[tuple[str, ...], Values]
Judge = Callable[[Any], dict[str, float]]

# The widths that a search tries.
WIDTHS = range(1, 1024)
# How often a training run is judged.
JUDGEMENTS = 8
# The share of a recording, at its end, that is held out.
HELD_OUT = 0.2
# Colours of an image.
COLOURS = 64
MOTION_HELP = (
    "motion to learn: .bvh, .npz of SMPL-X, SMPL+H or SMPL, .pkl of AIST++; or .npy of positions "
    "of joints or of features of HumanML3D, KIT or MotionStreamer (default: a procedural walk)"
)
# Frames of the procedural walk.
WALK = 400


@dataclass(frozen=True)
class Measurement:
    """A measurement and its key.

    Attributes:
        key: the part of the comparison, then the name of the measurement in this part, with slashes
            between.
        measure: returns values that JSON can hold.
    """

    key: str
    measure: Callable[[], Values]

    @property
    def part(self) -> str:
        return find_part(self.key)


class Results:
    """Results by key. If ``path`` is given, each new result is written to this file at once.

    Args:
        settings: settings that must be equal for results that are compared.

    Raises:
        BenchmarkError: the file cannot be read, or its results have other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = dict(settings)
        self.headers: dict[str, str] = {}
        self.values: dict[str, Values] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            settings, headers = content["settings"], content["headers"]
            values = content["results"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(
                f"{path} holds no results of this comparison ({error!r}): name another file"
            ) from error
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise BenchmarkError(
                    f"{path} was measured with {name} {settings.get(name)}, not {value}: name "
                    "another file, or the same options"
                )
        self.settings, self.headers, self.values = settings, headers, values

    def measure(self, measurements: Iterable[Measurement], only: Collection[str]) -> None:
        """Measures what is missing; with ``only``, measures all of these parts again."""
        wanted = [
            one
            for one in measurements
            if (one.part in only if only else one.key not in self.values)
        ]
        progress = tqdm(wanted, unit="run")
        for one in progress:
            progress.set_description(one.key)
            self.values[one.key] = one.measure()
            self.headers[one.part] = describe(one.part, None)
            if self.path is not None:
                content = {"settings": self.settings, "headers": self.headers}
                write_content(self.path, content | {"results": self.values})

    def description(self) -> Iterator[str]:
        """Yields the settings, and for each part where and when it was measured."""
        yield ", ".join(f"{name} {value}" for name, value in self.settings.items())
        yield from self.headers.values()

    def part(self, part: str) -> dict[tuple[str, ...], Values]:
        """Returns the results of a part, by the rest of their keys."""
        return {
            tuple(key.split("/")[1:]): values
            for key, values in self.values.items()
            if find_part(key) == part
        }


def find_part(key: str) -> str:
    return key.split("/")[0]


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def find_nearest(choices: Iterable[T], make: Callable[[T], nn.Module], parameters: int) -> T:
    """Returns the choice whose module has nearest to ``parameters``; nothing is allocated."""
    return min(choices, key=lambda choice: abs(count_parameters_on_meta(make, choice) - parameters))


def find_widths_around(make: Callable[[int], nn.Module], parameters: int) -> tuple[int, int]:
    """Returns the largest width with fewer than ``parameters``, and the next width."""
    above = bisect_left(WIDTHS, parameters, key=partial(count_parameters_on_meta, make))
    return WIDTHS[max(0, above - 1)], WIDTHS[above]


def count_parameters_on_meta(make: Callable[[T], nn.Module], choice: T) -> int:
    with torch.device("meta"):
        return count_parameters(make(choice))


def multiply_adds(call: Callable[[], object]) -> int:
    """Returns the multiply-adds of convolutions and matrix products, as layers define them."""
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.mkldnn_rnn_layer: count_recurrent_flops,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention_flops,
        },
    )
    with counter:
        call()
    return counter.get_total_flops() // 2


def count_recurrent_flops(
    x: Sequence[int], of_input: Sequence[int], of_state: Sequence[int], *_: object, **__: object
) -> int:
    """Returns operations of a recurrent layer in one direction: two matrices at each position."""
    return 2 * math.prod(x[:2]) * (math.prod(of_input) + math.prod(of_state))


def measure_costs(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Values]:
    """Returns the peak memory of each call in bytes, and its seconds in each round."""
    for call in calls.values():
        call()  # warms up
    peaks = {name: measure_peak_memory(call, "cpu") for name, call in calls.items()}
    seconds = time_in_turns(calls, rounds)
    return {name: {"seconds": seconds[name], "peak_bytes": peaks[name]} for name in calls}


def time_in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each call in each round; calls take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, call in calls.items():
            seconds[name].append(time_call(call, "cpu"))
    return seconds


def compare_times(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Returns the median over rounds of ``seconds`` divided by ``reference``."""
    return median(a / b for a, b in zip(seconds, reference, strict=True))


def make_trainer_config(steps: int, batch: int, rate: float, seed: int) -> TrainerConfig:
    """Returns a config of training: a tenth of the steps warms up, a cosine to 0 follows."""
    return TrainerConfig(
        steps=steps,
        batch_size=batch,
        learning_rate=rate,
        warmup_steps=max(1, steps // 10),
        tracker="none",
        seed=seed,
    )


def make_step(task: Task, config: TrainerConfig, batch: Tensor) -> Callable[[], object]:
    """Returns a training step of a model on a batch, to be measured."""
    optimization = Optimization(task, config, make_accelerator(config))
    return partial(optimization.step, [batch], config.steps - 1)


def train(
    task: Task, config: TrainerConfig, batches: Callable[[int], Tensor], judge: Judge
) -> Values:
    """Trains a model, and judges it a few times during training.

    Args:
        batches: returns the batch of a step.

    Returns:
        "loss" of each step (None if it was not finite), the "steps" after which the model was
        judged, and the "figures" of each judgement.
    """
    optimization = Optimization(task, config, make_accelerator(config))
    every = max(1, config.steps // JUDGEMENTS)
    losses: list[float | None] = []
    steps: list[int] = []
    figures: dict[str, list[float]] = {}
    for step in tqdm(range(config.steps), desc="steps", leave=False):
        values, finite = optimization.step([batches(step)], step)
        losses.append(values["loss"].item() if finite else None)
        if config.due(step + 1, every):
            steps.append(step + 1)
            with evaluating(task.model):
                for name, value in judge(task.model).items():
                    figures.setdefault(name, []).append(value)
    return {"loss": losses, "steps": steps, "figures": figures}


def make_batch(samples: Sequence[Tensor] | Any, config: TrainerConfig, step: int) -> Tensor:
    """Returns the batch of a step, from samples by number."""
    first = step * config.batch_size
    return torch.stack([samples[first + i] for i in range(config.batch_size)])


def make_motion_training(
    model: Any, motion: Path, window: int, config: TrainerConfig
) -> MotionTraining:
    """Returns the training of a motion tokenizer on a file, whose end is held out."""
    training = TrainConfig(
        model=model,
        data=DataConfig(folder=str(motion), window=window, held_out=HELD_OUT),
        loss=LossConfig(position=20.0, velocity=0.5),
        trainer=config,
    )
    torch.manual_seed(config.seed)
    return MotionTraining(training, make_accelerator(config))


def find_motion(options: argparse.Namespace, model: Any, window: int, folder: str) -> Path:
    """Returns the file of ``--motion``, or of a procedural walk that is written to a folder.

    The file is read now, because measuring first what needs no motion takes long. Motion of other
    joints becomes motion of the body of SMPL-X, in a file of the folder.

    Args:
        model: the config of the tokenizer.
        window: the frames of a piece of motion.

    Raises:
        MotionError: the file cannot be read, or its joints are not known.
        BenchmarkError: it is too short.
    """
    given: Path | None = options.motion
    if given is None:
        return write_walk(folder)
    path = move_body(given, Path(folder, "motion.npz"))
    frames = len(read_recording(path, model))
    trained = int((1 - HELD_OUT) * frames)
    if trained < window:
        raise BenchmarkError(
            f"{given} has {frames} frames, of which {trained} are trained on: {window} are needed"
        )
    return path


def move_body(path: Path, target: Path) -> Path:
    """Returns a file of motion with 55 joints: a file that has them, or ``target``.

    Args:
        path: a motion file; or a .npy file of positions of joints, or of published features.
        target: where to write how the body of SMPL-X moves as a file of other joints moves.

    Raises:
        MotionError: the file cannot be read, or its joints are not known.
    """
    features = path.suffix.lower() == FEATURES
    clip = read_joint_motion(path).clip if features else read_motion(path)
    if clip.skeleton.joints == SMPLX.joints:
        return path
    try:
        moved = retarget(clip, SMPLX)
    except MotionError as error:
        raise MotionError(f"{path} with the body of SMPL-X: {error}") from None
    write_motion(target, moved)
    print(
        f"note: {path} has {clip.skeleton.joints} joints; the body of SMPL-X, of {SMPLX.joints} "
        "joints, moves as they move, and is what is learnt",
        file=sys.stderr,
    )
    return target


def write_walk(folder: str) -> Path:
    """Writes the procedural walk to a motion file, and returns its path."""
    path = Path(folder, "walk.npz")
    write_motion(path, walk(WALK))
    return path


def find_best_rates(runs: Runs, figure: str, largest: bool) -> dict[str, str]:
    """Returns for each variant the learning rate with the best mean of the last figures.

    Args:
        runs: training runs by (variant, rate, seed).
    """
    rates: dict[str, set[str]] = {}
    for variant, rate, _ in runs:
        rates.setdefault(variant, set()).add(rate)
    choose = max if largest else min
    return {
        variant: choose(
            sorted(of_variant),
            key=lambda rate: fmean(get_last_figures(runs, variant, rate, figure)),
        )
        for variant, of_variant in rates.items()
    }


def get_last_figures(runs: Runs, variant: str, rate: str, figure: str) -> list[float]:
    """Returns the last figure of each seed."""
    return [run["figures"][figure][-1] for run in select_runs(runs, variant, rate)]


def get_last_losses(runs: Runs, variant: str, rate: str) -> list[float]:
    """Returns for each seed the mean loss over the last tenth of the steps."""
    losses = [run["loss"] for run in select_runs(runs, variant, rate)]
    tails = [loss[-max(1, len(loss) // 10) :] for loss in losses]
    return [fmean(math.nan if x is None else x for x in tail) for tail in tails]


def select_runs(runs: Runs, variant: str, rate: str) -> list[Values]:
    return [values for key, values in runs.items() if key[:2] == (variant, rate)]


def average_curve(
    runs: Runs, variant: str, rate: str, figure: str
) -> tuple[list[int], list[float]]:
    """Returns steps, and the mean figure over seeds after each of these steps."""
    chosen = select_runs(runs, variant, rate)
    curves = zip(*(values["figures"][figure] for values in chosen), strict=True)
    return chosen[0]["steps"], [fmean(values) for values in curves]


def format_spread(values: Sequence[float], digits: int = 1) -> str:
    """Returns the mean as text, with the range if there are several values."""
    mean, smallest, largest = (format(f(values), f".{digits}f") for f in (fmean, min, max))
    return mean if len(values) == 1 else f"{mean} ({smallest} to {largest})"


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str], rates: str) -> None:
    """Adds the options of the comparisons.

    Args:
        rates: the help of the learning rates.
    """
    parser.add_argument("--motion", type=Path, help=MOTION_HELP)
    parser.add_argument("--steps", type=int, help="of training (default: 200; quick: 4)")
    parser.add_argument("--seeds", type=int, help="runs of each (default: 3; quick: 1)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help=rates)
    parser.add_argument("--rounds", type=int, help="of timing (default: 7; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="the smallest size, to try the tool")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--only",
        nargs="+",
        choices=parts,
        default=[],
        metavar="PART",
        help=f"measure these parts again and leave the others: {', '.join(parts)}",
    )
    which.add_argument("--report", action="store_true", help="measure nothing: show what is there")
    parser.add_argument("--json", type=Path, help="file for the results; what it has is kept")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="folder for images")


def check_options(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    pictures: Sequence[str],
    videos: Path | None = None,
) -> None:
    """Fills in options that depend on ``--quick``; exits with status 2 for a bad option.

    Args:
        pictures: the names of the files that ``--plot`` writes.
        videos: a folder that is read besides ``--motion``.
    """
    for name, usual, quick in (("steps", 200, 4), ("seeds", 3, 1), ("rounds", 7, 2)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be positive, not {getattr(options, name)}")
    for rate in options.rates:
        if not 0 < rate < math.inf:
            parser.error(f"--rates must be positive, not {rate}")
    if options.plot and not options.plot.is_dir():
        parser.error(f"--plot {options.plot} is not a folder: create it first")
    plots = [options.plot / name for name in pictures] if options.plot else []
    check_outputs(parser, [options.json, *plots], [options.motion, videos])
    if options.report and not (options.json and options.json.exists()):
        parser.error("--report shows the results of a file: name one with --json")


def collect_settings(options: argparse.Namespace) -> Values:
    """Returns the settings of results; none if results are only shown."""
    if options.report:
        return {}
    motion = options.motion.name if options.motion else "walk"
    size = "quick" if options.quick else "full"
    return {"size": size, "steps": options.steps, "motion": motion}


def measure_and_report(
    options: argparse.Namespace,
    results: Results,
    measurements: Callable[[str], Iterator[Measurement]],
    report: Callable[[], Iterable[str]],
) -> None:
    """Measures what is missing in results, and prints a report, also if it is interrupted.

    Args:
        measurements: returns all measurements, given a folder for temporary files.
        report: returns the lines of the report.
    """
    try:
        if not options.report:
            with TemporaryDirectory(prefix="wanvae-compare-") as folder:
                results.measure(measurements(folder), options.only)
    finally:
        print(*report(), sep="\n")


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG with few colours, which takes a third of the size."""
    from PIL import Image

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
        Image.open(temporary).convert("RGB").quantize(COLOURS).save(temporary, format="png")
