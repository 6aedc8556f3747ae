"""One optimizer step of a model and of its discriminator."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from wanvae.engine.processes import mean_over_processes
from wanvae.engine.training.compiling import compile_blocks
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.task import StepLosses, Task
from wanvae.errors import UserError

if TYPE_CHECKING:
    from wanvae.engine.training.sharding import Sharded

# Scalars that must be finite, or the step is skipped.
DECISIVE = ("loss", "gradient_norm", "discriminator_loss", "discriminator_gradient_norm")


def asks_for_sharding(accelerator: Accelerator) -> bool:
    """Whether the launcher asks for FSDP, with more than one process.

    Raises:
        UserError: it asks for something that the loop cannot do.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("this asks for the first version of FSDP: set fsdp_version to 2")
    for option, instead in (
        ("OFFLOAD_PARAMS", "leave it out"),
        ("ACTIVATION_CHECKPOINTING", "train with --gradient_checkpointing true instead"),
    ):
        if os.environ.get(f"FSDP_{option}", "false").lower() == "true":
            raise UserError(f"fsdp_{option.lower()} is not supported: {instead}")
    return accelerator.num_processes > 1


@dataclass(frozen=True)
class Learner:
    """A model that is trained, with its optimizer.

    Attributes:
        model: as accelerate wraps it, or shared out.
        learning_rate: the highest.
        sharded: how the processes share the parameters out; None if each process has all.
    """

    model: nn.Module
    optimizer: Optimizer
    learning_rate: float
    sharded: Sharded | None

    def state(self) -> dict[str, Any]:
        """The state of the optimizer, with whole tensors."""
        if self.sharded is None:
            return self.optimizer.state_dict()
        return self.sharded.gather_state(self.optimizer)

    def load_state(self, state: dict[str, Any]) -> None:
        """Loads such a state into the optimizer."""
        if self.sharded is not None:
            state = self.sharded.distribute_state(self.optimizer, state)
        self.optimizer.load_state_dict(state)

    def clip(self, limit: float, accelerator: Accelerator) -> Tensor:
        """Limits the norm of the gradient; returns the norm before."""
        norm = accelerator.clip_grad_norm_(self.model.parameters(), limit)
        assert norm is not None, "accelerate gives no norm with DeepSpeed"
        return norm if self.sharded is None else self.sharded.gather(norm)

    @contextmanager
    def whole(self, source: nn.Module, *, changes: bool = False) -> Iterator[nn.Module]:
        """Gives ``source`` as a plain model, as ``Sharded.whole`` does, if it is shared out."""
        if self.sharded is None:
            yield source
            return
        with self.sharded.whole(source, changes=changes) as plain:
            yield plain


