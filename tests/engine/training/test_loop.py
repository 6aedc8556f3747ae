"""The training loop on a model of a few numbers."""

import gc
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.engine.training.toy import KillAt, Model, Noise, losses, make_task, settings
from tests.helpers import LAUNCHER
from wanvae.engine.checkpoint import CheckpointError, read_tensors
from wanvae.engine.files import FileError
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.signals import STOP_SIGNALS, Interrupted
from wanvae.engine.training import loop
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.loop import LoaderError, make_accelerator, train
from wanvae.errors import UserError

pytestmark = pytest.mark.usefixtures("without_matplotlib")
ROOT = Path(__file__).parents[3]
# Where the size of a gradient matters, and not only its direction.
PLAIN = {"optimizer": "sgd", "gradient_clip": 1000.0, "learning_rate": 0.03}


@pytest.fixture
def accelerator():
    """A fresh one for each run, as a new process has."""

    def make(config: TrainerConfig | None = None) -> Accelerator:
        AcceleratorState._reset_state()
        PartialState._reset_state()
        return Accelerator(cpu=True) if config is None else make_accelerator(config)

    yield make
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def without_matplotlib(monkeypatch):
    """As if it were not installed, for drawing takes longer than these runs."""
    monkeypatch.setattr("wanvae.engine.training.log.find_spec", lambda name: None)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "model.safetensors").tensors


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor), name


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def optimizers(checkpoint: Path) -> list[dict[str, torch.Tensor]]:
    """The states of all parameters, of one optimizer after another."""
    states = []
    for path in sorted(checkpoint.glob("optimizer*.bin")):
        content = torch.load(path, weights_only=True)["state"]
        states += [
            {key: torch.as_tensor(value) for key, value in content[i].items()} for i in content
        ]
    return states


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    names = {path.name for path in one.glob("*.safetensors")}
    assert names == {path.name for path in other.glob("*.safetensors")}
    for name in names:
        assert_equal(read_tensors(one / name).tensors, read_tensors(other / name).tensors)
    pairs = list(zip(optimizers(one), optimizers(other), strict=True))
    assert pairs
    for pair in pairs:
        assert_equal(*pair)
    assert (one / "progress.json").read_text() == (other / "progress.json").read_text()


def log_lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def arguments(config: TrainerConfig, **options: object) -> list[str]:
    """For the command of tests.engine.training.toy."""
    named = {f"trainer.{name}": value for name, value in asdict(config).items()} | options
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in named.items()
        if value is not None
    ]


def run_command(*command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment, cwd=ROOT
    )


@pytest.mark.parametrize("kind", STOP_SIGNALS)
def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(tmp_path, accelerator, kind):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(make_task(), settings(whole), accelerator())
    with pytest.raises(Interrupted):
        train(make_task(KillAt(10, kind)), settings(stopped), accelerator())
    assert not (stopped / "model.safetensors").exists()
    train(make_task(), settings(stopped), accelerator())
    assert_equal(final_weights(whole), final_weights(stopped))


def test_a_process_that_loads_data_and_is_killed_is_one_line(tmp_path, accelerator):
    """And not a fault of this program."""
    samples = KillAt(8, signal.SIGKILL)
    with pytest.raises(LoaderError, match=r"loads data was killed .*trainer\.workers"):
        train(make_task(samples), settings(tmp_path, workers=1), accelerator())
    train(make_task(), settings(tmp_path), accelerator())


