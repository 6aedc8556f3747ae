"""What a run keeps of itself, and what it refuses to go on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.training.test_loop import arguments, final_weights, newest
from tests.engine.training.toy import KillAt, make_task, settings
from tests.helpers import LAUNCHER
from wanvae.engine.command_line.arguments import parse_config
from wanvae.engine.locking import locked
from wanvae.engine.signals import Interrupted
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.loop import train
from wanvae.engine.training.record import decisive_options, flat_options
from wanvae.engine.training.task import Task
from wanvae.errors import UserError

pytestmark = pytest.mark.usefixtures("without_matplotlib")
ROOT = Path(__file__).parents[3]

# For each option of the loop that changes the result, another value.
OTHERS = {
    "batch_size": 3,
    "optimizer": "sgd",
    "learning_rate": 0.2,
    "warmup_steps": 3,
    "betas": (0.5, 0.9),
    "weight_decay": 0.5,
    "gradient_clip": 2.0,
    "ema_decay": 0.5,
    "mixed_precision": "bf16",
    "best": "psnr",
    "best_is": "lowest",
    "seed": 1,
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    width: int = 4


@dataclass(frozen=True, kw_only=True)
class Whole:
    """All options of a run, as a program has them."""

    weights: str | None = None
    layers: tuple[Layer, ...] = ()
    layer: Layer | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed, because drawing takes longer than these runs."""
    monkeypatch.setattr("wanvae.engine.training.log.find_spec", lambda name: None)


@pytest.fixture
def start() -> Iterator[Callable[..., None]]:
    """Trains as a new process does."""

    def run(task: Task, config: TrainerConfig) -> None:
        AcceleratorState._reset_state()
        PartialState._reset_state()
        train(task, config, Accelerator(cpu=True))

    yield run
    AcceleratorState._reset_state()
    PartialState._reset_state()


def task_of(config: TrainerConfig, data: tuple[str, ...] = ("a", "b"), **options: object) -> Task:
    whole = Whole(trainer=config, **options)
    return replace(make_task(), config=whole, describe_data=lambda: {"here": data})


def test_each_option_of_the_loop_changes_the_result_or_may_change() -> None:
    names = {option.name for option in fields(TrainerConfig)}
    assert names == OTHERS.keys() | TrainerConfig.MAY_CHANGE
    assert not OTHERS.keys() & TrainerConfig.MAY_CHANGE


