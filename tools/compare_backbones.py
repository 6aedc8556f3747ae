"""Compare backbones of a motion tokenizer at equal parameters: speed, errors, reach, stability.

Resnet1D, its convolutions as a plain CNN (no shortcuts, no dilation), an LSTM and a Transformer are
the bodies of the encoder and decoder of a small RVQ-VAE. The strided convolutions around them are
the same. All backbones see the same samples in the same order.

    python tools/compare_backbones.py --json backbones.json --plot .   # learns a procedural walk
    python tools/compare_backbones.py --motion recording.npz --rates 1e-3 4e-3
    python tools/compare_backbones.py --json backbones.json --only costs    # measure these again
    python tools/compare_backbones.py --json backbones.json --plot . --report  # show what is there
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

# Python finds only the folder of a script, so the root is added.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from motion import RVQVAE, RVQVAEConfig
from motion.config import FeatureSpec, QuantizerConfig, ResnetConfig
from motion.evaluate.evaluation import evaluate
from motion.features.recording import read_recording
from motion.networks.receptive import receptive_field
from motion.train.run import MotionTraining
from tools.backbones import (
    BackboneKind,
    Recall,
    Recaller,
    make_body,
    reach,
    recall_error,
    replace_bodies,
)
from tools.comparing import (
    HELD_OUT,
    Measurement,
    Results,
    Runs,
    Values,
    add_options,
    average_curve,
    check_options,
    collect_settings,
    compare_times,
    count_parameters,
    find_best_rates,
    find_motion,
    format_spread,
    get_last_figures,
    get_last_losses,
    make_batch,
    make_motion_training,
    make_step,
    make_trainer_config,
    measure_and_report,
    measure_costs,
    multiply_adds,
    save,
    time_in_turns,
    train,
)
from tools.measuring import exit_status, format_table, require
from wanvae.engine.training.config import TrainerConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The file that --plot writes.
PICTURE = "backbones.png"
PARTS = ("costs", "lengths", "training", "recall")
BACKBONES: tuple[BackboneKind, ...] = get_args(BackboneKind)
REFERENCE: BackboneKind = "resnet1d"
# A tokenizer is judged on the motion that it learns from, and on held-out motion.
FIGURES = ("seen", "held out")
THREADS = (1, 2)
# The number of sequences that judge a recaller.
JUDGED = 512


@dataclass(frozen=True)
class Size:
    """The sizes of models, data and tasks.

    Attributes:
        model: the tokenizer, with Resnet1D.
        window: frames of a piece of motion.
        batch: pieces of motion in a step.
        lengths: frames of the clips that are timed.
        width: channels of the bodies that recall values.
        distances: distances of the recall task.
        length: positions of the sequences of the recall task.
        sequences: sequences in a step of the recall task.
        recall_steps: training steps of the recall task.
    """

    model: RVQVAEConfig
    window: int
    batch: int
    lengths: tuple[int, ...]
    width: int
    distances: tuple[int, ...]
    length: int
    sequences: int
    recall_steps: int


FULL = Size(
    model=RVQVAEConfig(
        channels=330,
        code_dim=32,
        resnet=ResnetConfig(width=64, dropout=0.0),
        quantizer=QuantizerConfig(num_quantizers=4, codebook_size=128, dropout=0.0),
        features=FeatureSpec(rot6d="rows", root=False),
        fps=30.0,
    ),
    window=64,
    batch=16,
    lengths=(64, 256, 1024, 2048),
    width=32,
    distances=(1, 3, 4, 13, 14, 32, 128),
    length=160,
    sequences=24,
    recall_steps=400,
)
QUICK = replace(
    FULL,
    model=replace(
        FULL.model,
        resnet=ResnetConfig(width=8, depth=2, dropout=0.0),
        quantizer=QuantizerConfig(num_quantizers=1, codebook_size=8),
    ),
    window=16,
    batch=2,
    lengths=(16, 32),
    width=8,
    distances=(1, 8),
    length=12,
    sequences=4,
    recall_steps=4,
)


def make_training(
    size: Size, motion: Path, kind: BackboneKind, trainer: TrainerConfig
) -> MotionTraining:
    """Returns the training of a tokenizer with a backbone."""
    training = make_motion_training(size.model, motion, size.window, trainer)
    replace_bodies(training.model, kind)
    return training


def train_tokenizer(size: Size, motion: Path, kind: BackboneKind, trainer: TrainerConfig) -> Values:
    """Trains a tokenizer; returns losses, and errors on seen and on held-out motion."""
    training = make_training(size, motion, kind, trainer)
    recording = read_recording(motion, size.model)
    cut = int((1 - HELD_OUT) * len(recording))
    layers = [size.model.quantizer.num_quantizers]

    def judge(model: RVQVAE) -> dict[str, float]:
        parts = dict(zip(FIGURES, (recording[:cut], recording[cut:]), strict=True))
        return {
            name: evaluate(model, [part], numbers_of_layers=layers).mpjpe[-1]
            for name, part in parts.items()
        }

    batches = partial(make_batch, training.data.windows, trainer)
    return train(training.task(), trainer, batches, judge)


def costs(size: Size, motion: Path, rounds: int) -> Values:
    """Returns parameters, multiply-adds, seconds and memory of a step of each tokenizer."""
    trainer = make_trainer_config(1, size.batch, 1e-3, 0)
    trainings = {kind: make_training(size, motion, kind, trainer) for kind in BACKBONES}
    batch = make_batch(trainings[REFERENCE].data.windows, trainer, 0)
    steps = {kind: make_step(each.task(), trainer, batch) for kind, each in trainings.items()}
    measured = measure_costs(steps, rounds)
    return {
        kind: {
            "parameters": count_parameters(each.model),
            "multiply_adds": multiply_adds(partial(each.model, batch)) / len(batch),
            **measured[kind],
        }
        for kind, each in trainings.items()
    }


def time_lengths(size: Size, rounds: int) -> Values:
    """Returns seconds of an encoder on one clip, by task, backbone, length and threads."""
    torch.manual_seed(0)
    encoders = {kind: RVQVAE(size.model).encoder for kind in BACKBONES}
    for kind, encoder in encoders.items():
        replace_bodies(encoder, kind)
    found: Values = {}
    before = torch.get_num_threads()
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            for length in size.lengths:
                x = torch.randn(1, size.model.channels, length)
                for what, call in (("encode", encode), ("learn", learn)):
                    calls = {kind: partial(call, each, x) for kind, each in encoders.items()}
                    time_in_turns(calls, 1)  # warms up
                    for kind, seconds in time_in_turns(calls, rounds).items():
                        found[f"{what} {kind} {length} {threads}"] = seconds
    finally:
        torch.set_num_threads(before)
    return found


@torch.no_grad()
def encode(encoder: nn.Module, x: Tensor) -> None:
    encoder(x)


def learn(encoder: nn.Module, x: Tensor) -> None:
    """Runs forward and backward."""
    encoder(x).square().mean().backward()


def train_to_recall(size: Size, kind: BackboneKind, distance: int, rate: float) -> Values:
    """Trains a body to recall values at a distance; returns its error (1 is chance)."""
    config = size.model.resnet
    task = Recall(distance, size.length)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    body = make_body(kind, size.width, config.depth, config.dilation_growth_rate[0])
    model = Recaller(body, size.width)
    trainer = make_trainer_config(size.recall_steps, size.sequences, rate, 0)
    optimizer = torch.optim.AdamW(model.parameters(), rate, trainer.betas, weight_decay=0.0)
    for step in range(trainer.steps):
        optimizer.param_groups[0]["lr"] = rate * trainer.schedule(step)
        recall_error(model, task.batch(size.sequences, generator)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), trainer.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return {"error": recall_error(model, task.batch(JUDGED, generator)).item()}


def measurements(options: argparse.Namespace, size: Size, folder: str) -> Iterator[Measurement]:
    """Yields all measurements."""
    motion = find_motion(options, size.model, size.window, folder)
    yield Measurement("costs", partial(costs, size, motion, options.rounds))
    yield Measurement("lengths", partial(time_lengths, size, options.rounds))
    for distance in size.distances:
        for kind in BACKBONES:
            call = partial(train_to_recall, size, kind, distance, options.recall_rate)
            yield Measurement(f"recall/{kind}/{distance}", call)
    for seed in range(options.seeds):
        for rate in options.rates:
            for kind in BACKBONES:
                trainer = make_trainer_config(options.steps, size.batch, rate, seed)
                call = partial(train_tokenizer, size, motion, kind, trainer)
                yield Measurement(f"training/{kind}/{rate:g}/{seed}", call)


def report(results: Results) -> Iterator[str]:
    """Yields Markdown tables of the results that exist."""
    yield from results.description()
    if results.part("costs"):
        lengths = results.part("lengths").get((), {})
        costs, runs = results.part("costs")[()], results.part("training")
        yield "\n" + make_tokenizer_table(costs, runs, lengths)
    if results.part("recall"):
        yield "\n" + make_recall_table(collect_recall_errors(results))


def make_tokenizer_table(costs: Values, runs: Runs, lengths: Values) -> str:
    """Returns a table with a row for each backbone, and errors at each learning rate."""
    rates = sorted({rate for _, rate, _ in runs}, key=float)
    heading = ["backbone", "parameters", "multiply-adds", "memory", "time of a step"]
    heading += ["2 threads", "a frame of the longest clip"] if lengths else []
    for rate in rates:
        heading += [f"loss at {rate}", *(f"{part}, mm" for part in FIGURES)]
    rows = [heading]
    for kind, cost in costs.items():
        row = [
            kind,
            f"{cost['parameters']:,}",
            f"{cost['multiply_adds'] / 1e6:,.1f} M",
            f"{cost['peak_bytes'] / 1e6:.0f} MB",
            f"{compare_times(cost['seconds'], costs[REFERENCE]['seconds']):.2f}",
        ]
        row += [f"{value:.2f}" for value in parallelism(kind, lengths)] if lengths else []
        for rate in rates:
            row.append(cell(get_last_losses(runs, kind, rate), digits=3))
            row += [cell(get_last_figures(runs, kind, rate, part)) for part in FIGURES]
        rows.append(row)
    return format_table(rows, labels=1)


def cell(values: Sequence[float], digits: int = 1) -> str:
    return format_spread(values, digits) if values else "-"


def parallelism(kind: str, lengths: Values) -> tuple[float, float]:
    """Returns the speedup of two threads, and the relative time of a frame of the longest clip.

    The speedup says how many times as fast as one thread two threads encode the longest clip. The
    time of a frame is relative to a frame of the shortest clip, with one thread.
    """
    counts = sorted({int(key.split()[2]) for key in lengths})
    shortest, longest = counts[0], counts[-1]
    one, two = (median(lengths[f"encode {kind} {longest} {n}"]) for n in THREADS)
    short = median(lengths[f"encode {kind} {shortest} {THREADS[0]}"])
    return one / two, (one / longest) / (short / shortest)


def collect_recall_errors(results: Results) -> dict[str, dict[int, float]]:
    """Returns the errors of each backbone by distance."""
    errors: dict[str, dict[int, float]] = {}
    for (kind, distance), values in results.part("recall").items():
        errors.setdefault(kind, {})[int(distance)] = values["error"]
    return errors


def make_recall_table(errors: Mapping[str, Mapping[int, float]]) -> str:
    distances = sorted({distance for each in errors.values() for distance in each})
    rows = [["error at distance", *map(str, distances)]]
    for kind, each in errors.items():
        rows.append([kind, *(f"{each[d]:.2f}" if d in each else "-" for d in distances)])
    return format_table(rows, labels=1)


def plot(folder: Path, results: Results, size: Size) -> None:
    """Writes backbones.png, with a panel for each result that exists."""
    from matplotlib.figure import Figure

    errors, runs = collect_recall_errors(results), results.part("training")
    lengths = results.part("lengths").get((), {})
    drawings: list[Callable[[Axes], None]] = []
    drawings += [partial(draw_recall, errors=errors, size=size)] if errors else []
    drawings += [partial(draw_lengths, lengths=lengths)] if lengths else []
    if runs:
        drawings += [partial(draw_training, runs=runs), partial(draw_stability, runs=runs)]
    if not drawings:
        return
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for place, draw in enumerate(drawings):
        axes = figure.add_subplot(2, 2, place + 1)
        draw(axes)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    save(figure, folder / PICTURE)


def draw_recall(axes: Axes, errors: Mapping[str, Mapping[int, float]], size: Size) -> None:
    """Draws error against distance; dotted lines show how far limited backbones see."""
    for place, kind in enumerate(BACKBONES):
        found = errors.get(kind, {})
        distances = sorted(found)
        values = [found[distance] for distance in distances]
        axes.plot(distances, values, marker=".", color=f"C{place}", label=kind)
        if math.isfinite(find_reach(size, kind)):
            axes.axvline(find_reach(size, kind), color=f"C{place}", linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="positions back to the value", ylabel="error (1 is chance)")


def draw_lengths(axes: Axes, lengths: Values) -> None:
    """Draws the time of a frame against the length of a clip, with one thread."""
    for place, kind in enumerate(BACKBONES):
        points = [
            (int(length), 1e6 * median(seconds) / int(length))
            for (what, of_kind, length, threads), seconds in (
                (key.split(), seconds) for key, seconds in lengths.items()
            )
            if (what, of_kind, int(threads)) == ("encode", kind, THREADS[0])
        ]
        axes.plot(*zip(*points, strict=True), marker=".", color=f"C{place}", label=kind)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yscale("log")
    axes.set(xlabel="frames of a clip", ylabel="microseconds to encode a frame")


def draw_training(axes: Axes, runs: Runs) -> None:
    """Draws held-out error against steps, at the best learning rate."""
    for kind, rate in find_best_rates(runs, "held out", largest=False).items():
        steps, values = average_curve(runs, kind, rate, "held out")
        axes.plot(steps, values, marker=".", color=f"C{BACKBONES.index(kind)}", label=kind)
    axes.set(xlabel="steps", ylabel="held out: MPJPE (mm)")


def draw_stability(axes: Axes, runs: Runs) -> None:
    """Draws the error of each seed on seen motion, by learning rate."""
    rates = sorted({rate for _, rate, _ in runs}, key=float)
    for place, kind in enumerate(BACKBONES):
        for number, rate in enumerate(rates):
            values = get_last_figures(runs, kind, rate, "seen")
            at = [number + (place - 1.5) / 8] * len(values)
            axes.plot(at, values, "o", color=f"C{place}", alpha=0.7)
    axes.set_xticks(range(len(rates)), rates)
    axes.set(xlabel="learning rate; a point for each seed", ylabel="seen: MPJPE (mm)")


def reaches(size: Size) -> Iterator[str]:
    """Yields how far bodies and tokens see, by formula."""
    for kind in BACKBONES:
        yield f"{kind}: {find_reach(size, kind):g} positions to each side"
    seen = receptive_field(size.model)
    yield f"a token of the Resnet1D model sees {seen.frames} frames"


def find_reach(size: Size, kind: BackboneKind) -> float:
    config = size.model.resnet
    return reach(kind, config.depth, config.dilation_growth_rate[0])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="compare_backbones", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add_options(parser, PARTS, "learning rates to try (default: 1e-3)")
    parser.add_argument(
        "--recall-rate",
        type=float,
        default=3e-3,
        help="learning rate of the task that needs a long view (default: 3e-3)",
    )
    options = parser.parse_args(arguments)
    check_options(parser, options, [PICTURE])
    return options


def run(options: argparse.Namespace) -> None:
    """Measures what is missing, and prints a report."""
    require(*(["matplotlib"] if options.plot else []))
    results = Results(options.json, collect_settings(options))
    size = QUICK if results.settings["size"] == "quick" else FULL
    measure_and_report(
        options,
        results,
        partial(measurements, options, size),
        lambda: (*report(results), *reaches(size)),
    )
    if options.plot:
        plot(options.plot, results, size)


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status(partial(run, parse(arguments)), "compare_backbones")


if __name__ == "__main__":
    sys.exit(main())
