"""Compare a training step of motion tokenizers in plain PyTorch to ours.

The peer has the quantizer of vector-quantize-pytorch. Both sides have the same first weights and
get the same motion, on the CPU: forward pass, losses, backward pass, clipped gradients, AdamW. Ours
is a step as the training loop takes it. Steps alternate between the two in one process. With one
thread the times are of the processor, so that other programs disturb them less. With more threads
they are of the clock.

    python tools/benchmark.py motion-step                      # all configs, with 1 and 2 threads
    python tools/benchmark.py motion-step --configs beat2_330 --threads 1 --repeats 9
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import torch
import yaml
from torch import Tensor, nn

from motion import RVQVAE
from motion.config import RVQVAEConfig
from motion.features.rotations import from_rot6d
from motion.features.statistics import FeatureStatistics
from motion.skeleton.packaged import HUMANML3D, SMPLX
from motion.skeleton.tree import Skeleton, forward_kinematics
from motion.train.losses import ERRORS, MotionLosses, find_position_channels
from motion.train.run import TrainConfig, figures_of
from motion.train.windows import MotionWindows
from tools.benchmark_motion import PEER, Block, import_peer_quantizer, named_model
from tools.measuring import (
    add_options,
    check_options,
    describe,
    exit_status,
    format_table,
    measure_all,
    require,
    write_json,
)
from wanvae.engine.config import from_json_dict
from wanvae.engine.memory import keep_freed_memory
from wanvae.engine.training.loop import make_accelerator
from wanvae.engine.training.optimization import Optimization
from wanvae.engine.training.task import StepLosses, Task

CONFIGS = "beat2_330", "beat2_330_growth3", "humanml3d"
FOLDER = Path(__file__).parents[1] / "configs" / "motion"
SKELETONS = {330: SMPLX, 263: HUMANML3D}
# The most time of a step of ours for one of the peer.
TARGET = 0.6


@dataclass(frozen=True)
class StepWorkload:
    """A training step to measure.

    Attributes:
        config: a config of configs/motion.
        threads: number of CPU threads.
        batch: number of windows; None is the number of the config.
    """

    config: str
    threads: int
    batch: int | None


@dataclass(frozen=True)
class Result:
    """The measurements of a training step.

    Attributes:
        seconds: seconds of "ours" and "peer" in each round.
    """

    job: StepWorkload
    seconds: Mapping[str, Sequence[float]]

    def summary(self) -> dict[str, float]:
        """Returns the numbers of the report, by their headings."""
        ours, peer = (median(self.seconds[side]) for side in ("ours", "peer"))
        return {"ours s": ours, "peer s": peer, "ours / peer": ours / peer, "target": TARGET}


class DroppingBlock(Block):
    """A residual block of the published models, with their dropout."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__(width, dilation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.conv2(torch.relu(self.conv1(torch.relu(x)))))