def test_no_process_that_loads_data_outlives_a_run(tmp_path, accelerator):
    """They ignore signals, so Python would wait for them for ever when it exits."""

    def stop(model, discriminator, batch, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return losses(model, discriminator, batch, step)

    before = {*multiprocessing.active_children()}  # of other tests
    gc.disable()
    try:
        task = replace(make_task(), losses=stop)
        with pytest.raises(Interrupted):
            train(task, settings(tmp_path, workers=2), accelerator())
        assert {*multiprocessing.active_children()} <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", STOP_SIGNALS)
def test_a_run_stops_cleanly_when_its_whole_group_is_told_to(tmp_path, kind):
    """As a terminal or a scheduler does, with the processes that load data."""
    config = settings(tmp_path, steps=10**6, checkpoint_every=10**6, workers=2)
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.training.toy", *arguments(config)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    while run.poll() is None and not (tmp_path / "log.jsonl").exists():
        time.sleep(0.05)
    os.killpg(run.pid, kind)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + kind, errors
    saved, step = newest(tmp_path), log_lines(tmp_path)[-1]["step"]
    assert saved.name == f"step-{step:08d}"
    assert errors.splitlines()[-1] == (
        f"toy: interrupted; {kind.name} ended the run after step {step} of 1000000, which is saved "
        f"in {saved}; run the same command again to go on"
    )
    assert "Traceback" not in errors


@pytest.mark.parametrize("others", [[0], [signal.SIGTERM, 0]])
def test_processes_of_a_run_end_with_one_status(monkeypatch, others):
    """Whichever of them received the signal; the first one says what happened."""
    received = [] if any(others) else [signal.SIGTERM]
    gathered = [torch.tensor([number]) for number in others]
    monkeypatch.setattr(loop, "gather_from_processes", lambda own: [own, *gathered])
    for first, ending in ((True, Interrupted), (False, SystemExit)):
        process = SimpleNamespace(device=torch.device("cpu"), is_main_process=first)
        with pytest.raises(ending) as end:
            loop.end_by_signal(received, "step 1 of 2", Path("saved"), process)
        if first:
            assert end.value.signal is signal.SIGTERM
        else:
            assert end.value.code == 143


def test_a_signal_after_the_last_step_does_not_undo_it(tmp_path, accelerator):
    """The model is written, and the run is complete."""

    def save(model, path):
        if path.parent == tmp_path:
            os.kill(os.getpid(), signal.SIGTERM)
        make_task().save_weights(model, path)

    config = settings(tmp_path, steps=1, checkpoint_every=9)
    train(replace(make_task(), save_weights=save), config, accelerator())
    assert (tmp_path / "model.safetensors").exists()


def test_a_run_that_was_killed_goes_on_as_if_it_never_was(tmp_path, accelerator):
    """With everything that a checkpoint has to bring back."""
    changes = {"steps": 20, "checkpoint_every": 10, "accumulate": 2, "ema_decay": 0.9}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(make_task(discriminator_from=5), settings(whole, **changes), accelerator())
    config = settings(killed, **changes)
    options = arguments(config, dropout=0.5, discriminator_from=5, kill_at=4 * 13)
    died = run_command("tests.engine.training.toy", *options)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert newest(killed).name == "step-00000010"
    # What a kill in the middle of a save, of a line and of a removal would leave.
    (killed / "checkpoints" / ".step-00000013.partial").mkdir()
    (killed / ".model.0123abcd.safetensors").touch()
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    train(make_task(discriminator_from=5), config, accelerator())
    assert_equal_checkpoints(newest(whole), newest(killed))
    assert_equal(final_weights(whole), final_weights(killed))
    assert [line["step"] for line in log_lines(killed)] == list(range(1, 21))
    assert not list((killed / "checkpoints").glob(".*"))
    assert not list(killed.glob(".model.*"))


def launch_two(options: list[str]) -> None:
    """Run the command of tests.engine.training.toy in two processes on the CPU."""
    done = run_command(*LAUNCHER[2:], "-m", "tests.engine.training.toy", "--processes=2", *options)
    assert done.returncode == 0, done.stderr


def test_two_processes_equal_one_with_twice_the_batch(tmp_path, accelerator):
    """And one that accumulates two batches, then with dropout too: noise follows the batch."""
    common = {**PLAIN, "ema_decay": 0.5}

    def weights_of_two(name: str, dropout: float) -> Path:
        config = settings(tmp_path / name, **common)
        launch_two(arguments(config, dropout=dropout, discriminator_from=3))
        return newest(tmp_path / name)

    def weights_of_one(name: str, dropout: float, **changes: object) -> Path:
        config = settings(tmp_path / name, **common, **changes)
        train(make_task(dropout=dropout, discriminator_from=3), config, accelerator())
        return newest(tmp_path / name)

    def assert_close(one: Path, other: Path) -> None:
        for name in ("model", "ema", "discriminator"):
            expected = read_tensors(other / f"{name}.safetensors").tensors
            for key, tensor in read_tensors(one / f"{name}.safetensors").tensors.items():
                torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6)

    assert_close(weights_of_two("two", 0.0), weights_of_one("one", 0.0, batch_size=4))
    assert_close(weights_of_two("noisy two", 0.5), weights_of_one("noisy", 0.5, accumulate=2))


