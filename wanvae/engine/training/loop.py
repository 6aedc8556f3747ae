"""The training loop, for any model: accelerate, a discriminator, checkpoints, resume.

Everything random in a batch follows from (seed, step, its place in the step), and a sample from
(seed, its number): a run that goes on from a checkpoint, or on another number of processes, sees
what it would have seen.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wanvae.engine.devices import default_device
from wanvae.engine.processes import means_over_processes
from wanvae.engine.training.averaging import moving_average
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.evaluating import evaluating
from wanvae.engine.training.log import Log
from wanvae.engine.training.optimization import Optimization
from wanvae.engine.training.run_folder import WEIGHTS, Checkpoints, Progress
from wanvae.engine.training.task import Task
from wanvae.errors import UserError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NotFiniteError(UserError):
    """The loss or its gradient is infinite or NaN in too many steps in a row."""


def make_accelerator(config: TrainerConfig) -> Accelerator:
    """The devices, processes and trackers of a run; made before anything that depends on them.

    Raises:
        ValueError: the tracker is not installed.
    """
    tracked = config.tracker == "tensorboard"
    if tracked and find_spec("tensorboard") is None:
        raise UserError("tensorboard is not installed: pip install it, or set tracker to none")
    unused = config.find_unused_parameters
    try:
        return Accelerator(
            # Without a GPU accelerate would take several processes for one if it is not told.
            cpu=default_device() == "cpu",
            mixed_precision=config.mixed_precision,
            log_with="tensorboard" if tracked else None,
            project_dir=config.run,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
    except ValueError as error:
        if config.mixed_precision not in ("fp16", "bf16"):
            raise
        raise UserError(
            f"mixed_precision is {config.mixed_precision}: {error}; set it to no"
        ) from error


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
    optimization = Optimization(task, config, accelerator)
    checkpoints = Checkpoints(run, config.keep_checkpoints, task, average, accelerator)
    progress = checkpoints.load_newest()
    batches = load_batches(task.samples, config, accelerator, progress.step)
    log = Log(run, config.steps, config.log_every, progress.step, accelerator)
    with log, closing(batches), stop_on_signal(accelerator):
        for parts in batches:
            values, finite = optimization.step(parts, progress.step)
            progress.count_step(skipped=not finite)
            if not finite:
                report_skipped(progress, values, config, log)
            elif average is not None:
                average.update_parameters(task.model)
            log.update(progress, config.learning_rate * config.schedule(progress.step - 1), values)
            best = judge(task, judged, progress, config, log, accelerator)
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
        raise UserError(f"best is {config.best!r}, but nothing is evaluated: leave it out")
    if task.discriminator is not None and accelerator.scaler is not None:
        raise UserError(
            "mixed_precision is fp16, whose one factor cannot suit the losses of two models: "
            "train with a discriminator in bf16, or with no"
        )


def load_batches(
    samples: Dataset, config: TrainerConfig, accelerator: Accelerator, step: int
) -> Generator[tuple[Any, ...]]:
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
        worker_init_fn=leave_signals_to_the_trainer,
    )
    batches = iter(accelerator.prepare(loader))
    # Closed in any case, or processes that load data, which ignore signals, would never end.
    with closing(batches):
        yield from zip(*[batches] * config.accumulate, strict=True)


def report_skipped(
    progress: Progress, values: dict[str, Tensor], config: TrainerConfig, log: Log
) -> None:
    """Tell of the step that was skipped; NotFiniteError if it is one too many in a row."""
    step = progress.step - 1
    about = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    log.say(f"step {step} is skipped, for it is not finite: {about}")
    if progress.skipped_in_a_row > config.most_skipped_steps:
        raise NotFiniteError(
            f"{progress.skipped_in_a_row} steps in a row were not finite, the last of them at step "
            f"{step} ({about}): lower the learning rate, then run again to go on from the last "
            "checkpoint"
        )


def judge(
    task: Task,
    model: nn.Module,
    progress: Progress,
    config: TrainerConfig,
    log: Log,
    accelerator: Accelerator,
) -> bool:
    """Evaluate and show ``model`` where it is time to; returns whether it is the best so far."""
    best = False
    if task.evaluate is not None and config.due(progress.step, config.evaluate_every):
        figures = evaluate(task.evaluate, model, accelerator)
        log.evaluated(progress.step, figures)
        if config.best is not None:
            score = figure_named(config.best, figures)
            best = progress.note_score(score, config.best_is)
    if task.preview is not None and config.due(progress.step, config.preview_every):
        path = Path(config.run) / "previews" / f"step-{progress.step:08d}.png"
        preview(task.preview, model, path, accelerator)
    return best


def evaluate(
    figures_of: Callable[[nn.Module], dict[str, float]], model: nn.Module, accelerator: Accelerator
) -> dict[str, float]:
    """Figures of ``model`` by name, the means over processes."""
    with evaluating(model):
        figures = figures_of(model)
    return means_over_processes(figures, accelerator.device)


def figure_named(name: str, figures: dict[str, float]) -> float:
    """The figure that tells the best checkpoint; ValueError if there is no such one."""
    if name not in figures:
        raise UserError(f"best must be one of {', '.join(figures)}, not {name!r}")
    return figures[name]


def preview(
    write: Callable[[nn.Module, Path], None], model: nn.Module, path: Path, accelerator: Accelerator
) -> None:
    """Write a picture of what ``model`` can do, on the main process."""
    if accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        with evaluating(model):
            write(model, path)


def leave_signals_to_the_trainer(worker: int) -> None:
    """Let this process, which loads data, live on when its whole group is told to stop.

    Terminals and schedulers tell the whole group; the step under way still needs its samples.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_on_signal(accelerator: Accelerator) -> Iterator[None]:
    """SIGINT and SIGTERM set accelerate's trigger, which all processes see after the same step."""
    previous = {
        number: signal.signal(number, lambda *_: accelerator.set_trigger())
        for number in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
