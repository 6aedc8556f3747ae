"""What the comparisons share: measurements kept as they come, training, costs, options, plots."""

from __future__ import annotations

import argparse
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from motion.files.formats import write_motion
from motion.skeleton.sample import walk
from motion.train.losses import LossConfig
from motion.train.run import MotionTraining, TrainConfig
from motion.train.windows import DataConfig
from tools.benchmark import count_attention_flops
from tools.measuring import (
    BenchmarkError,
    check_file,
    describe,
    measure_peak_memory,
    time_call,
    write_content,
)
from wanvae.engine.files import atomic_path
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.evaluating import evaluating
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

# Where a width is looked for.
WIDTHS = range(1, 1024)
# How often a training run is judged.
JUDGEMENTS = 8
# The share of a recording, at its end, that is held out.
HELD_OUT = 0.2
# Colours of an image.
COLOURS = 64
# Frames of the procedural walk.
WALK = 400


@dataclass(frozen=True)
class Measurement:
    """Something to measure.

    Attributes:
        key: the part of the comparison that it belongs to, then what tells it from the others
            there, with slashes between.
        measure: gives numbers that JSON can hold.
    """

    key: str
    measure: Callable[[], Values]

    @property
    def part(self) -> str:
        return find_part(self.key)


class Results:
    """What was measured, by key; a file, where one is named, holds each result as it comes.

    Args:
        settings: what results must have in common to be compared.

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
        """Measure what is not there yet; with ``only``, just these parts, and all of them again."""
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
        """What was measured, and each part where and when."""
        yield ", ".join(f"{name} {value}" for name, value in self.settings.items())
        yield from self.headers.values()

    def part(self, part: str) -> dict[tuple[str, ...], Values]:
        """The results of a part, by what follows it in their keys."""
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
    """The choice whose module has most nearly so many parameters; nothing is allocated."""
    return min(choices, key=lambda choice: abs(count_parameters_on_meta(make, choice) - parameters))


def find_widths_around(make: Callable[[int], nn.Module], parameters: int) -> tuple[int, int]:
    """The width below and the one from which on a module has so many parameters, 1 or more."""
    above = bisect_left(WIDTHS, parameters, key=partial(count_parameters_on_meta, make))
    return WIDTHS[max(0, above - 1)], WIDTHS[above]


def count_parameters_on_meta(make: Callable[[T], nn.Module], choice: T) -> int:
    with torch.device("meta"):
        return count_parameters(make(choice))


def multiply_adds(call: Callable[[], object]) -> int:
    """Those of the convolutions and matrix products of a forward pass, as layers define them."""
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
    """Operations of a recurrent layer, in one direction: its two matrices at each position."""
    return 2 * math.prod(x[:2]) * (math.prod(of_input) + math.prod(of_state))


def measure_costs(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Values]:
    """Memory of each call at its peak, and its seconds in each round."""
    for call in calls.values():
        call()  # warms up
    peaks = {name: measure_peak_memory(call, "cpu") for name, call in calls.items()}
    seconds = time_in_turns(calls, rounds)
    return {name: {"seconds": seconds[name], "peak_bytes": peaks[name]} for name in calls}


def time_in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, call in calls.items():
            seconds[name].append(time_call(call, "cpu"))
    return seconds


def compare_times(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """The median over rounds of how many times as long it takes."""
    return median(a / b for a, b in zip(seconds, reference, strict=True))


def make_trainer_config(steps: int, batch: int, rate: float, seed: int) -> TrainerConfig:
    """A tenth of the steps warm up, a cosine to 0 follows."""
    return TrainerConfig(
        steps=steps,
        batch_size=batch,
        learning_rate=rate,
        warmup_steps=max(1, steps // 10),
        tracker="none",
        seed=seed,
    )


def make_step(task: Task, config: TrainerConfig, batch: Tensor) -> Callable[[], object]:
    """A training step of a model on a batch, to be measured."""
    optimization = Optimization(task, config, make_accelerator(config))
    return partial(optimization.step, [batch], config.steps - 1)


def train(
    task: Task, config: TrainerConfig, batches: Callable[[int], Tensor], judge: Judge
) -> Values:
    """Train, and judge a few times on the way.

    Args:
        batches: from a step to its batch.

    Returns:
        "loss" of each step (None where it was not finite), the "steps" at which the model was
        judged, and the "figures" there.
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
    """The batch of a step, of samples by number."""
    first = step * config.batch_size
    return torch.stack([samples[first + i] for i in range(config.batch_size)])


