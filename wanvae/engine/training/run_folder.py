"""Checkpoints of a run: complete or not there, the newest and the best of them."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel

from wanvae.engine.checkpoint import CheckpointError, load_in_place, write_tensors
from wanvae.engine.config import from_json_dict, to_json_dict
from wanvae.engine.files import FileError
from wanvae.engine.text import first_sentence
from wanvae.engine.training.task import Task
from wanvae.errors import UserError

WEIGHTS = "model.safetensors"
AVERAGE = "ema.safetensors"
ADVERSARY = "adversary.safetensors"
PROGRESS = "progress.json"


@dataclass(kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        step: steps done, those skipped among them.
        skipped: steps skipped.
        skipped_in_a_row: of them, those since the last that was not.
        best_step: after how many steps the evaluation was best.
        best_score: the figure that says so.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_step: int | None = None
    best_score: float | None = None

    def count_step(self, *, skipped: bool) -> None:
        """Another step is done."""
        self.step += 1
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def note_score(self, score: float, best_is: Literal["highest", "lowest"]) -> bool:
        """Whether ``score`` is the best so far, and so is remembered."""
        sign = 1 if best_is == "highest" else -1
        better = self.best_score is None or sign * score > sign * self.best_score
        if better and math.isfinite(score):
            self.best_step, self.best_score = self.step, score
            return True
        return False


class Checkpoints:
    """Complete checkpoints in ``run/checkpoints/step-N``, written aside and then renamed.

    Each holds the weights and their moving average in the model's own format, the adversary,
    accelerate's files (optimizers, gradient scaler) and ``progress.json``, whose ``best_step`` is
    that of the best one. Nothing in them is unpickled but tensors and plain values.
    """

    def __init__(
        self,
        run: Path,
        keep: int,
        task: Task,
        average: AveragedModel | None,
        accelerator: Accelerator,
    ) -> None:
        self.folder = run / "checkpoints"
        self.keep = keep
        self.task = task
        self.average = average
        self.accelerator = accelerator
        # Of models accelerate would save its own files; the hooks write and read ours instead.
        accelerator.register_save_state_pre_hook(self._save_models)
        accelerator.register_load_state_pre_hook(self._load_models)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; remove those that are neither among the newest nor the best.

        Raises:
            CheckpointError: it cannot be written, as on a full disk; the others are as they were.
        """
        final = self._path(progress.step)
        partial = partial_of(final)
        try:
            if self.accelerator.is_main_process:
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                (partial / PROGRESS).write_text(json.dumps(to_json_dict(progress)))
                flush(*partial.iterdir(), partial)
                partial.rename(final)
                flush(self.folder)
        except (OSError, RuntimeError, FileError) as error:
            reason = first_sentence(error.__cause__ or error)
            free = shutil.disk_usage(self.folder).free / 1e9
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"{final} cannot be written ({reason}), with {free:.2f} GB free on its disk: make "
                "room and run again; the checkpoints before it are untouched"
            ) from error
        if self.accelerator.is_main_process:
            complete = self.complete()
            for old in complete[: -self.keep]:
                if progress.best_step is None or old != self._path(progress.best_step):
                    remove(old)

    def load_newest(self) -> Progress:
        """Load the newest checkpoint, if there is one; returns how far the run is.

        Raises:
            ValueError: the processes do not see the same checkpoints.
            CheckpointError: a file of it is missing or damaged.
        """
        newest = self.complete()[-1:]
        progress = Progress()
        for path in newest:
            progress = read_progress(path / PROGRESS)
        device = self.accelerator.device
        steps = self.accelerator.gather(torch.tensor([progress.step], device=device)).unique()
        if len(steps) > 1:
            raise UserError(
                f"processes see checkpoints of different steps {steps.tolist()} in {self.folder}: "
                "run must be on a disk that all machines share"
            )
        for path in newest:
            self.accelerator.print(f"going on from {path}")
            self.accelerator.load_state(str(path), load_kwargs={"weights_only": True})
        if self.average is not None:
            self.average.n_averaged.fill_(progress.step - progress.skipped)
        if self.accelerator.is_main_process:
            for left_over in self.folder.glob(".step-*.partial"):
                shutil.rmtree(left_over)
        return progress

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _save_models(self, models: list[nn.Module], weights: list[dict], folder: str) -> None:
        weights.clear()
        if not self.accelerator.is_main_process:
            return
        self.task.save_weights(self.task.model, Path(folder) / WEIGHTS)
        if self.average is not None:
            self.task.save_weights(self.average.module, Path(folder) / AVERAGE)
        if self.task.adversary is not None:
            tensors = self.task.adversary.model.state_dict()
            write_tensors(Path(folder) / ADVERSARY, tensors, {})

    def _load_models(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        self.task.load_weights(self.task.model, Path(folder) / WEIGHTS)
        if self.average is not None:
            self.task.load_weights(self.average.module, Path(folder) / AVERAGE)
        if self.task.adversary is not None:
            load_in_place(self.task.adversary.model, Path(folder) / ADVERSARY)


def read_progress(path: Path) -> Progress:
    """How far a run is; CheckpointError if ``path`` is missing or damaged."""
    try:
        return from_json_dict(Progress, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({first_sentence(error)}): delete its folder to go on from the "
            "checkpoint before"
        ) from error


def partial_of(path: Path) -> Path:
    """What a checkpoint is called while it is not complete."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Delete a checkpoint; one that is deleted in part has its name no more."""
    shutil.rmtree(path.rename(partial_of(path)))


def flush(*paths: Path) -> None:
    """Wait until files and directories are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