def test_the_folder_of_a_run_says_what_it_is_of(tmp_path: Path, start: Callable) -> None:
    config = settings(tmp_path, betas=(0.5, 0.75))
    whole = Whole(layers=(Layer(width=2),), trainer=config)
    start(
        replace(make_task(), config=whole, describe_data=lambda: {"here": ["a.mp4", "b.mp4"]}),
        config,
    )
    assert parse_config(Whole, "test", None, [f"--config={tmp_path / 'config.yaml'}"]) == whole
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["data_count"] == 2 and len(record["data_digest"]) == 64
    assert "PyTorch" in record["versions"] and record["command"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_changes_the_result_is_refused_by_name(
    tmp_path: Path, start: Callable, name: str
) -> None:
    """Of a run that is complete too, which would otherwise end well with the old model."""
    config = settings(tmp_path, steps=1)
    start(task_of(config), config)
    before = final_weights(tmp_path).keys()
    other = replace(config, **{name: OTHERS[name]})
    message = rf"trainer\.{name} is .*, not {OTHERS[name]!r}".replace("(", r"\(").replace(
        ")", r"\)"
    )
    task = replace(task_of(other), evaluate=lambda _: {"psnr": 1.0})
    with pytest.raises(UserError, match=rf"started with something else: .*{message}"):
        start(task, other)
    assert final_weights(tmp_path).keys() == before
    start(task_of(config), config)


def test_another_model_other_data_and_other_steps_are_refused(
    tmp_path: Path, start: Callable
) -> None:
    config = settings(tmp_path, steps=1)
    start(task_of(config, layer=Layer(width=4)), config)
    for task, changed, message in (
        (task_of(config, layer=Layer(width=8)), config, r"layer\.width is 4, not 8"),
        (task_of(config), config, r"layer\.width is 4, not None"),
        (
            task_of(config, ("a", "b", "c"), layer=Layer(width=4)),
            config,
            r"training data are 2 entries \(digest \w{8}\), not 3 entries",
        ),
        (
            task_of(config, ("a", "c"), layer=Layer(width=4)),
            config,
            r"training data are 2 entries \(digest \w{8}\), not 2 entries",
        ),
        (
            task_of(config, layer=Layer(width=4)),
            replace(config, accumulate=2),
            r"batches in a step \(trainer\.accumulate x processes\) are 1, not 2",
        ),
    ):
        with pytest.raises(UserError, match=message):
            start(task, changed)


def test_of_several_parts_the_one_that_changed_is_named(tmp_path: Path, start: Callable) -> None:
    config = settings(tmp_path, steps=1)

    def task(**parts: list[str]) -> Task:
        whole = Whole(trainer=config)
        return replace(make_task(), config=whole, describe_data=lambda: parts)

    start(task(videos=["a", "b"], photos=["c"]), config)
    record = json.loads((tmp_path / "run.json").read_text())
    assert [(part["name"], part["count"]) for part in record["data_parts"]] == [
        ("videos", 2),
        ("photos", 1),
    ]
    # The names of the folders may change.
    start(task(moved=["a", "b"], photos=["c"]), config)
    message = r"something else: the training data of photos are 1 entries \(digest \w{8}\), not 2 "
    with pytest.raises(UserError, match=message):
        start(task(videos=["a", "b"], photos=["c", "d"]), config)
    with pytest.raises(UserError, match=r"the training data are 3 entries .*, not 1 entries"):
        start(task(videos=["a"]), config)
    # The same lines in other parts are other data.
    with pytest.raises(UserError, match=r"the training data of videos are 2 entries .*, not 1 "):
        start(task(videos=["a"], photos=["b", "c"]), config)


def test_what_leaves_the_result_alone_may_change(tmp_path: Path, start: Callable) -> None:
    config = settings(tmp_path / "a", steps=2)
    start(task_of(config), config)
    changes = {
        "steps": 4,
        "find_unused_parameters": False,
        "most_skipped_steps": 2,
        "checkpoint_every": 1,
        "keep_checkpoints": 1,
        "evaluate_every": 7,
        "preview_every": 7,
        "log_every": 3,
        "tracker": "tensorboard",
        "workers": 1,
    }
    assert changes.keys() == TrainerConfig.MAY_CHANGE - {"run", "accumulate", "compile"}
    (tmp_path / "a").rename(tmp_path / "b")
    other = replace(config, run=str(tmp_path / "b"), **changes)
    start(task_of(other), other)
    assert newest(tmp_path / "b").name == "step-00000004"
    kept = parse_config(Whole, "test", None, [f"--config={tmp_path / 'b' / 'config.yaml'}"])
    assert kept.trainer == other


def test_before_the_first_checkpoint_anything_may_change(tmp_path: Path, start: Callable) -> None:
    config = settings(tmp_path, steps=3)

    def failing(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start(replace(task_of(config), losses=failing), config)
    other = replace(config, seed=1)
    start(task_of(other), other)


def test_a_run_of_an_earlier_version_goes_on_and_says_that_it_is_not_checked(
    tmp_path: Path, start: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path)
    start(task_of(config), config)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "run.json").unlink()
    capsys.readouterr()
    other = replace(config, seed=3)
    start(task_of(other), other)
    lines = [line for line in capsys.readouterr().out.splitlines() if "cannot be checked" in line]
    assert len(lines) == 1 and str(tmp_path) in lines[0]
    with pytest.raises(UserError, match=r"trainer\.seed is 3, not 0"):
        start(task_of(config), config)


def test_a_record_of_an_earlier_version_knows_the_name_of_the_weights(
    tmp_path: Path, start: Callable
) -> None:
    config = settings(tmp_path, steps=1)

    def begin(name: str, digest: str) -> None:
        start(replace(task_of(config, weights=name), identify_start=lambda: digest), config)

    begin("a", "1" * 64)
    begin("b", "1" * 64)
    with pytest.raises(
        UserError, match=r"weights is 'b' \(digest 11111111\), not 'b' \(digest 2{8}"
    ):
        begin("b", "2" * 64)
    with pytest.raises(
        UserError, match=r"weights is 'b' \(digest 1{8}\), not None \(digest none\)"
    ):
        start(task_of(config), config)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["start"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="weights is 'b', not 'a'"):
        begin("a", "1" * 64)
    begin("b", "2" * 64)
    assert json.loads((tmp_path / "run.json").read_text())["start"] == "2" * 64


@pytest.mark.parametrize("text", ["", "[", "trainer: {seed: x}", "unknown: 1"])
def test_damaged_settings_are_named(tmp_path: Path, start: Callable, text: str) -> None:
    config = settings(tmp_path, steps=1)
    start(task_of(config), config)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read \(.*\); delete both"):
        start(task_of(config), config)


@given(width=st.integers(), layers=st.lists(st.integers(), max_size=3), seed=st.integers(0, 9))
def test_options_are_named_once_and_flat(width: int, layers: list[int], seed: int) -> None:
    whole = Whole(
        layer=Layer(width=width),
        layers=tuple(Layer(width=each) for each in layers),
        trainer=TrainerConfig(seed=seed),
    )
    decisive, flat = decisive_options(whole), flat_options(whole)
    assert decisive["layer.width"] == flat["layer.width"] == width
    assert decisive["trainer.seed"] == flat["trainer.seed"] == seed
    assert decisive.keys() - {"layers"} <= flat.keys()
    assert "trainer.steps" in flat and "trainer.steps" not in decisive
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())


