"""One optimizer step of a model, and of the adversary it plays against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.task import Task

# What has to be finite for a step to count.
DECISIVE = ("loss", "gradient_norm", "adversary_loss", "adversary_gradient_norm")


@dataclass(frozen=True)
class Learner:
    """A model as accelerate wraps it, with its optimizer and its highest learning rate."""

    model: nn.Module
    optimizer: Optimizer
    learning_rate: float


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


class Optimization:
    """The models of a task with their optimizers."""

    def __init__(self, task: Task, config: TrainerConfig, accelerator: Accelerator) -> None:
        self.task = task
        self.config = config
        self.accelerator = accelerator
        self.learner = make_learner(task.model, config.learning_rate, config, accelerator)
        self.forward = self.learner.model
        if config.compile:
            self.forward = torch.compile(self.forward)
        self.opponent = None
        if task.adversary is not None:
            rate = task.adversary.learning_rate
            self.opponent = make_learner(task.adversary.model, rate, config, accelerator)

    def step(self, parts: Sequence[Any], step: int) -> tuple[dict[str, Tensor], bool]:
        """Learn from the batches that make one step.

        Nothing changes if a loss or a gradient is not finite on some process.

        Returns:
            Losses, figures and norms of gradients, scalars by name, and whether all was finite.
        """
        learners = self._learners(step)
        rival = self.opponent.model if self.opponent in learners else None
        buffers = [buffer for each in learners for buffer in each.model.buffers()]
        before = [buffer.clone() for buffer in buffers]
        values = self._add_gradients(rival, parts, step)
        for name, each in zip(("gradient_norm", "adversary_gradient_norm"), learners, strict=False):
            limit = self.config.gradient_clip
            values[name] = self.accelerator.clip_grad_norm_(each.model.parameters(), limit)
        finite = self._all_finite(values[name] for name in DECISIVE if name in values)
        if finite:
            for each in learners:
                for group in each.optimizer.param_groups:
                    group["lr"] = each.learning_rate * self.config.schedule(step)
                each.optimizer.step()
        else:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # float16: the factor of the loss was too large
        for each in learners:
            each.optimizer.zero_grad()
        return values, finite

    def _learners(self, step: int) -> list[Learner]:
        """The model, and the adversary if it takes part in this step."""
        if self.task.adversary is None or step < self.task.adversary.starts_at:
            return [self.learner]
        return [self.learner, self.opponent]

    def _add_gradients(
        self, rival: nn.Module | None, parts: Sequence[Any], step: int
    ) -> dict[str, Tensor]:
        """The gradients of all batches of a step; returns the means of losses and figures.

        Args:
            rival: the adversary, if it takes part.
        """
        values: dict[str, Tensor] = {}
        for part, batch in enumerate(parts):
            place = part * self.accelerator.num_processes + self.accelerator.process_index
            torch.manual_seed(place_seed(self.config.seed, step, place))
            # Processes average their gradients once, with those of the last part.
            alone = part + 1 < len(parts)
            for name, value in self._add_gradients_of_batch(rival, batch, step, alone).items():
                share = value.detach().float() / len(parts)
                values[name] = values[name] + share if name in values else share
        return values

    def _add_gradients_of_batch(
        self, rival: nn.Module | None, batch: Any, step: int, alone: bool
    ) -> dict[str, Tensor]:
        """Add one batch's share to the gradients; returns its losses and figures.

        Args:
            rival: as for all batches.
            alone: keep the gradients to this process, as more are to come.
        """
        task, accelerator, parts = self.task, self.accelerator, self.config.accumulate
        with constant(rival, accelerator), apart(self.forward, alone, accelerator):
            made = task.losses(self.forward, rival, batch, step)
            loss = made.total()
            accelerator.backward(loss / parts)
        found = {"loss": loss, **made.terms, **made.figures}
        if rival is not None:
            with apart(rival, alone, accelerator):
                made = task.adversary.losses(rival, made.output, batch, step)
                loss = made.total()
                accelerator.backward(loss / parts)
            found |= {"adversary_loss": loss, **made.terms, **made.figures}
        return found

    def _all_finite(self, values: Iterable[Tensor]) -> bool:
        """Whether all of these scalars are finite, in all processes."""
        finite = torch.stack([torch.isfinite(value) for value in values]).all()
        return self.accelerator.reduce(finite.float(), reduction="mean").item() == 1


def place_seed(seed: int, step: int, place: int) -> int:
    """A seed for everything random in one batch of a step, of which there are many at places."""
    sequence = np.random.SeedSequence([seed, step, place])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


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