def test_accumulated_batches_equal_a_large_one(tmp_path, accelerator):
    large, small = tmp_path / "large", tmp_path / "small"
    task = {"dropout": 0.0, "discriminator_from": 2}
    train(make_task(**task), settings(large, batch_size=6, **PLAIN), accelerator())
    config = settings(small, accumulate=3, **PLAIN)
    assert config.samples_per_step(processes=1) == 6
    train(make_task(**task), config, accelerator())
    for name, tensor in final_weights(large).items():
        torch.testing.assert_close(final_weights(small)[name], tensor, rtol=1e-5, atol=1e-6)
    pairs = zip(log_lines(large), log_lines(small), strict=True)
    assert all(a["error"] == pytest.approx(b["error"], rel=1e-3) for a, b in pairs)


def test_any_samples_are_used_once_and_in_turn(tmp_path, accelerator):
    class Recorder(Noise):
        def __init__(self) -> None:
            self.numbers = []

        def __getitem__(self, number: int) -> torch.Tensor:
            self.numbers.append(number)
            return super().__getitem__(number)

    first, second = Recorder(), Recorder()
    config = settings(tmp_path, steps=4, checkpoint_every=2, accumulate=2)
    with pytest.raises(ZeroDivisionError):
        train(replace(make_task(first), losses=failing_at(2)), config, accelerator())
    train(make_task(second), config, accelerator())
    assert second.numbers == list(range(2 * 4, 4 * 4))


def failing_at(failing: int):
    def losses_until(model, discriminator, batch, step):
        return losses(model, discriminator, batch, step / (step != failing))

    return losses_until


def test_keeps_the_newest_checkpoints(tmp_path, accelerator):
    train(make_task(), settings(tmp_path, checkpoint_every=2, keep_checkpoints=2), accelerator())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize(("best_is", "expected"), [("highest", 3), ("lowest", 2)])
def test_keeps_the_best_checkpoint(tmp_path, accelerator, best_is, expected):
    """Over an interruption, and where no checkpoint was due."""
    scores = {1: 2.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 3.0, 6: float("nan"), 7: 3.5, 8: 3.0}
    config = settings(
        tmp_path,
        evaluate_every=1,
        checkpoint_every=4,
        keep_checkpoints=1,
        best="score",
        best_is=best_is,
    )
    count = iter(scores.values())
    task = replace(make_task(), evaluate=lambda _: {"score": next(count), "other": 0.0})
    broken = replace(task, losses=failing_at(6))
    with pytest.raises(ZeroDivisionError):
        train(broken, config, accelerator())
    count = iter(list(scores.values())[4:])
    train(task, config, accelerator())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{expected:08d}", "step-00000008"]
    progress = json.loads((tmp_path / "checkpoints" / names[-1] / "progress.json").read_text())
    assert progress["best_step"] == expected
    assert progress["best_score"] == scores[expected]
    evaluated = [
        line["evaluation_score"] for line in log_lines(tmp_path) if "evaluation_score" in line
    ]
    assert evaluated == [score for score in scores.values() if score == score]


def test_evaluates_and_previews_the_average_without_disturbing_the_run(tmp_path, accelerator):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    seen = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"noise": torch.rand(()).item()}

    changes = {"ema_decay": 0.9, "evaluate_every": 4, "preview_every": 8}
    train(make_task(), settings(plain, **changes), accelerator())
    task = replace(
        make_task(), evaluate=evaluate, preview=lambda model, path: path.write_text("drawn")
    )
    train(task, settings(watched, **changes), accelerator())
    assert_equal(final_weights(plain), final_weights(watched))
    assert_equal(final_weights(watched), seen[-1])
    assert len(seen) == 2
    assert (watched / "previews" / "step-00000008.png").read_text() == "drawn"