def test_a_run_says_how_it_ended_and_where_its_model_is(
    tmp_path: Path, start: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path)
    with pytest.raises(Interrupted) as interruption:
        start(make_task(KillAt(10, signal.SIGINT)), config)
    stopped = newest(tmp_path)
    assert str(interruption.value) == (
        f"SIGINT ended the run after step {int(stopped.name[5:])} of 8, which is saved in "
        f"{stopped}; run the same command again to go on"
    )
    capsys.readouterr()
    start(make_task(), config)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"{tmp_path / 'model.safetensors'}: the model after 8 steps"
    start(make_task(), config)
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_the_best_checkpoint_is_named_at_the_end(
    tmp_path: Path, start: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([1.0, 3.5, 2.0])
    config = settings(tmp_path, steps=3, evaluate_every=1, best="psnr", checkpoint_every=1)
    start(replace(make_task(), evaluate=lambda _: {"psnr": next(scores)}), config)
    best = tmp_path / "checkpoints" / "step-00000002"
    assert f"the best checkpoint, psnr 3.5, is {best}" in capsys.readouterr().out


def toy(config: TrainerConfig, *launcher: str, **options: object) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "tests.engine.training.toy"]
    return subprocess.Popen(
        [*command, *arguments(config, **options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_two_runs_do_not_share_a_folder(tmp_path: Path, start: Callable, kind: int) -> None:
    """The lock ends with its process, also where processes that load data live on a while."""
    config = settings(tmp_path, steps=10**6, checkpoint_every=10**6, workers=1)
    first = toy(config)
    while first.poll() is None and not (tmp_path / "log.jsonl").exists():
        time.sleep(0.05)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(
        UserError, match=rf"another process works in {tmp_path} \(process {first.pid}"
    ):
        start(make_task(), settings(tmp_path, seed=1))
    assert (tmp_path / "config.yaml").read_bytes() == before
    first.send_signal(kind)
    first.wait(60)
    with locked(tmp_path):
        pass
    first.communicate()


def test_no_process_of_a_second_run_starts_in_a_folder_in_use(tmp_path: Path) -> None:
    with locked(tmp_path):
        second = toy(settings(tmp_path), *LAUNCHER[1:], processes=2)
        _, errors = second.communicate(timeout=200)
    assert second.returncode != 0
    assert "toy: another process works in" in errors
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "log.jsonl").exists()
