"""A task of three layers, and a command to train it: ``-m tests.engine.training.toy RUN ...``."""

import os
import signal
import sys
from pathlib import Path

import torch
from jsonargparse import CLI
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from wanvae.engine.checkpoint import load_in_place, write_tensors
from wanvae.engine.command_line.outcome import exit_status
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.loop import make_accelerator, train
from wanvae.engine.training.task import Discriminator, StepLosses, Task


class Noise(Dataset):
    """Sample ``number`` follows from its number."""

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(number))


class KillAt(Noise):
    """Sends this process a signal when a sample is asked for."""

    def __init__(self, number: int, kind: signal.Signals) -> None:
        self.number, self.kind = number, kind

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == self.number:
            os.kill(os.getpid(), self.kind)
        return super().__getitem__(number)


class Block(nn.Sequential):
    """Layers in a row that are run by ``step``."""

    def step(self, x: torch.Tensor, state: None, region: None = None) -> tuple[torch.Tensor, None]:
        for layer in self:
            x = layer(x)
        return x, None


class Model(nn.Module):
    """The spare layer takes part in no loss, as a convolution along time for single frames."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = Block(nn.Linear(4, 3), nn.Dropout(dropout), nn.Linear(3, 1))
        self.spare = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers.step(x, None)[0]


def losses(model: nn.Module, discriminator: nn.Module | None, batch: torch.Tensor, step: int):
    output = model(batch)
    error = (output - 1).square().mean()
    terms = {"error": error}
    if discriminator is not None:
        terms["fooling"] = -0.1 * discriminator(output).mean()
    return StepLosses(terms, {"doubled": 2 * error.detach()}, output)


def judge(discriminator: nn.Module, output: torch.Tensor, batch: torch.Tensor, step: int):
    real, fake = discriminator(batch[:, :1] + 1), discriminator(output.detach())
    return StepLosses({"judging": (1 - real).relu().mean() + (1 + fake).relu().mean()})


def make_task(
    samples: Dataset | None = None, *, dropout: float = 0.5, discriminator_from: int | None = None
) -> Task:
    torch.manual_seed(0)
    discriminator = None
    if discriminator_from is not None:
        second = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
        discriminator = Discriminator(second, judge, discriminator_from, 0.05)
    model = Model(dropout)
    return Task(
        model=model,
        blocks=[model.layers],
        samples=samples or Noise(),
        losses=losses,
        save_weights=lambda model, path: write_tensors(path, model.state_dict(), {}),
        load_weights=load_in_place,
        discriminator=discriminator,
    )


def settings(run: Path, **changes: object) -> TrainerConfig:
    options = {
        "run": str(run),
        "steps": 8,
        "batch_size": 2,
        "learning_rate": 0.1,
        "warmup_steps": 2,
        "checkpoint_every": 3,
        "log_every": 1,
        "tracker": "none",
        "workers": 0,
    }
    return TrainerConfig(**{**options, **changes})


def main(
    trainer: TrainerConfig,
    dropout: float = 0.5,
    discriminator_from: int | None = None,
    kill_at: int | None = None,
    processes: int = 1,
    sharded: bool = False,
) -> int:
    accelerator = make_accelerator(trainer)
    if accelerator.num_processes != processes:
        raise RuntimeError(f"started {accelerator.num_processes} processes, not {processes}")
    samples = None if kill_at is None else KillAt(kill_at, signal.SIGKILL)
    task = make_task(samples, dropout=dropout, discriminator_from=discriminator_from)

    def run() -> int:
        train(task, trainer, accelerator)
        shares = {isinstance(p, DTensor) for p in task.model.parameters()}
        if shares != {sharded}:
            raise RuntimeError(f"parameters are shared out or not: {shares}, not {sharded}")
        return 0

    return exit_status(run, "toy", [])


if __name__ == "__main__":
    sys.exit(CLI(main))