def test_the_average_follows_the_weights(tmp_path, accelerator):
    """By its definition, from the weights of every step."""
    config = settings(tmp_path, checkpoint_every=1, keep_checkpoints=8, ema_decay=0.5)
    train(make_task(), config, accelerator())
    expected: dict[str, torch.Tensor] = {}
    for count, folder in enumerate(sorted((tmp_path / "checkpoints").iterdir())):
        decay = min(0.5, (1 + count) / (10 + count)) if count else 0.0
        for name, tensor in read_tensors(folder / "model.safetensors").tensors.items():
            expected[name] = decay * expected.get(name, tensor) + (1 - decay) * tensor
        for name, tensor in read_tensors(folder / "ema.safetensors").tensors.items():
            torch.testing.assert_close(tensor, expected[name])
    assert_equal(
        final_weights(tmp_path), read_tensors(newest(tmp_path) / "ema.safetensors").tensors
    )


def test_the_discriminator_is_left_alone_by_the_model_and_before_its_time(tmp_path, accelerator):
    asked = []

    def watching(model, discriminator, batch, step):
        asked.append(discriminator is not None)
        if discriminator is not None:
            assert not any(parameter.requires_grad for parameter in discriminator.parameters())
        return losses(model, discriminator, batch, step)

    config = settings(tmp_path, checkpoint_every=1, keep_checkpoints=8)
    task = replace(make_task(discriminator_from=4), losses=watching)
    train(task, config, accelerator())
    assert asked == [False] * 4 + [True] * 4
    folders = sorted((tmp_path / "checkpoints").iterdir())
    weights = [read_tensors(folder / "discriminator.safetensors").tensors for folder in folders]
    assert_equal(weights[0], weights[3])
    assert all(not torch.equal(a["0.weight"], b["0.weight"]) for a, b in pairwise(weights[3:]))
    assert "judging" not in log_lines(tmp_path)[3] and "judging" in log_lines(tmp_path)[4]


def test_logs_every_step(tmp_path, accelerator):
    train(make_task(), settings(tmp_path), accelerator())
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["doubled"] == pytest.approx(2 * lines[0]["error"], rel=1e-3)
    assert lines[-1]["error"] < lines[0]["error"]
    assert lines[1]["learning_rate"] == 0.1
    assert all(line["steps_per_second"] > 0 and line["memory_gb"] > 0.01 for line in lines)


