"""The training loop, for any model: accelerate, an adversary, checkpoints, resume.

Everything random in a batch follows from (seed, step, its place in the step), and a sample from
(seed, its number): a run that goes on from a checkpoint, or on another number of processes, sees
what it would have seen.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset

from wanvae.engine.averaging import moving_average
from wanvae.engine.log import Log
from wanvae.engine.run_directory import WEIGHTS, Checkpoints
from wanvae.engine.task import Adversary, StepLosses, Task
from wanvae.engine.trainer_config import TrainerConfig

__all__ = [
    "Adversary",
    "NotFiniteError",
    "StepLosses",
    "Task",
    "TrainerConfig",
    "make_accelerator",
    "train",
]


# What has to be finite for a step to count.
DECISIVE = ("loss", "gradient_norm", "adversary_loss", "adversary_gradient_norm")


class NotFiniteError(RuntimeError):
    """The loss or its gradient was infinite or NaN too many times in a row."""


@dataclass(frozen=True)
class Learner:
    """A model as accelerate wraps it, with its optimizer and its highest learning rate."""

    model: nn.Module
    optimizer: Optimizer
    learning_rate: float


def make_accelerator(config: TrainerConfig) -> Accelerator:
    """The devices, processes and trackers of a run; made before anything that depends on them.

    Raises:
        ValueError: the tracker is not installed.
    """
    tracked = config.tracker == "tensorboard"
    if tracked and find_spec("tensorboard") is None:
        raise ValueError("tensorboard is not installed: pip install it, or set tracker to none")
    unused = config.find_unused_parameters
    return Accelerator(
        mixed_precision=config.mixed_precision,
        log_with="tensorboard" if tracked else None,
        project_dir=config.run,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )


def train(task: Task, config: TrainerConfig, accelerator: Accelerator) -> bool:
    """Train from the newest checkpoint of the run, or from the start.

    Returns whether all steps are done: False after SIGINT or SIGTERM, which end the run with a
    checkpoint once the step under way is complete.

    Raises:
        ValueError: the task and the config do not fit.
        NotFiniteError: more steps in a row had to be skipped than ``config`` allows.
        CheckpointError: a checkpoint cannot be written or read.
    """
    check_task(task, config, accelerator)
    run = Path(config.run)
    average = None
    if config.ema_decay > 0:
        average = moving_average(task.model, config.ema_decay, accelerator.device)
    judged = task.model if average is None else average.module
    generator = make_learner(task.model, config.learning_rate, config, accelerator)
    forward = torch.compile(generator.model) if config.compile else generator.model
    opponent = None
    if task.adversary is not None:
        rate = task.adversary.learning_rate
        opponent = make_learner(task.adversary.model, rate, config, accelerator)

    checkpoints = Checkpoints(run, config.keep_checkpoints, task, average, accelerator)
    progress = checkpoints.load_newest()
    batches = load_batches(task.samples, config, accelerator, progress.step)
    log = Log(run, config.steps, config.log_every, progress.step, accelerator)
    with log, stop_on_signal(accelerator):
        for parts in batches:
            step = progress.step
            playing = task.adversary is not None and step >= task.adversary.starts_at
            rival = opponent.model if playing else None
            learners = [generator, opponent] if playing else [generator]
            buffers = [buffer for each in learners for buffer in each.model.buffers()]
            buffers_before = [buffer.clone() for buffer in buffers]

            values: dict[str, Tensor] = {}
            for part, batch in enumerate(parts):
                place = part * accelerator.num_processes + accelerator.process_index
                torch.manual_seed(place_seed(config.seed, step, place))
                # Processes average their gradients once, with those of the last part.
                alone = part + 1 < config.accumulate
                found = add_gradients(task, forward, rival, batch, step, alone, config, accelerator)
                for name, value in found.items():
                    share = value.detach().float() / config.accumulate
                    values[name] = values[name] + share if name in values else share
            values["gradient_norm"] = clip_gradient(generator, config, accelerator)
            if playing:
                values["adversary_gradient_norm"] = clip_gradient(opponent, config, accelerator)

            if all_finite([values[name] for name in DECISIVE if name in values], accelerator):
                for each in learners:
                    for group in each.optimizer.param_groups:
                        group["lr"] = each.learning_rate * config.schedule(step)
                    each.optimizer.step()
                if average is not None:
                    average.update_parameters(task.model)
                progress.skipped_in_a_row = 0
            else:
                for buffer, before in zip(buffers, buffers_before, strict=True):
                    buffer.copy_(before)
                if accelerator.scaler is not None:
                    accelerator.scaler.update()  # float16: the factor of the loss was too large
                progress.skipped += 1
                progress.skipped_in_a_row += 1
                about = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                log.say(f"step {step} is skipped, for it is not finite: {about}")
                if progress.skipped_in_a_row > config.most_skipped_steps:
                    raise NotFiniteError(
                        f"{progress.skipped_in_a_row} steps in a row were not finite, the last of "
                        f"them at step {step} ({about}): lower the learning rate, then run again "
                        "to go on from the last checkpoint"
                    )
            for each in learners:
                each.optimizer.zero_grad()
            progress.step += 1
            log.update(progress, config.learning_rate * config.schedule(step), values)

            best = False
            if task.evaluate is not None and config.due(progress.step, config.evaluate_every):
                figures = evaluate(task.evaluate, judged, accelerator)
                log.evaluated(progress.step, figures)
                if config.best is not None:
                    score = figure_named(config.best, figures)
                    best = progress.note_score(score, config.best_is)
            if task.preview is not None and config.due(progress.step, config.preview_every):
                path = run / "previews" / f"step-{progress.step:08d}.png"
                preview(task.preview, judged, path, accelerator)
            stop = accelerator.check_trigger()
            if stop or best or config.due(progress.step, config.checkpoint_every):
                checkpoints.save(progress)
                log.plot()
            if stop:
                break
    done = progress.step >= config.steps
    if done and accelerator.is_main_process:
        task.save_weights(judged, run / WEIGHTS)
    return done


def check_task(task: Task, config: TrainerConfig, accelerator: Accelerator) -> None:
    """Raise ValueError if ``config`` asks for what cannot be done with ``task``."""
    if config.best is not None and task.evaluate is None:
        raise ValueError(f"best is {config.best!r}, but nothing is evaluated: leave it out")
    if task.adversary is not None and accelerator.scaler is not None:
        raise ValueError(
            "mixed_precision is fp16, whose one factor cannot suit the losses of two models: "
            "train with an adversary in bf16, or with no"
        )


def make_learner(
    model: nn.Module, learning_rate: float, config: TrainerConfig, accelerator: Accelerator
) -> Learner:
    """``model`` ready for training, with an optimizer of those parameters that may change."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = SGD(parameters, lr=learning_rate, weight_decay=config.weight_decay)
    else:
        optimizer = AdamW(
            parameters, lr=learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    return Learner(wrapped.train(), optimizer, learning_rate)


def load_batches(
    samples: Dataset, config: TrainerConfig, accelerator: Accelerator, step: int
) -> Iterator[tuple[Any, ...]]:
    """The batches of each step from ``step`` on, ``config.accumulate`` of them for this process.

    Each step takes the next ``config.samples_per_step`` numbers, shared out over parts and, within
    a part, over processes.
    """
    per_step = config.samples_per_step(accelerator.num_processes)
    loader = DataLoader(
        samples,
        batch_size=config.batch_size,
        sampler=range(step * per_step, config.steps * per_step),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    batches = iter(accelerator.prepare(loader))
    return zip(*[batches] * config.accumulate, strict=True)


def place_seed(seed: int, step: int, place: int) -> int:
    """A seed for everything random in one batch of a step, of which there are many at places."""
    sequence = np.random.SeedSequence([seed, step, place])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def add_gradients(
    task: Task,
    forward: nn.Module,
    rival: nn.Module | None,
    batch: Any,
    step: int,
    alone: bool,
    config: TrainerConfig,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Add one batch's share to the gradients; returns its losses and figures, scalars by name.

    Args:
        forward: the model as it runs.
        rival: the adversary, if it takes part.
        alone: keep the gradients to this process, as more are to come.
    """
    with constant(rival, accelerator), apart(forward, alone, accelerator):
        made = task.losses(forward, rival, batch, step)
        loss = made.total()
        accelerator.backward(loss / config.accumulate)
    found = {"loss": loss, **made.terms, **made.figures}
    if rival is not None:
        with apart(rival, alone, accelerator):
            made = task.adversary.losses(rival, made.output, batch, step)
            loss = made.total()
            accelerator.backward(loss / config.accumulate)
        found |= {"adversary_loss": loss, **made.terms, **made.figures}
    return found


@contextmanager
def apart(module: nn.Module, alone: bool, accelerator: Accelerator) -> Iterator[None]:
    """If ``alone``, the gradients of ``module`` are not averaged over processes."""
    with accelerator.no_sync(module) if alone else nullcontext():
        yield


@contextmanager
def constant(module: nn.Module | None, accelerator: Accelerator) -> Iterator[None]:
    """The parameters of ``module`` get no gradients, and processes wait for none."""
    if module is None:
        yield
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with accelerator.no_sync(module):
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def clip_gradient(learner: Learner, config: TrainerConfig, accelerator: Accelerator) -> Tensor:
    """Limit the norm of the gradient; returns what it was."""
    return accelerator.clip_grad_norm_(learner.model.parameters(), config.gradient_clip)


def all_finite(values: Iterable[Tensor], accelerator: Accelerator) -> bool:
    """Whether all of these scalars are finite, in all processes."""
    finite = torch.stack([torch.isfinite(value) for value in values]).all()
    return accelerator.reduce(finite.float(), reduction="mean").item() == 1


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode and without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def evaluate(
    figures_of: Callable[[nn.Module], dict[str, float]], model: nn.Module, accelerator: Accelerator
) -> dict[str, float]:
    """Figures of ``model`` by name, the means over processes."""
    with evaluating(model):
        figures = figures_of(model)
    local = torch.tensor(list(figures.values()), device=accelerator.device, dtype=torch.float32)
    means = accelerator.reduce(local, reduction="mean").tolist()
    return dict(zip(figures, means, strict=True))


def figure_named(name: str, figures: dict[str, float]) -> float:
    """The figure that tells the best checkpoint; ValueError if there is no such one."""
    if name not in figures:
        raise ValueError(f"best must be one of {', '.join(figures)}, not {name!r}")
    return figures[name]


def preview(
    write: Callable[[nn.Module, Path], None], model: nn.Module, path: Path, accelerator: Accelerator
) -> None:
    """Write a picture of what ``model`` can do, on the main process."""
    if accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        with evaluating(model):
            write(model, path)


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
