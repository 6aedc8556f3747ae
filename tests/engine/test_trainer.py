"""The training loop on a model of one layer."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from torch.utils.data import Dataset

from wanvae.engine.checkpoint import read_tensors, write_tensors
from wanvae.engine.trainer import NotFiniteError, Task, TrainerConfig, train


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


def losses(model: nn.Module, batch: torch.Tensor):
    error = (model(batch) - 1).square().mean()
    return {"error": error}, {"doubled": 2 * error.detach()}


def load_weights(model: nn.Module, path: Path) -> None:
    model.load_state_dict(read_tensors(path).tensors)


def make_task(samples: Dataset | None = None) -> Task:
    torch.manual_seed(0)
    return Task(
        model=nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 1)),
        samples=samples or Noise(),
        losses=losses,
        save_weights=lambda model, path: write_tensors(path, model.state_dict(), {}),
        load_weights=load_weights,
    )


@pytest.fixture
def accelerator():
    """A fresh one for each run, as a new process has."""

    def make() -> Accelerator:
        AcceleratorState._reset_state()
        PartialState._reset_state()
        return Accelerator(cpu=True)

    yield make
    AcceleratorState._reset_state()
    PartialState._reset_state()


def settings(run: Path, **changes: object) -> TrainerConfig:
    options = {
        "run": str(run),
        "steps": 8,
        "batch_size": 2,
        "learning_rate": 0.1,
        "warmup_steps": 2,
        "checkpoint_every": 3,
        "log_every": 1,
        "workers": 0,
    }
    return TrainerConfig(**{**options, **changes})


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "model.safetensors").tensors


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(tmp_path, accelerator, kind):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(make_task(), settings(whole), accelerator())
    assert not train(make_task(KillAt(10, kind)), settings(stopped), accelerator())
    assert not (stopped / "model.safetensors").exists()
    assert train(make_task(), settings(stopped), accelerator())
    for name, tensor in final_weights(whole).items():
        assert torch.equal(final_weights(stopped)[name], tensor), name


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path, accelerator):
    class Died(Exception):
        pass

    class DieAt(Noise):
        def __getitem__(self, number: int) -> torch.Tensor:
            if number == 10:
                raise Died
            return super().__getitem__(number)

    whole, died = tmp_path / "whole", tmp_path / "died"
    train(make_task(), settings(whole), accelerator())
    with pytest.raises(Died):
        train(make_task(DieAt()), settings(died), accelerator())
    # What a kill in the middle of a save would leave.
    (died / "checkpoints" / ".step-00000006.partial").mkdir()
    train(make_task(), settings(died), accelerator())
    for name, tensor in final_weights(whole).items():
        assert torch.equal(final_weights(died)[name], tensor), name


def test_keeps_the_newest_checkpoints(tmp_path, accelerator):
    train(make_task(), settings(tmp_path, checkpoint_every=2, keep_checkpoints=2), accelerator())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]


def test_logs_every_step(tmp_path, accelerator):
    train(make_task(), settings(tmp_path), accelerator())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["doubled"] == pytest.approx(2 * lines[0]["error"], rel=1e-3)
    assert lines[-1]["error"] < lines[0]["error"]


def test_stops_at_a_loss_that_is_not_finite(tmp_path, accelerator):
    class Broken(Noise):
        def __getitem__(self, number: int) -> torch.Tensor:
            return super().__getitem__(number) * (torch.inf if number == 8 else 1)

    with pytest.raises(NotFiniteError, match="at step 4"):
        train(make_task(Broken()), settings(tmp_path), accelerator())


def test_learning_rate_warms_up_and_decays_to_zero():
    config = TrainerConfig(steps=10, warmup_steps=2, learning_rate=1.0)
    rates = [config.learning_rate_at(step) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(later < earlier for earlier, later in pairwise(rates[2:]))
    assert rates[10] == pytest.approx(0)


def test_an_impossible_setting_is_named():
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        TrainerConfig(steps=0)
