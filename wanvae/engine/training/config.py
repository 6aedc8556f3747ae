"""How to train any model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from wanvae.engine.config import check


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How to train any model.

    Attributes:
        run: folder of the run: report.html, config.yaml, run.json, log.jsonl, loss.png,
            checkpoints, previews and, at the end, model.safetensors. A run that has checkpoints
            goes on from the newest; what its result depends on must be the same, or it is refused.
            The steps may change, and what only concerns speed, log, checkpoints and processes.
            Several machines need a folder on a disk that all of them share.
        steps: optimizer steps.
        batch_size: samples at once on each process.
        accumulate: batches of one step on each process; their gradients are averaged.
        optimizer: "adamw", or plain "sgd" without momentum.
        learning_rate: the highest, after warm-up.
        warmup_steps: steps of linear warm-up; a cosine to 0 at the last step follows.
        betas: of AdamW.
        weight_decay: of the optimizer.
        gradient_clip: largest norm of the gradient.
        ema_decay: decay of the moving average of the weights, which the run evaluates and writes at
            the end; early steps have a smaller decay. 0 keeps no average.
        mixed_precision: dtype of the forward pass; by default the launcher says it.
        find_unused_parameters: with several processes, look in each step for parameters without a
            gradient, such as temporal ones for single frames. Without such parameters "false" is a
            little faster.
        most_skipped_steps: a step whose loss or gradient is not finite is skipped. More skipped
            steps in a row than this stop the run.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest to keep, besides the best.
        evaluate_every: steps between evaluations.
        best: the figure of the evaluation that chooses the best checkpoint.
        best_is: whether the best figure is the highest or the lowest.
        preview_every: steps between previews.
        log_every: steps between lines in log.jsonl. A line has the means over the steps since the
            line before, on all processes, without skipped steps.
        tracker: also log for TensorBoard, to tensorboard in the folder of the run.
        compile: compile the residual blocks with torch.compile, for each shape of a batch. The
            first steps take minutes. Needs a C++ compiler, and no FSDP.
        workers: processes that load data, for each process that trains.
        seed: of weights, samples and noise.
    """

    # What may be another when a run goes on. That accumulate fits the processes is checked apart.
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {
            "run",
            "steps",
            "accumulate",
            "find_unused_parameters",
            "most_skipped_steps",
            "checkpoint_every",
            "keep_checkpoints",
            "evaluate_every",
            "preview_every",
            "log_every",
            "tracker",
            "compile",
            "workers",
        }
    )

    run: str = "runs/latest"
    steps: int = 100_000
    batch_size: int = 1
    accumulate: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    find_unused_parameters: bool = True
    most_skipped_steps: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    evaluate_every: int = 1000
    best: str | None = None
    best_is: Literal["highest", "lowest"] = "highest"
    preview_every: int = 1000
    log_every: int = 10
    tracker: Literal["tensorboard", "none"] = "tensorboard"
    compile: bool = False
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        intervals = ("checkpoint_every", "evaluate_every", "preview_every", "log_every")
        for name in ("steps", "batch_size", "accumulate", "keep_checkpoints", *intervals):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in (
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "most_skipped_steps",
            "workers",
        ):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        check(self.gradient_clip > 0, "gradient_clip", self.gradient_clip, "above 0")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        in_range = all(0 <= beta < 1 for beta in self.betas)
        check(in_range, "betas", self.betas, "in [0, 1)")
        check(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")

    def schedule(self, step: int) -> float:
        """The learning rate in a step, counted from 0, as a share of the highest."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))

    def due(self, step: int, every: int) -> bool:
        """Whether ``step`` is a multiple of ``every``, or the last one."""
        return step % every == 0 or step == self.steps

    def samples_per_step(self, processes: int) -> int:
        """G: step s, counted from 0, takes the samples s * G to s * G + G - 1."""
        return self.batch_size * self.accumulate * processes