def test_plots_the_log_and_tells_the_tracker(tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr("wanvae.engine.training.log.find_spec", find_spec)
    config = settings(tmp_path, tracker="tensorboard")
    train(make_task(), config, accelerator(config))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"gradient_norm" in events.read_bytes()
    # A run that goes on has its options there already.
    train(make_task(), replace(config, steps=9), accelerator(config))
    (options,) = (tmp_path / "tensorboard").rglob("hparams.yml")
    assert "learning_rate: 0.1" in options.read_text()


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("wanvae.engine.training.loop.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tensorboard is not installed"):
        make_accelerator(TrainerConfig())


def test_a_precision_that_the_device_lacks_is_named(monkeypatch):
    """Whether accelerate takes fp16 on a CPU depends on its version."""

    def refuse(**_: object) -> None:
        raise ValueError("fp16 mixed precision requires a GPU (not 'cpu')")

    monkeypatch.setattr("wanvae.engine.training.loop.Accelerator", refuse)
    with pytest.raises(UserError, match=r"mixed_precision is fp16: .* a GPU .*; set it to no"):
        make_accelerator(TrainerConfig(mixed_precision="fp16", tracker="none"))
    with pytest.raises(ValueError, match="requires a GPU") as caught:
        make_accelerator(TrainerConfig(tracker="none"))
    assert not isinstance(caught.value, UserError)


class Broken(Noise):
    """Some of its samples are infinite."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __getitem__(self, number: int) -> torch.Tensor:
        return super().__getitem__(number) * (torch.inf if number in self.numbers else 1)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path, accelerator):
    config = settings(tmp_path, checkpoint_every=1, keep_checkpoints=8, accumulate=2, ema_decay=0.9)
    task = make_task(Broken(4 * 4), discriminator_from=2)
    # Running statistics of the forward pass are no exception.
    task.model.layers.insert(0, nn.BatchNorm1d(4))
    train(task, config, accelerator())
    before, after, later = sorted((tmp_path / "checkpoints").iterdir())[3:6]
    for name in ("model", "ema", "discriminator"):
        tensors = read_tensors(before / f"{name}.safetensors").tensors
        assert_equal(tensors, read_tensors(after / f"{name}.safetensors").tensors)
    for pair in zip(optimizers(before), optimizers(after), strict=True):
        assert_equal(*pair)
    weight = "layers.1.weight"
    assert not torch.equal(
        read_tensors(after / "model.safetensors").tensors[weight],
        read_tensors(later / "model.safetensors").tensors[weight],
    )
    skipped = [line["skipped"] for line in log_lines(tmp_path)]
    assert skipped == [0, 0, 0, 0, 1, 1, 1, 1]
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_a_run_goes_on_as_if_it_never_stopped_after_a_skipped_step(tmp_path, accelerator):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    changes = {"ema_decay": 0.9, "checkpoint_every": 4}
    train(make_task(Broken(4)), settings(whole, **changes), accelerator())
    with pytest.raises(ZeroDivisionError):
        broken = replace(make_task(Broken(4)), losses=failing_at(5))
        train(broken, settings(stopped, **changes), accelerator())
    train(make_task(Broken(4)), settings(stopped, **changes), accelerator())
    assert_equal_checkpoints(newest(whole), newest(stopped))


def test_stops_after_too_many_steps_that_are_not_finite(tmp_path, accelerator):
    samples = Broken(2, 6, 8, 10)
    train(make_task(samples), settings(tmp_path / "a", most_skipped_steps=3), accelerator())
    with pytest.raises(NotFiniteError, match=r"3 steps in a row .* at step 5 .*error"):
        train(make_task(samples), settings(tmp_path / "b", most_skipped_steps=2), accelerator())


@pytest.mark.parametrize("room", [0, 1500])
def test_a_full_disk_is_one_line_and_leaves_older_checkpoints(tmp_path, accelerator, capsys, room):
    """From the second checkpoint on files may grow to ``room`` bytes; ``capsys`` needs none."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def losses_on_a_full_disk(model, discriminator, batch, step):
        if step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        return losses(model, discriminator, batch, step)

    config = settings(tmp_path, log_every=100)
    try:
        with pytest.raises(CheckpointError) as caught:
            train(replace(make_task(), losses=losses_on_a_full_disk), config, accelerator())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/checkpoints/step-00000006 cannot be written (")
    assert "GB free on its disk: make room" in message
    assert "\n" not in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    train(make_task(), config, accelerator())


def test_the_first_error_is_told_where_the_disk_of_the_checkpoints_is_gone(tmp_path, accelerator):
    """As of a disk that is no longer mounted, whose free space cannot be asked for either."""
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    with pytest.raises(CheckpointError, match=r"step-00000003 cannot be written \(\[Errno 17\]"):
        train(make_task(), settings(tmp_path), accelerator())


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_where_the_folder_of_a_run_should_be_is_one_line(tmp_path, accelerator, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match=r"file.* cannot be the folder of the run .*trainer\.run"):
        train(make_task(), settings(tmp_path / name), accelerator())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_finished_run_with_fewer_steps_says_that_nothing_is_trained(
    tmp_path, accelerator, capsys
):
    assert train(make_task(), settings(tmp_path, steps=4), accelerator()) == 4
    written = (tmp_path / "model.safetensors").read_bytes()
    assert train(make_task(), settings(tmp_path, steps=2), accelerator()) == 4
    assert "has 4 steps already, more than steps 2: nothing is trained" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").read_bytes() == written


def test_goes_on_from_the_discriminator_of_an_earlier_version(tmp_path, accelerator):
    """Its file had another name."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(make_task(discriminator_from=1), settings(whole), accelerator())
    broken = replace(make_task(discriminator_from=1), losses=failing_at(5))
    with pytest.raises(ZeroDivisionError):
        train(broken, settings(stopped), accelerator())
    file = newest(stopped) / "discriminator.safetensors"
    file.rename(file.with_name("adversary.safetensors"))
    train(make_task(discriminator_from=1), settings(stopped), accelerator())
    assert_equal_checkpoints(newest(whole), newest(stopped))


def test_a_damaged_file_of_a_checkpoint_is_named(tmp_path, accelerator):
    train(make_task(), settings(tmp_path), accelerator())
    for damage in (b"", b'{"step": "x"}', b"[]", b"\xff"):
        (newest(tmp_path) / "progress.json").write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"progress\.json cannot be read \(.*\): delete"):
            train(make_task(), settings(tmp_path), accelerator())


def test_checkpoints_hold_nothing_that_has_to_be_trusted(tmp_path, accelerator):
    """An optimizer file that holds other objects than tensors is refused."""
    config = settings(tmp_path)
    train(make_task(), config, accelerator())
    torch.save({"state": Model(0.5)}, newest(tmp_path) / "optimizer.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        train(make_task(), config, accelerator())


def test_learning_rate_warms_up_and_decays_to_zero():
    config = TrainerConfig(steps=10, warmup_steps=2)
    rates = [config.schedule(step) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(later < earlier for earlier, later in pairwise(rates[2:]))
    assert rates[10] == pytest.approx(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"most_skipped_steps": -1}, "most_skipped_steps must be at least 0, not -1"),
        ({"gradient_clip": 0.0}, "gradient_clip must be above 0, not 0.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), not 1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), not \(0.9, 1.0\)"),
        ({"workers": -1}, "workers must be at least 0, not -1"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*63\), not -1"),
    ],
)
def test_an_impossible_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**changes)


def test_the_best_needs_an_evaluation_that_gives_its_figure(tmp_path, accelerator):
    config = settings(tmp_path, best="psnr", evaluate_every=1)
    with pytest.raises(ValueError, match="best is 'psnr', but nothing is evaluated"):
        train(make_task(), config, accelerator())
    task = replace(make_task(), evaluate=lambda _: {"ssim": 1.0})
    with pytest.raises(ValueError, match="best must be one of ssim, not 'psnr'"):
        train(task, config, accelerator())
    run = tmp_path / "run"
    config = replace(config, run=str(run))
    with pytest.raises(ValueError, match="best must be one of ssim, kl, not 'psnr'"):
        train(replace(task, figures=("ssim", "kl")), config, accelerator())
    assert not run.exists()


def test_a_warm_up_that_is_longer_than_the_run_is_told(tmp_path, accelerator, capsys):
    for run, warmup_steps in (("some", 2), ("all", 8), ("more", 10)):
        config = settings(tmp_path / run, warmup_steps=warmup_steps)
        train(make_task(), config, accelerator())
        told = "so the learning rate rises to the end, and only to 0.08" in capsys.readouterr().out
        assert told == (warmup_steps == 10)


class Left:
    """Something whose end in another process would be told in a file, if Python freed it there."""

    def __init__(self, told: Path) -> None:
        self.me, self.told, self.process = self, told, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.process:
            self.told.touch()


class Collecting(Dataset):
    """Samples whose process looks for what to free."""

    def __getitem__(self, number: int) -> int:
        return gc.collect()

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("begin", [None, loop.begin_to_load])
def test_processes_that_load_free_nothing_of_the_trainer(begin, tmp_path):
    gc.disable()
    try:
        Left(tmp_path / "told")
        list(DataLoader(Collecting(), num_workers=1, worker_init_fn=begin))
    finally:
        gc.enable()
    assert (tmp_path / "told").exists() == (begin is None)
