"""The training loop, for any model: accelerate, a discriminator, checkpoints, resume.

Everything random in a batch follows from (seed, step, its place in the step), and a sample from
(seed, its number). So a run that goes on from a checkpoint, or on another number of processes, sees
the same values as a run that never stopped.
"""

from __future__ import annotations

import gc
import re
import signal
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wanvae.engine.devices import default_device
from wanvae.engine.evaluating import evaluating
from wanvae.engine.files import FileError, remove_temporaries
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.locking import locked_by_run
from wanvae.engine.processes import (
    gather_from_processes,
    means_over_processes,
    run_on_first_process,
)
from wanvae.engine.signals import SIGNALED, STOP_SIGNALS, Interrupted, handle_signals
from wanvae.engine.text import first_sentence
from wanvae.engine.training.averaging import moving_average
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.live_report import LiveReport
from wanvae.engine.training.log import Log
from wanvae.engine.training.optimization import Optimization
from wanvae.engine.training.record import flat_options, keep_record, make_record
from wanvae.engine.training.run_folder import Checkpoints, Progress, preview_path
from wanvae.engine.training.task import Task
from wanvae.errors import UserError

# What PyTorch says of processes that load data and were killed.
LOST_LOADER = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")


def make_accelerator(config: TrainerConfig) -> Accelerator:
    """The devices, processes and trackers of a run. Call it before anything that uses them.

    Raises:
        UserError: the tracker is not installed, or the device does not have the precision.
    """
    tracked = config.tracker == "tensorboard"
    if tracked and find_spec("tensorboard") is None:
        raise UserError("tensorboard is not installed: pip install it, or set tracker to none")
    unused = config.find_unused_parameters
    try:
        return Accelerator(
            # Without a GPU accelerate must be told, or it takes several processes for one.
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


def train(task: Task, config: TrainerConfig, accelerator: Accelerator) -> int:
    """Trains from the newest checkpoint of the run, or from the start, to the last step.

    Returns:
        How many steps the model has that the run ended with. They are more than ``config`` asks for
        if the run had more already; then nothing is trained, which is told.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP ended the run with a checkpoint after a step before
            the last one.
        SystemExit: so it is, in the processes besides the first, with the status of the signal.
        UserError: the task and the config do not fit; another process trains in the folder; or the
            run was started with something else that its result depends on.
        NotFiniteError: more steps in a row are skipped than ``config`` allows.
        CheckpointError: a checkpoint cannot be written or read.
        LoaderError: a process that loads data was killed.
        FileError: there cannot be a folder of the run, or nothing can be deleted in it.
    """
    check_task(task, config, accelerator)
    run = Path(config.run)
    run_on_first_process(partial(make_run_folder, run))
    with expecting_loaders(), locked_by_run(run):
        # What a killed process was writing.
        run_on_first_process(partial(remove_temporaries, run))
        return train_in_folder(task, config, accelerator)


def make_run_folder(run: Path) -> None:
    """Makes the folder of a run, unless it exists.

    Raises:
        FileError: something else is there, or it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise FileError(
            f"{run} cannot be the folder of the run ({reason}); name another (trainer.run)"
        ) from error


def train_in_folder(task: Task, config: TrainerConfig, accelerator: Accelerator) -> int:
    """As ``train``, in a folder that no other run writes to."""
    run = Path(config.run)
    average = None
    if config.ema_decay > 0:
        average = moving_average(task.model, config.ema_decay, accelerator.device)
    judged = task.model if average is None else average.module
    optimization = Optimization(task, config, accelerator)
    learner = optimization.learner
    if average is not None and learner.sharded is not None:
        learner.sharded.share_out(average.module)
    checkpoints = Checkpoints(run, config.keep_checkpoints, optimization, average)
    keep_record_of(task, config, checkpoints, accelerator)
    progress = checkpoints.load_newest()
    if progress.step > config.steps:
        accelerator.print(
            f"{run} has {progress.step} steps already, more than steps {config.steps}: nothing is "
            "trained"
        )
        config = replace(config, steps=progress.step)
    if config.warmup_steps > config.steps:
        highest = config.learning_rate * config.schedule(config.steps - 1)
        accelerator.print(
            f"warmup_steps is {config.warmup_steps}, and the run has {config.steps} steps, so the "
            f"learning rate rises to the end, and only to {highest:.3g}"
        )
    batches = load_batches(task, config, accelerator, progress.step)
    options = flat_options(task.config or config) if progress.step == 0 else None
    log = Log(run, config.steps, progress.step, accelerator, options)
    report = LiveReport(task.report, config, progress, log, accelerator)
    with stop_on_signal(accelerator) as received, log, report, closing(batches):
        for parts in batches:
            values, finite = optimization.step(parts, progress.step)
            progress.count_step(skipped=not finite)
            if not finite:
                report_skipped(progress, values, config, log)
            elif average is not None:
                average.update_parameters(task.model)
            log.update(values if finite else {})
            rate = config.learning_rate * config.schedule(progress.step - 1)
            if config.due(progress.step, config.log_every):
                log.write_means(progress, rate)
                report.update_if_due()
            best = judge(optimization, judged, progress, log, report)
            stop = accelerator.check_trigger()
            if stop or best or config.due(progress.step, config.checkpoint_every):
                # So a run that goes on from here has the means of all steps.
                checkpoints.save(progress, partial(log.write_means, progress, rate))
                log.plot()
            if stop:
                break
        done = progress.step >= config.steps
        if done:
            with learner.whole(judged) as model:
                # The other processes wait, because what follows training may read the file.
                run_on_first_process(partial(task.save_weights, model, run / task.result))
    if not done:
        saved = checkpoints.path(progress.step)
        end_by_signal(received, f"step {progress.step} of {config.steps}", saved, accelerator)
    if accelerator.is_main_process:
        # The terminal may have closed.
        with suppress(OSError):
            print(outcome(run / task.result, config, progress, checkpoints), flush=True)
    return progress.step


def keep_record_of(
    task: Task, config: TrainerConfig, checkpoints: Checkpoints, accelerator: Accelerator
) -> None:
    """Checks that a run goes on as what it was started as, and keeps what it is.

    Raises:
        UserError: the run was started with something else that its result depends on.
        SystemExit: so it is, in the processes besides the first.
    """

    def keep() -> None:
        batches = config.accumulate * accelerator.num_processes
        start = "" if task.identify_start is None else task.identify_start()
        record = make_record(task.describe_data(), batches, start)
        goes_on = bool(checkpoints.complete())
        note = keep_record(Path(config.run), task.config or config, record, goes_on=goes_on)
        if note:
            accelerator.print(note)

    run_on_first_process(keep)


def outcome(
    result: Path, config: TrainerConfig, progress: Progress, checkpoints: Checkpoints
) -> str:
    """One line on where the model of a complete run is."""
    steps = "1 step" if progress.step == 1 else f"{progress.step} steps"
    line = f"{result}: the model after {steps}"
    if progress.best_step is None:
        return line
    return (
        f"{line}; the best checkpoint, {config.best} {progress.best_score:.5g}, is "
        f"{checkpoints.path(progress.best_step)}"
    )


def check_task(task: Task, config: TrainerConfig, accelerator: Accelerator) -> None:
    """Raises a UserError if ``task`` cannot do what ``config`` asks for."""
    if config.best is not None and task.evaluate is None:
        raise UserError(f"best is {config.best!r}, but nothing is evaluated: leave it out")
    if config.best is not None and task.figures:
        check_figure(config.best, task.figures)
    if task.discriminator is not None and accelerator.scaler is not None:
        raise UserError(
            "mixed_precision is fp16, whose single factor cannot suit the losses of two models: "
            "train with a discriminator in bf16, or with no"
        )


def load_batches(
    task: Task, config: TrainerConfig, accelerator: Accelerator, step: int
) -> Generator[tuple[Any, ...]]:
    """The batches of each step from ``step`` on, ``config.accumulate`` of them for this process.

    Each step takes the next ``config.samples_per_step`` samples. The parts of the step share them,
    and within a part the processes.
    """
    per_step = config.samples_per_step(accelerator.num_processes)
    loader = DataLoader(
        task.samples,
        batch_size=config.batch_size,
        sampler=range(step * per_step, config.steps * per_step),
        num_workers=config.workers,
        multiprocessing_context="spawn" if task.fresh_workers and config.workers else None,
        worker_init_fn=begin_to_load,
    )
    batches = iter(accelerator.prepare(loader))
    # Processes that load data ignore signals and would never end if this were not closed.
    with closing(batches):
        yield from zip(*[batches] * config.accumulate, strict=True)


class LoaderError(UserError):
    """A process that loads data was killed. The message says what to do."""


@contextmanager
def expecting_loaders() -> Iterator[None]:
    """Turns the errors of PyTorch into a LoaderError if a process that loads data was killed.

    PyTorch may raise one at any time, from a handler of signals. Nothing else in a run has
    connections that can be reset.
    """
    try:
        yield
    except (RuntimeError, ConnectionResetError) as error:
        if isinstance(error, RuntimeError) and not LOST_LOADER.search(str(error)):
            raise
        raise LoaderError(
            f"a process that loads data was killed ({first_sentence(error)}), as the system does "
            "when memory is full; run again to go on from the last checkpoint, perhaps with fewer "
            "trainer.workers"
        ) from error


def report_skipped(
    progress: Progress, values: dict[str, Tensor], config: TrainerConfig, log: Log
) -> None:
    """Reports a skipped step; raises NotFiniteError if too many in a row are skipped."""
    step = progress.step - 1
    about = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    log.say(f"step {step} is skipped, because it is not finite: {about}")
    if progress.skipped_in_a_row > config.most_skipped_steps:
        raise NotFiniteError(
            f"{progress.skipped_in_a_row} steps in a row were not finite, the last of them at step "
            f"{step} ({about}): lower the learning rate, then run again to go on from the last "
            "checkpoint"
        )


def judge(
    optimization: Optimization,
    judged: nn.Module,
    progress: Progress,
    log: Log,
    report: LiveReport,
) -> bool:
    """Evaluates and previews ``judged`` if it is time; returns whether it is the best so far.

    Args:
        judged: the model of the task, or its average.
    """
    task, config = optimization.task, optimization.config
    evaluates = task.evaluate is not None and config.due(progress.step, config.evaluate_every)
    previews = task.preview is not None and config.due(progress.step, config.preview_every)
    if not evaluates and not previews:
        return False
    best = False
    with optimization.learner.whole(judged) as model:
        if task.evaluate is not None and evaluates:
            figures = evaluate(task.evaluate, model, optimization.accelerator)
            log.evaluated(progress.step, figures)
            if config.best is not None:
                check_figure(config.best, figures)
                best = progress.note_score(figures[config.best], config.best_is)
        if task.preview is not None and previews:
            path = preview_path(Path(config.run), progress.step)
            preview(task.preview, model, path, optimization.accelerator)
            log.previewed(progress.step, path)
    report.update()
    return best


def evaluate(
    figures_of: Callable[[nn.Module], dict[str, float]], model: nn.Module, accelerator: Accelerator
) -> dict[str, float]:
    """The figures of ``model`` by name, averaged over the processes."""
    with evaluating(model):
        figures = figures_of(model)
    return means_over_processes(figures, accelerator.device)


def check_figure(best: str, figures: Collection[str]) -> None:
    """Raises a UserError if the figure that chooses the best checkpoint is not one of these."""
    if best not in figures:
        raise UserError(f"best must be one of {', '.join(figures)}, not {best!r}")


def preview(
    write: Callable[[nn.Module, Path], None], model: nn.Module, path: Path, accelerator: Accelerator
) -> None:
    """Writes a picture of what ``model`` can do, on the main process."""
    if accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        with evaluating(model):
            write(model, path)


def begin_to_load(worker: int) -> None:
    """Prepares this process, which was started to load data.

    It ignores signals to stop: terminals and schedulers signal the whole group, but the current
    step still needs its samples. And it never frees what the trainer left behind: an open decoder
    would wait for its threads, which a forked process does not have.
    """
    gc.freeze()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_on_signal(accelerator: Accelerator) -> Iterator[list[signal.Signals]]:
    """Turns signals to stop into accelerate's trigger, which all processes see together.

    Gives the signals that this process has received, in their order.
    """
    received: list[signal.Signals] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        accelerator.set_trigger()

    with handle_signals(stop, *STOP_SIGNALS):
        yield received


def end_by_signal(
    received: Sequence[signal.Signals], step: str, saved: Path, accelerator: Accelerator
) -> NoReturn:
    """Ends all processes of a run with the status of one signal, whichever of them received it.

    Args:
        received: by this process.
        step: the last step that is done, for the message.
        saved: its checkpoint.

    Raises:
        Interrupted: in the first process.
        SystemExit: in the others.
    """
    own = torch.tensor([*received[:1], 0][:1], device=accelerator.device)
    number = signal.Signals(int(torch.cat(gather_from_processes(own)).max()))
    if not accelerator.is_main_process:
        raise SystemExit(SIGNALED + number)
    raise Interrupted(
        f"{number.name} ended the run after {step}, which is saved in {saved}; run the same "
        "command again to go on",
        number,
    )
