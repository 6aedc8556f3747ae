"""Compare the quantizers of motion tokenizers at equal bits: error, use of codes, time.

Each token has the same number of codes, of the same size, whatever the quantizer. All tokenizers
see the same samples in the same order.

    python tools/compare_quantizers.py --json quantizers.json              # a procedural walk
    python tools/compare_quantizers.py --motion recording.npz --steps 600
    python tools/compare_quantizers.py --json quantizers.json --report     # show what is there

Times are of the processor, in one thread: another program disturbs them little.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from time import process_time
from typing import Any

import torch
from torch import Tensor

# Python finds only the folder of a script, so the root is added.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from motion import ResidualVQ, RVQVAEConfig
from motion.config import FeatureSpec, ResnetConfig
from motion.evaluate.evaluation import evaluate
from motion.features.recording import read_recording
from motion.model import RVQVAE
from motion.quantizer_config import FSQConfig, ImplicitConfig, QuantizerConfig
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
    count_parameters,
    find_best_rates,
    find_motion,
    format_spread,
    get_last_figures,
    make_batch,
    make_motion_training,
    make_trainer_config,
    measure_and_report,
    save,
    train,
)
from tools.measuring import exit_status, format_table, require
from wanvae.engine.training.config import TrainerConfig

# The file that --plot writes.
PICTURE = "quantizers.png"
PARTS = ("costs", "training")
# A tokenizer is judged on the motion that it learns from, and on held-out motion.
PLACES = ("seen", "held out")
REFERENCE = "ema"
# Quantizers, by what differs from moving averages with straight-through gradients.
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "ema, rotation": {"estimator": "rotation"},
    "ema, 2 groups": {"groups": 2},
    "ema, 16 channels, cosine": {"codebook_dim": 16, "metric": "cosine"},
    "learned": {"kind": "learned"},
    "learned, orthogonal": {"kind": "learned", "orthogonality": 1.0},
    "simvq": {"kind": "simvq"},
    "simvq, rotation": {"kind": "simvq", "estimator": "rotation"},
    "implicit, 16 channels": {"kind": "implicit", "codebook_dim": 16},
    "fsq": {"kind": "fsq"},
    "lfq": {"kind": "lfq"},
}


@dataclass(frozen=True)
class Size:
    """The sizes of models and data.

    Attributes:
        model: the tokenizer, with the reference quantizer.
        levels: values of the channels of "fsq"; their product is the size of a codebook.
        window: frames of a piece of motion.
        batch: pieces of motion in a step.
        latents: latents that are quantized to measure times.
    """

    model: RVQVAEConfig
    levels: tuple[int, ...]
    window: int
    batch: int
    latents: int

    def quantizer(self, variant: str) -> QuantizerConfig:
        """Returns the quantizer of a variant."""
        details = {"fsq": FSQConfig(levels=self.levels), "implicit": ImplicitConfig(depth=2)}
        return replace(self.model.quantizer, **details, **VARIANTS[variant])


FULL = Size(
    model=RVQVAEConfig(
        channels=330,
        code_dim=64,
        resnet=ResnetConfig(width=64, dropout=0.0),
        quantizer=QuantizerConfig(num_quantizers=4, codebook_size=256, dropout=0.0),
        features=FeatureSpec(rot6d="rows", root=False),
        fps=30.0,
    ),
    levels=(8, 8, 4),
    window=64,
    batch=8,
    latents=4096,
)
QUICK = replace(
    FULL,
    model=replace(
        FULL.model,
        code_dim=8,
        resnet=ResnetConfig(width=8, depth=1, dropout=0.0),
        quantizer=QuantizerConfig(num_quantizers=2, codebook_size=8, dropout=0.0),
    ),
    levels=(4, 2),
    window=16,
    batch=2,
    latents=64,
)


def train_tokenizer(size: Size, motion: Path, variant: str, trainer: TrainerConfig) -> Values:
    """Trains a tokenizer; returns losses, and errors and use of codes of both parts of a file."""
    model = replace(size.model, quantizer=size.quantizer(variant))
    training = make_motion_training(model, motion, size.window, trainer)
    recording = read_recording(motion, model)
    cut = int((1 - HELD_OUT) * len(recording))
    parts = dict(zip(PLACES, (recording[:cut], recording[cut:]), strict=True))

    def judge(model: RVQVAE) -> dict[str, float]:
        layers = [1, model.config.quantizer.num_quantizers]
        found = {
            place: evaluate(model, [part], numbers_of_layers=layers)
            for place, part in parts.items()
        }
        return {
            **{place: of_place.mpjpe[-1] for place, of_place in found.items()},
            "first code": found["seen"].mpjpe[0],
            "perplexity": found["seen"].perplexity.mean().item(),
            "used": found["seen"].code_use.mean().item(),
        }

    batches = partial(make_batch, training.data.windows, trainer)
    return train(training.task(), trainer, batches, judge)


def measure_costs(size: Size, rounds: int) -> Values:
    """Returns the parameters of each quantizer, and processor seconds by what it does."""
    shape = 8, size.model.code_dim, size.latents // 8
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found: Values = {}
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for variant in VARIANTS:
        torch.manual_seed(0)
        quantizer = ResidualVQ(size.quantizer(variant), size.model.code_dim)
        quantizer(latents)
        encoder = ResidualVQ(quantizer.config, size.model.code_dim).eval()
        encoder.load_state_dict(quantizer.state_dict())
        calls[variant, "encode"] = partial(encoder.encode, latents)
        calls[variant, "decode"] = partial(encoder.decode, encoder.encode(latents))
        calls[variant, "learn"] = partial(learn, quantizer, latents)
        found[variant] = {"parameters": count_parameters(quantizer)}
    for (variant, what), call in calls.items():
        call()  # warms up
        found[variant][what] = []
    for _ in range(rounds):
        for (variant, what), call in calls.items():
            began = process_time()
            call()
            found[variant][what].append(process_time() - began)
    return found


def learn(quantizer: ResidualVQ, latents: Tensor) -> None:
    """Runs forward and backward, and learns."""
    result = quantizer(latents.clone().requires_grad_())
    terms = [result.commitment_loss, result.codebook_loss, result.regularization]
    total = result.latents.square().mean() + sum(term for term in terms if term is not None)
    total.backward()


def measurements(options: argparse.Namespace, size: Size, folder: str) -> Iterator[Measurement]:
    """Yields all measurements."""
    motion = find_motion(options, size.model, size.window, folder)
    yield Measurement("costs", partial(measure_costs, size, options.rounds))
    for seed, rate, variant in product(range(options.seeds), options.rates, options.variants):
        trainer = make_trainer_config(options.steps, size.batch, rate, seed)
        call = partial(train_tokenizer, size, motion, variant, trainer)
        yield Measurement(f"training/{variant}/{rate:g}/{seed}", call)


def report(results: Results, size: Size) -> Iterator[str]:
    """Yields Markdown: the settings, and a table."""
    yield from results.description()
    quantizer = size.model.quantizer
    bits = quantizer.num_quantizers * math.log2(quantizer.codebook_size)
    codes = f"{quantizer.num_quantizers} codes of {quantizer.codebook_size}"
    yield f"a token: {codes}, {bits:g} bits; {size.latents} latents are quantized for the times"
    costs, runs = results.part("costs").get((), {}), results.part("training")
    if costs and runs:
        yield "\n" + make_table(costs, runs)


def make_table(costs: Values, runs: Runs) -> str:
    """Returns a table with a row for each quantizer, at its best learning rate."""
    heading = ["quantizer", "seen, mm", "from the first code", "held out, mm", "perplexity"]
    heading += ["codes used (%)", "encode (ms)", "decode (ms)", "learn (ms)", "parameters"]
    rows = [[*heading, "learning rate"]]
    for variant, rate in find_best_rates(runs, "seen", largest=False).items():
        cost = costs[variant]
        last = partial(get_last_figures, runs, variant, rate)
        rows.append(
            [
                variant,
                *(format_spread(last(figure)) for figure in ("seen", "first code", "held out")),
                f"{fmean(last('perplexity')):.0f}",
                f"{100 * fmean(last('used')):.0f}",
                *(f"{1000 * median(cost[what]):.1f}" for what in ("encode", "decode", "learn")),
                f"{cost['parameters']:,}",
                rate,
            ]
        )
    return format_table(rows, labels=1)


def plot(folder: Path, runs: Runs) -> None:
    """Writes a picture: the error of the seen motion against steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    rates: Mapping[str, str] = find_best_rates(runs, "seen", largest=False)
    for variant, rate in rates.items():
        steps, values = average_curve(runs, variant, rate, "seen")
        axes.semilogy(steps, values, marker=".", label=variant)
    axes.set(xlabel="steps", ylabel="seen: MPJPE (mm)")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save(figure, folder / PICTURE)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="compare_quantizers", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=[*VARIANTS],
        metavar="NAME",
        help=f"train these alone: {', '.join(map(repr, VARIANTS))}",
    )
    add_options(parser, PARTS, "learning rates; of each variant the best is shown (default: 1e-3)")
    options = parser.parse_args(arguments)
    check_options(parser, options, [PICTURE])
    return options


def run(options: argparse.Namespace) -> None:
    """Measures what is missing, and prints a report."""
    require(*(["matplotlib"] if options.plot else []))
    results = Results(options.json, collect_settings(options))
    size = QUICK if results.settings["size"] == "quick" else FULL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        missing = partial(measurements, options, size)
        measure_and_report(options, results, missing, partial(report, results, size))
    finally:
        torch.set_num_threads(threads)
    if options.plot and results.part("training"):
        plot(options.plot, results.part("training"))


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status(partial(run, parse(arguments)), "compare_quantizers")


if __name__ == "__main__":
    sys.exit(main())