def make_motion_training(
    model: Any, motion: Path, window: int, config: TrainerConfig
) -> MotionTraining:
    """What a motion tokenizer learns from a file, whose end is held out, with its usual losses."""
    training = TrainConfig(
        model=model,
        data=DataConfig(folder=str(motion), window=window, held_out=HELD_OUT),
        loss=LossConfig(position=20.0, velocity=0.5),
        trainer=config,
    )
    torch.manual_seed(config.seed)
    return MotionTraining(training, make_accelerator(config))


def write_walk(folder: str) -> Path:
    """A motion file where there is no other: the procedural walk."""
    path = Path(folder, "walk.npz")
    write_motion(path, walk(WALK))
    return path


def find_best_rates(runs: Runs, figure: str, largest: bool) -> dict[str, str]:
    """For each variant the learning rate of the best mean of a last figure over seeds.

    Args:
        runs: by (variant, rate, seed).
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
    """Of each seed."""
    return [run["figures"][figure][-1] for run in select_runs(runs, variant, rate)]


def get_last_losses(runs: Runs, variant: str, rate: str) -> list[float]:
    """Of each seed the mean over the last tenth of the steps."""
    losses = [run["loss"] for run in select_runs(runs, variant, rate)]
    tails = [loss[-max(1, len(loss) // 10) :] for loss in losses]
    return [fmean(math.nan if x is None else x for x in tail) for tail in tails]


def select_runs(runs: Runs, variant: str, rate: str) -> list[Values]:
    return [values for key, values in runs.items() if key[:2] == (variant, rate)]


def average_curve(
    runs: Runs, variant: str, rate: str, figure: str
) -> tuple[list[int], list[float]]:
    """Steps, and the mean figure over seeds there."""
    chosen = select_runs(runs, variant, rate)
    curves = zip(*(values["figures"][figure] for values in chosen), strict=True)
    return chosen[0]["steps"], [fmean(values) for values in curves]


def format_spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and where there are several the range."""
    mean, smallest, largest = (format(f(values), f".{digits}f") for f in (fmean, min, max))
    return mean if len(values) == 1 else f"{mean} ({smallest} to {largest})"


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str], rates: str) -> None:
    """The options of the comparisons.

    Args:
        rates: what the learning rates are, for the help.
    """
    parser.add_argument("--motion", type=Path, help="motion to learn (default: a procedural walk)")
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


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fill in what depends on ``--quick``; on a bad option, a message and exit status 2."""
    for name, usual, quick in (("steps", 200, 4), ("seeds", 3, 1), ("rounds", 7, 2)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be positive, not {getattr(options, name)}")
    for rate in options.rates:
        if not 0 < rate < math.inf:
            parser.error(f"--rates must be positive, not {rate}")
    check_file(parser, options.json)
    if options.plot and not options.plot.is_dir():
        parser.error(f"--plot {options.plot} is no folder: make it first")
    if options.report and not (options.json and options.json.exists()):
        parser.error("--report shows the results of a file: name one with --json")


def collect_settings(options: argparse.Namespace) -> Values:
    """What results must have in common; nothing where they are only shown."""
    if options.report:
        return {}
    motion = options.motion.name if options.motion else "walk"
    size = "quick" if options.quick else "full"
    return {"size": size, "steps": options.steps, "motion": motion}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, with few colours: a third of the size."""
    from PIL import Image

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
        Image.open(temporary).convert("RGB").quantize(COLOURS).save(temporary, format="png")
