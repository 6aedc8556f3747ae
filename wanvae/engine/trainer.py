"""The training loop, for any model: accelerate, checkpoints, resume.

Everything random in a step follows from (seed, step, rank), and a sample from (seed, its number):
a checkpoint is the weights, the optimizer and a step count.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

WEIGHTS = "model.safetensors"
PROGRESS = "progress.json"


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How to train, whatever the model.

    Attributes:
        run: directory of the run: checkpoints, log.jsonl and, at the end, model.safetensors. A run
            that has checkpoints is continued from the newest.
        steps: optimizer steps.
        batch_size: samples per step on each process.
        learning_rate: at its highest, after warm-up.
        warmup_steps: steps of linear warm-up; a cosine to 0 at the last step follows.
        betas: of AdamW.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest to keep.
        log_every: steps between lines in log.jsonl.
        compile: run the model through torch.compile; needs a C++ compiler.
        workers: processes that load data, for each process that trains.
        seed: of weights, samples and noise.
    """

    run: str = "runs/latest"
    steps: int = 100_000
    batch_size: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 10
    compile: bool = False
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "checkpoint_every", "keep_checkpoints", "log_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Task:
    """What to train: a model, its data, its loss, and how its weights are kept.

    Attributes:
        model: called by ``losses`` only, so that accelerate may wrap it.
        samples: gives sample ``number`` for any number from 0 on.
        losses: from (wrapped model, batch) to (loss terms that are summed, figures to report).
        save_weights: writes the model to a file.
        load_weights: reads such a file into the model.
    """

    model: nn.Module
    samples: Dataset
    losses: Callable[[nn.Module, Tensor], tuple[dict[str, Tensor], dict[str, Tensor]]]
    save_weights: Callable[[nn.Module, Path], None]
    load_weights: Callable[[nn.Module, Path], None]


class NotFiniteError(RuntimeError):
    """The loss became infinite or NaN."""


def train(task: Task, config: TrainerConfig, accelerator: Accelerator) -> bool:
    """Train from the newest checkpoint of the run, or from the start.

    Returns whether all steps are done: False after SIGINT or SIGTERM, which end the run with a
    checkpoint once the step under way is complete.
    """
    optimizer = AdamW(
        task.model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    model, optimizer = accelerator.prepare(task.model, optimizer)
    forward = torch.compile(model) if config.compile else model
    checkpoints = Checkpoints(task, config, accelerator)
    step = checkpoints.load_newest()
    batches = load_batches(task.samples, config, accelerator, step)
    log = Log(config, accelerator, step)
    model.train()
    with log, stop_on_signal(accelerator):
        for batch in batches:
            torch.manual_seed(step_seed(config.seed, step, accelerator.process_index))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            terms, figures = task.losses(forward, batch)
            loss = torch.stack(list(terms.values())).sum()
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), config.gradient_clip)
            # A gradient scaler, of float16, makes up for overflows of the gradient by itself.
            if not torch.isfinite(loss if accelerator.scaler else norm):
                raise NotFiniteError(
                    f"the gradient is {norm.item()} at step {step} ("
                    + ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
                    + "): lower the learning rate, then run again to go on from the last checkpoint"
                )
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            log.update(step, {"loss": loss, **terms, **figures, "gradient_norm": norm})
            stop = accelerator.check_trigger()
            if stop or step % config.checkpoint_every == 0 or step == config.steps:
                checkpoints.save(step)
            if stop:
                break
    done = step >= config.steps
    if done and accelerator.is_main_process:
        task.save_weights(accelerator.unwrap_model(model), Path(config.run) / WEIGHTS)
    return done


def load_batches(
    samples: Dataset, config: TrainerConfig, accelerator: Accelerator, step: int
) -> DataLoader:
    """Batches from ``step`` on: each step takes the next numbers, shared out over processes."""
    per_step = config.batch_size * accelerator.num_processes
    loader = DataLoader(
        samples,
        batch_size=config.batch_size,
        sampler=range(step * per_step, config.steps * per_step),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    return accelerator.prepare(loader)


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for everything random in one step of one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


class Checkpoints:
    """Complete checkpoints in ``run/checkpoints/step-N``, written aside and then renamed."""

    def __init__(self, task: Task, config: TrainerConfig, accelerator: Accelerator) -> None:
        self.folder = Path(config.run) / "checkpoints"
        self.keep = config.keep_checkpoints
        self.accelerator = accelerator

        # accelerate saves and loads the optimizer; the weights are in the model's own format.
        def save_weights(models: list[nn.Module], weights: list[dict], folder: str) -> None:
            weights.clear()
            if accelerator.is_main_process:
                task.save_weights(accelerator.unwrap_model(models[0]), Path(folder) / WEIGHTS)

        def load_weights(models: list[nn.Module], folder: str) -> None:
            task.load_weights(accelerator.unwrap_model(models.pop()), Path(folder) / WEIGHTS)

        accelerator.register_save_state_pre_hook(save_weights)
        accelerator.register_load_state_pre_hook(load_weights)

    def save(self, step: int) -> None:
        """Write a checkpoint and remove those beyond the newest ``keep``."""
        final = self.folder / f"step-{step:08d}"
        partial = self.folder / f".{final.name}.partial"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        if main:
            (partial / PROGRESS).write_text(json.dumps({"step": step}))
        self.accelerator.wait_for_everyone()
        if main:
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in self.complete()[: -self.keep]:
                shutil.rmtree(old)

    def load_newest(self) -> int:
        """Load the newest checkpoint; returns the number of steps done."""
        complete = self.complete()
        if not complete:
            return 0
        newest = complete[-1]
        self.accelerator.print(f"going on from {newest}")
        self.accelerator.load_state(str(newest))
        return json.loads((newest / PROGRESS).read_text())["step"]

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))


class Log:
    """Progress bar and ``run/log.jsonl``, on the main process only."""

    def __init__(self, config: TrainerConfig, accelerator: Accelerator, step: int) -> None:
        self.path = Path(config.run) / "log.jsonl"
        self.every = config.log_every
        self.accelerator = accelerator
        self.bar = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            disable=not accelerator.is_main_process,
            smoothing=0.05,
        )
        self.started = time.time()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def update(self, step: int, values: dict[str, Tensor]) -> None:
        """Count a step; every ``log_every`` steps report its figures, the mean over processes."""
        self.bar.update()
        if step % self.every:
            return
        local = torch.stack([value.detach().float() for value in values.values()])
        means = self.accelerator.reduce(local, reduction="mean").tolist()
        if not self.accelerator.is_main_process:
            return
        figures = {name: float(f"{mean:.5g}") for name, mean in zip(values, means, strict=True)}
        self.bar.set_postfix(figures, refresh=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            seconds = round(time.time() - self.started, 1)
            file.write(json.dumps({"step": step, "seconds": seconds, **figures}) + "\n")


@contextmanager
def stop_on_signal(accelerator: Accelerator) -> Iterator[None]:
    """SIGINT and SIGTERM set accelerate's trigger, which all processes see after the same step."""
    previous = {
        number: signal.signal(number, lambda *_: accelerator.set_trigger())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