def make_learner(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    learning_rate: float,
    config: TrainerConfig,
    accelerator: Accelerator,
) -> Learner:
    """``model`` ready for training, with an optimizer of the parameters that may change.

    Args:
        blocks: of the model, as in ``Task``.
    """
    sharded = None
    if asks_for_sharding(accelerator):
        # Here, because not every PyTorch has it.
        from wanvae.engine.training.sharding import Sharded

        sharded = Sharded(model, blocks, accelerator)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = SGD(parameters, lr=learning_rate, weight_decay=config.weight_decay)
    else:
        optimizer = AdamW(
            parameters, lr=learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
    if sharded is None:
        model, optimizer = accelerator.prepare(model, optimizer)
    else:
        optimizer = accelerator.prepare_optimizer(optimizer)
    return Learner(model.train(), optimizer, learning_rate, sharded)


class Optimization:
    """The models of a task with their optimizers."""

    def __init__(self, task: Task, config: TrainerConfig, accelerator: Accelerator) -> None:
        self.task = task
        self.config = config
        self.accelerator = accelerator
        if config.compile and asks_for_sharding(accelerator):
            raise UserError("trainer.compile does not work with FSDP: leave one of them out")
        self.learner = make_learner(
            task.model, task.blocks, config.learning_rate, config, accelerator
        )
        self.forward = self.learner.model
        if config.compile and task.blocks:
            compile_blocks(task.blocks)
        elif config.compile:
            self.forward = cast(nn.Module, torch.compile(self.forward))
        self.discriminator = None
        if task.discriminator is not None:
            model, rate = task.discriminator.model, task.discriminator.learning_rate
            self.discriminator = make_learner(model, (), rate, config, accelerator)

    def step(self, parts: Sequence[Any], step: int) -> tuple[dict[str, Tensor], bool]:
        """Learns from the batches of one step.

        Nothing changes if a loss or a gradient is not finite on some process.

        Returns:
            Losses, figures and norms of gradients, scalars by name; and whether all are finite.
        """
        learners = {"": self.learner}
        discriminator = self._discriminator_at(step)
        if discriminator is not None:
            learners["discriminator_"] = discriminator
        buffers = [buffer for each in learners.values() for buffer in each.model.buffers()]
        before = [buffer.clone() for buffer in buffers]
        values = self._add_gradients(discriminator, parts, step)
        for prefix, each in learners.items():
            if each.sharded is not None:
                each.sharded.reshard()
                each.sharded.drop_unused_gradients()
            norm = each.clip(self.config.gradient_clip, self.accelerator)
            values[f"{prefix}gradient_norm"] = norm
        finite = self._all_finite(values[name] for name in DECISIVE if name in values)
        if finite:
            for each in learners.values():
                for group in each.optimizer.param_groups:
                    group["lr"] = each.learning_rate * self.config.schedule(step)
                each.optimizer.step()
        else:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # float16: the factor of the loss was too large
        for each in learners.values():
            each.optimizer.zero_grad()
        return values, finite

    def _discriminator_at(self, step: int) -> Learner | None:
        """The discriminator, if it takes part in this step."""
        task = self.task.discriminator
        return None if task is None or step < task.starts_at else self.discriminator

    def _add_gradients(
        self, discriminator: Learner | None, parts: Sequence[Any], step: int
    ) -> dict[str, Tensor]:
        """Adds the gradients of all batches of a step; returns means of losses and figures.

        Args:
            discriminator: None if it does not take part.
        """
        values: dict[str, Tensor] = {}
        statistics = []
        if self.task.begin_step is not None:
            self._seed(step, 0)
            self.task.begin_step(parts)
        for part, batch in enumerate(parts):
            self._seed(step, part)
            # Processes average their gradients once, with the gradients of the last part.
            alone = part + 1 < len(parts)
            found, of_batch = self._add_gradients_of_batch(discriminator, batch, step, alone)
            statistics.append(of_batch)
            for name, value in found.items():
                share = value.detach().float() / len(parts)
                values[name] = values[name] + share if name in values else share
        if self.task.end_step is not None:
            values |= self.task.end_step(statistics)
        return values

    def _seed(self, step: int, part: int) -> None:
        """Seeds all that is random in a batch, which this process has in a part of a step."""
        place = part * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(place_seed(self.config.seed, step, place))

    def _add_gradients_of_batch(
        self, discriminator: Learner | None, batch: Any, step: int, alone: bool
    ) -> tuple[dict[str, Tensor], Any]:
        """Adds the gradients of one batch; returns its losses and figures, and its statistics.

        Args:
            discriminator: as for all batches.
            alone: keep the gradients on this process, because more batches follow.
        """
        task, accelerator = self.task, self.accelerator
        judge = None if discriminator is None else discriminator.model
        with constant(discriminator, accelerator), apart(self.learner, alone, accelerator):
            losses = task.losses(self.forward, judge, batch, step)
            values = self._backward(losses, "loss")
        if task.discriminator is not None and discriminator is not None:
            with apart(discriminator, alone, accelerator):
                of_task = task.discriminator.losses(discriminator.model, losses.output, batch, step)
                values |= self._backward(of_task, "discriminator_loss")
        return values, losses.statistics

    def _backward(self, losses: StepLosses, name: str) -> dict[str, Tensor]:
        """Adds the gradients of ``losses``; returns them by name, with their total as ``name``."""
        total = losses.total()
        self.accelerator.backward(total / self.config.accumulate)
        return {name: total, **losses.terms, **losses.figures}

    def _all_finite(self, values: Iterable[Tensor]) -> bool:
        """Whether all of these scalars are finite, in all processes."""
        finite = torch.stack([torch.isfinite(value) for value in values]).all()
        return mean_over_processes(finite.float()).item() == 1


def place_seed(seed: int, step: int, place: int) -> int:
    """A seed for everything random in one batch, which has a place among the batches of a step."""
    sequence = np.random.SeedSequence([seed, step, place])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def apart(learner: Learner, alone: bool, accelerator: Accelerator) -> Iterator[None]:
    """Does not average the gradients of a model over the processes if ``alone``."""
    if not alone:
        yield
    elif learner.sharded is not None:
        with learner.sharded.alone():
            yield
    else:
        with accelerator.no_sync(learner.model):
            yield


@contextmanager
def constant(learner: Learner | None, accelerator: Accelerator) -> Iterator[None]:
    """Gives no gradients to the parameters of a model, and lets no process wait for them."""
    if learner is None:
        yield
        return
    parameters = [p for p in learner.model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with apart(learner, True, accelerator):
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        if learner.sharded is not None:
            # The whole parameters of the next forward pass follow the shares.
            learner.sharded.reshard()