class PeerTokenizer(nn.Module):
    """The published network around the peer's quantizer; parameter names of both networks are ours.

    ``forward`` returns the output ``(B, T, D)`` and the commitment loss.
    """

    def __init__(self, config: RVQVAEConfig) -> None:
        super().__init__()
        resnet, quantizer = config.resnet, config.quantizer
        width, growths = resnet.width, resnet.dilation_growth_rate

        def blocks(growth: int) -> nn.Module:
            dilations = [growth**depth for depth in reversed(range(resnet.depth))]
            return named_model(*(DroppingBlock(width, d, resnet.dropout) for d in dilations))

        down = (nn.Sequential(nn.Conv1d(width, width, 4, 2, 1), blocks(g)) for g in growths)
        up = (
            nn.Sequential(blocks(g), nn.Upsample(scale_factor=2), nn.Conv1d(width, width, 3, 1, 1))
            for g in reversed(growths)
        )
        self.encoder = named_model(
            nn.Conv1d(config.channels, width, 3, 1, 1),
            nn.ReLU(),
            *down,
            nn.Conv1d(width, config.code_dim, 3, 1, 1),
        )
        self.decoder = named_model(
            nn.Conv1d(config.code_dim, width, 3, 1, 1),
            nn.ReLU(),
            *up,
            nn.Conv1d(width, width, 3, 1, 1),
            nn.ReLU(),
            nn.Conv1d(width, config.channels, 3, 1, 1),
        )
        self.quantizer = import_peer_quantizer()(
            dim=config.code_dim,
            num_quantizers=quantizer.num_quantizers,
            codebook_size=quantizer.codebook_size,
            decay=quantizer.decay,
            threshold_ema_dead_code=quantizer.revive_below,
            quantize_dropout=quantizer.dropout > 0,
            kmeans_init=quantizer.initialization == "kmeans",
            kmeans_iters=quantizer.kmeans_iterations,
            # Our quantizer passes gradients straight through.
            rotation_trick=False,
        )

    def forward(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        latents, _, losses = self.quantizer(self.encoder(motion.mT).mT)
        return self.decoder(latents.mT).mT, losses.mean()


class PlainLosses:
    """The losses of a config, as one writes them in PyTorch: joints one after another."""

    def __init__(self, config: TrainConfig, model: RVQVAE, skeleton: Skeleton) -> None:
        self.config, self.normalizer, self.skeleton = config.loss, model.normalizer, skeleton
        self.channels = find_position_channels(model.config, skeleton.joints)
        self.features = model.config.features

    def __call__(self, output: Tensor, target: Tensor, commitment: Tensor) -> Tensor:
        weights, error = self.config, ERRORS[self.config.error]
        loss = weights.features * error(output, target) + weights.commitment * commitment
        loss = loss + weights.position * error(self._locate(output), self._locate(target))
        if weights.velocity:
            loss = loss + weights.velocity * error(output.diff(dim=1), target.diff(dim=1))
        return loss

    def _locate(self, features: Tensor) -> Tensor:
        if self.channels is not None or self.features is None:
            return features[..., self.channels]
        joints = self.skeleton.joints
        vectors = self.normalizer.denormalize(features)[..., : 6 * joints]
        rotations = from_rot6d(vectors.unflatten(-1, (joints, 6)), self.features.rot6d)
        origin = rotations.new_zeros(*features.shape[:-1], 3)
        return forward_kinematics(self.skeleton, rotations, origin).positions


def read_config(name: str) -> TrainConfig:
    """Returns a training config of configs/motion."""
    return from_json_dict(TrainConfig, yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def make_steps(config: TrainConfig, batch: int | None) -> dict[str, Callable[[], float]]:
    """Returns for each side a training step on random motion, which returns its loss."""
    torch.manual_seed(0)
    trainer = config.trainer
    motion = torch.randn(batch or trainer.batch_size, config.data.window, config.model.channels)
    model = RVQVAE(config.model)
    model.normalizer.set(FeatureStatistics.fit([*motion[:64]]))
    peer = PeerTokenizer(config.model)
    for network in ("encoder", "decoder"):
        getattr(peer, network).load_state_dict(getattr(model, network).state_dict())
    skeleton = SKELETONS[config.model.channels]
    return {
        "ours": make_our_step(config, model, skeleton, motion),
        "peer": make_peer_step(config, model, peer.train(), skeleton, motion),
    }


def make_our_step(
    config: TrainConfig, model: RVQVAE, skeleton: Skeleton, motion: Tensor
) -> Callable[[], float]:
    """Returns a step of the training loop."""
    losses_of = MotionLosses(config.loss, model, skeleton)

    def losses(
        model: nn.Module, discriminator: nn.Module | None, motion: Tensor, step: int
    ) -> StepLosses:
        reconstruction = model(motion)
        return StepLosses(losses_of(reconstruction), figures_of(reconstruction.quantized))

    def never(*_: object) -> None:
        raise AssertionError("a single step neither loads nor saves")

    task = Task(
        model=model,
        samples=MotionWindows([motion[0]], motion.shape[1], 0),
        losses=losses,
        save_weights=never,
        load_weights=never,
        config=config,
        describe_data=lambda: iter(()),
    )
    optimization = Optimization(task, config.trainer, make_accelerator(config.trainer))
    # In the middle of the warm-up, so that the weights change.
    step = config.trainer.warmup_steps // 2
    return lambda: optimization.step([motion], step)[0]["loss"].item()


def make_peer_step(
    config: TrainConfig, model: RVQVAE, peer: nn.Module, skeleton: Skeleton, motion: Tensor
) -> Callable[[], float]:
    """Returns a step in plain PyTorch."""
    trainer = config.trainer
    optimizer = torch.optim.AdamW(
        peer.parameters(),
        lr=trainer.learning_rate / 2,
        betas=trainer.betas,
        weight_decay=trainer.weight_decay,
    )
    losses_of = PlainLosses(config, model, skeleton)

    def step() -> float:
        target = model.normalizer.normalize(motion)
        output, commitment = peer(target)
        loss = losses_of(output, target, commitment)
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), trainer.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def measure(job: StepWorkload, repeats: int, scale: float) -> Result:
    """Returns all measurements of a training step."""
    before, clock = torch.get_num_threads(), process_time if job.threads == 1 else perf_counter
    torch.set_num_threads(job.threads)
    try:
        with TemporaryDirectory(prefix="wanvae-benchmark-") as folder:
            config = read_config(job.config)
            window = max(4, round(config.data.window * scale / 4) * 4)
            data, trainer = replace(config.data, window=window), replace(config.trainer, run=folder)
            steps = make_steps(replace(config, data=data, trainer=trainer), job.batch)
            seconds: dict[str, list[float]] = {side: [] for side in steps}
            for side in steps:
                steps[side]()  # makes the codebooks
            for _ in range(repeats):
                for side, step in steps.items():
                    began = clock()
                    step()
                    seconds[side].append(clock() - began)
    finally:
        torch.set_num_threads(before)
    return Result(job, seconds)


def report(results: Sequence[Result]) -> str:
    """Returns a Markdown table."""
    rows = [["config", "threads", *results[0].summary()]]
    for result in results:
        cells = [f"{x:.2f}" for x in result.summary().values()]
        rows.append([result.job.config, str(result.job.threads), *cells])
    return format_table(rows, labels=1)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="benchmark motion-step", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads (default: 1 2)"
    )
    parser.add_argument("--batch", type=int, help="windows of a step (default: as the config says)")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    if min(*options.threads, options.batch or 1) < 1:
        parser.error("--threads and --batch must be positive")
    return options


def run(options: argparse.Namespace) -> None:
    """Measures all steps and prints a report."""
    require(PEER)
    keep_freed_memory()  # as the command that trains does
    header = describe("training steps of motion models on cpu", PEER)
    jobs = [
        StepWorkload(config, threads, options.batch)
        for config in options.configs
        for threads in options.threads
    ]
    results = measure_all(
        jobs,
        lambda job: measure(job, options.repeats, options.size_scale),
        lambda results: f"{header}\n\n{report(results)}",
    )
    if options.json:
        entries = (asdict(result) | {"summary": result.summary()} for result in results)
        write_json(options.json, header, entries)


def main(arguments: Sequence[str]) -> int:
    return exit_status(partial(run, parse(arguments)))
