"""The training loop with parameters that two processes on the CPU share out."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.engine.training.test_loop import ROOT, arguments, newest, optimizers
from tests.engine.training.toy import settings
from tests.helpers import FSDP_LAUNCHER, LAUNCHER
from wanvae.engine.checkpoint import read_tensors
from wanvae.engine.training.optimization import asks_for_sharding
from wanvae.errors import UserError

TOY = ["-m", "tests.engine.training.toy"]
ALONE = LAUNCHER[:1]
# With everything that is shared out, and a batch that is added up.
OPTIONS = {"ema_decay": 0.5, "accumulate": 2, "keep_checkpoints": 9, "gradient_clip": 0.5}
GAME = {"dropout": 0.0, "discriminator_from": 2}


def start(launcher: list[str], run: Path, changes: dict[str, object]) -> subprocess.Popen:
    """Starts the command of tests.engine.training.toy, in two processes or one."""
    config = settings(run, **{**OPTIONS, **changes})
    how = {"processes": 1 if launcher is ALONE else 2, "sharded": launcher is FSDP_LAUNCHER}
    return subprocess.Popen(
        [*launcher, *TOY, *arguments(config, **GAME, **how)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def train(launcher: list[str], run: Path, **changes: object) -> None:
    process = start(launcher, run, changes)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def assert_close(one: Path, other: Path) -> None:
    """Whether two checkpoints are the same to rounding, with the states of their optimizers."""
    for name in ("model", "ema", "discriminator"):
        expected = read_tensors(other / f"{name}.safetensors").tensors
        found = read_tensors(one / f"{name}.safetensors").tensors
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)
    for found, expected in zip(optimizers(one), optimizers(other), strict=True):
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)


def cut(run: Path, whole: Path, step: int) -> None:
    """Makes the folder of a run that was killed after a checkpoint."""
    shutil.copytree(whole, run)
    (run / "model.safetensors").unlink()
    for folder in (run / "checkpoints").iterdir():
        if folder.name != f"step-{step:08d}":
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory) -> Path:
    """A run of two processes with FSDP."""
    run = tmp_path_factory.mktemp("runs") / "sharded"
    train(FSDP_LAUNCHER, run)
    return run


@pytest.fixture(scope="module")
def of_one(tmp_path_factory) -> Path:
    """The same run of one process."""
    run = tmp_path_factory.mktemp("runs") / "one"
    train(ALONE, run, accumulate=4)
    return run


@pytest.mark.slow
def test_processes_that_share_parameters_out_train_as_processes_with_all(tmp_path, shared_out):
    """The optimizer of the layer that takes part in no loss has no state either."""
    train(LAUNCHER, tmp_path)
    assert_close(newest(shared_out), newest(tmp_path))
    weights = (read_tensors(run / "model.safetensors").tensors for run in (shared_out, tmp_path))
    for pair in zip(*(tensors.values() for tensors in weights), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_and_without_sharing_out(tmp_path, shared_out, of_one):
    """From two processes to one, and from one to two."""
    assert_close(newest(shared_out), newest(of_one))
    cut(tmp_path / "one", shared_out, 3)
    train(ALONE, tmp_path / "one", accumulate=4)
    assert_close(newest(tmp_path / "one"), newest(shared_out))
    cut(tmp_path / "two", of_one, 3)
    train(FSDP_LAUNCHER, tmp_path / "two")
    assert_close(newest(tmp_path / "two"), newest(of_one))


@pytest.mark.slow
def test_a_signal_ends_and_saves_a_run_that_is_shared_out(tmp_path):
    process = start(FSDP_LAUNCHER, tmp_path, {"steps": 10**6, "checkpoint_every": 10**6})
    while process.poll() is None and not (tmp_path / "log.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    step = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert newest(tmp_path).name == f"step-{step:08d}", errors
    assert f"SIGTERM ended the run after step {step} of 1000000, which is saved" in errors


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FSDP_VERSION", "1", "set fsdp_version to 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params is not supported"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "--gradient_checkpointing true instead"),
    ],
)
def test_what_sharing_out_cannot_do_is_named(monkeypatch, variable, value, message):
    accelerator = Accelerator(cpu=True)
    assert not asks_for_sharding(accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert not asks_for_sharding(accelerator)  # one process has nothing to share
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message):
        asks_for_sharding(accelerator)
