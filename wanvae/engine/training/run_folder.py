"""The folder of a run: its checkpoints, complete or not there, the newest and the best."""

from __future__ import annotations

import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from wanvae.engine.checkpoint import CheckpointError, load_in_place, write_tensors
from wanvae.engine.files import FileError
from wanvae.engine.json_files import read_value, write_value
from wanvae.engine.processes import gather_from_processes
from wanvae.engine.text import first_sentence
from wanvae.engine.training.optimization import Learner, Optimization
from wanvae.engine.training.task import WEIGHTS
from wanvae.errors import UserError

AVERAGE = "ema.safetensors"
DISCRIMINATOR = "discriminator.safetensors"
# The name of that file in runs of earlier versions.
FORMER_DISCRIMINATOR = "adversary.safetensors"
COMPANION = "companion.safetensors"
# The names that accelerate gives these files.
OPTIMIZER = "optimizer.bin"
DISCRIMINATOR_OPTIMIZER = "optimizer_1.bin"
SCALER = "scaler.pt"
PROGRESS = "progress.json"
# The folder of the pictures of what the model can do.
PREVIEWS = "previews"
# The folder of the checkpoints.
CHECKPOINTS = "checkpoints"


def checkpoints_of(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; none if there is no such folder."""
    return sorted((run / CHECKPOINTS).glob("step-*"))


@dataclass(kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        step: how many steps are done, with the skipped ones.
        skipped: how many steps were skipped.
        skipped_in_a_row: how many steps were skipped since the last one that was not.
        best_step: the step after which the evaluation was best.
        best_score: its figure then.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_step: int | None = None
    best_score: float | None = None

    def count_step(self, *, skipped: bool) -> None:
        """Counts one more step."""
        self.step += 1
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def note_score(self, score: float, best_is: Literal["highest", "lowest"]) -> bool:
        """Remembers ``score`` if it is the best so far; returns whether it is."""
        sign = 1 if best_is == "highest" else -1
        better = self.best_score is None or sign * score > sign * self.best_score
        if better and math.isfinite(score):
            self.best_step, self.best_score = self.step, score
            return True
        return False


class Checkpoints:
    """Complete checkpoints in ``run/checkpoints/step-N``, written aside and then renamed.

    Each holds the weights and their moving average in the model's own format, the discriminator,
    the companion, the states of the optimizers and of the gradient scaler, and ``progress.json``,
    whose ``best_step`` names the best checkpoint. All tensors are whole, so any number of processes
    can go on. Only tensors and plain values are unpickled.
    """

    def __init__(
        self, run: Path, keep: int, optimization: Optimization, average: AveragedModel | None
    ) -> None:
        self.run = run
        self.folder = run / CHECKPOINTS
        self.keep = keep
        self.optimization = optimization
        self.task = optimization.task
        self.average = average
        self.accelerator = optimization.accelerator

    def save(self, progress: Progress, before_named: Callable[[], None]) -> None:
        """Writes a checkpoint; removes the ones that are neither among the newest nor the best.

        Args:
            progress: how far the run is.
            before_named: is called in all processes when the files are written, just before the
                checkpoint gets its name. So what it writes is there if the checkpoint is.

        Raises:
            CheckpointError: it cannot be written, as on a full disk. The others stay as they are.
        """
        final = self.path(progress.step)
        partial = partial_of(final)
        try:
            if self.accelerator.is_main_process:
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._save_models(partial)
            self._save_states(partial)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                write_value(partial / PROGRESS, progress)
                flush(*partial.iterdir(), partial)
            before_named()
            if self.accelerator.is_main_process:
                partial.rename(final)
                flush(self.folder)
        except (OSError, RuntimeError, FileError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"{final} cannot be written ({first_sentence(error.__cause__ or error)})"
                f"{free_space(self.folder)}: make room, check the folder, and run again; the "
                "checkpoints before it are untouched"
            ) from error
        if self.accelerator.is_main_process:
            complete = self.complete()
            for old in complete[: -self.keep]:
                if progress.best_step is None or old != self.path(progress.best_step):
                    remove(old)

    def load_newest(self) -> Progress:
        """Loads the newest checkpoint, if there is one; returns how far the run is.

        Raises:
            UserError: the processes do not see the same checkpoints.
            CheckpointError: a file of it is missing or damaged.
        """
        newest = self.complete()[-1:]
        progress = Progress()
        for path in newest:
            progress = read_progress(path / PROGRESS)
        device = self.accelerator.device
        step = torch.tensor([progress.step], device=device)
        steps = torch.cat(gather_from_processes(step)).unique()
        if len(steps) > 1:
            raise UserError(
                f"processes see checkpoints of different steps {steps.tolist()} in {self.folder}: "
                "run must be on a disk that all machines share"
            )
        for path in newest:
            self.accelerator.print(f"going on from {path}")
            self._load_models(path)
            self._load_states(path)
        if self.average is not None:
            self.average.n_averaged.fill_(progress.step - progress.skipped)
        if self.accelerator.is_main_process:
            for left_over in self.folder.glob(".step-*.partial"):
                shutil.rmtree(left_over)
        return progress

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return checkpoints_of(self.run)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint after ``step`` steps."""
        return self.folder / f"step-{step:08d}"

    def _save_models(self, folder: Path) -> None:
        task, whole, first = self.task, self.optimization.learner.whole, self._is_first
        with whole(task.model) as model:
            if first:
                task.save_weights(model, folder / WEIGHTS)
                if task.companion is not None:
                    companion = counterpart(task.companion, task.model, model)
                    write_tensors(folder / COMPANION, companion.state_dict(), {})
        if self.average is not None:
            with whole(self.average.module) as model:
                if first:
                    task.save_weights(model, folder / AVERAGE)
        if task.discriminator is not None and self.optimization.discriminator is not None:
            with self.optimization.discriminator.whole(task.discriminator.model) as model:
                if first:
                    write_tensors(folder / DISCRIMINATOR, model.state_dict(), {})

    def _load_models(self, folder: Path) -> None:
        task, whole = self.task, self.optimization.learner.whole
        with whole(task.model, changes=True) as model:
            task.load_weights(model, folder / WEIGHTS)
            if task.companion is not None:
                load_in_place(counterpart(task.companion, task.model, model), folder / COMPANION)
        if self.average is not None:
            with whole(self.average.module, changes=True) as model:
                task.load_weights(model, folder / AVERAGE)
        if task.discriminator is not None and self.optimization.discriminator is not None:
            learner = self.optimization.discriminator
            with learner.whole(task.discriminator.model, changes=True) as model:
                load_in_place(model, discriminator_file(folder))

    def _save_states(self, folder: Path) -> None:
        for name, learner in self._learners():
            state = learner.state()
            if self._is_first:
                torch.save(state, folder / name)
        if self.accelerator.scaler is not None and self._is_first:
            torch.save(self.accelerator.scaler.state_dict(), folder / SCALER)

    def _load_states(self, folder: Path) -> None:
        for name, learner in self._learners():
            learner.load_state(load_values(folder / name))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(load_values(folder / SCALER))

    def _learners(self) -> Iterator[tuple[str, Learner]]:
        """The models that are trained, with the names of the files of their optimizers."""
        yield OPTIMIZER, self.optimization.learner
        if self.optimization.discriminator is not None:
            yield DISCRIMINATOR_OPTIMIZER, self.optimization.discriminator

    @property
    def _is_first(self) -> bool:
        return self.accelerator.is_main_process


def counterpart(part: nn.Module, model: nn.Module, other: nn.Module) -> nn.Module:
    """The part of ``other`` that has the place of ``part`` in ``model``."""
    (name,) = (name for name, module in model.named_modules() if module is part)
    return other.get_submodule(name)


def load_values(path: Path) -> dict[str, Any]:
    """The tensors and plain values of a file.

    Raises:
        CheckpointError: the file is missing, damaged, or holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({first_sentence(error)}): delete its folder to go on from the "
            "checkpoint before"
        ) from error


def preview_path(run: Path, step: int) -> Path:
    """The picture of what the model of a run can do after ``step`` steps."""
    return run / PREVIEWS / f"step-{step:08d}.png"


def previews(run: Path) -> dict[int, Path]:
    """The previews of a run by their steps, in this order."""
    paths = sorted((run / PREVIEWS).glob("step-*.png"))
    return {int(path.stem.removeprefix("step-")): path for path in paths}


def discriminator_file(checkpoint: Path) -> Path:
    """The file of the discriminator in a checkpoint, perhaps of an earlier version."""
    former = checkpoint / FORMER_DISCRIMINATOR
    return former if former.exists() else checkpoint / DISCRIMINATOR


def free_space(folder: Path) -> str:
    """How much room is left on the disk of a folder, for a message; empty if nothing can tell."""
    with suppress(OSError):
        return f", with {shutil.disk_usage(folder).free / 1e9:.2f} GB free on its disk"
    return ""


def read_progress(path: Path) -> Progress:
    """How far a run is.

    Raises:
        CheckpointError: ``path`` is missing or damaged.
    """
    try:
        return read_value(path, Progress)
    except (OSError, UserError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({first_sentence(error)}): delete its folder to go on from the "
            "checkpoint before"
        ) from error


def partial_of(path: Path) -> Path:
    """The name of a checkpoint while it is not complete."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Deletes a checkpoint. It loses its name first, so a half deleted one is never read."""
    shutil.rmtree(path.rename(partial_of(path)))


def flush(*paths: Path) -> None:
    """Waits until files and directories are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
