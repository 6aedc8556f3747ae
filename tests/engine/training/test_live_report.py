"""The report of a run is written while it works, by the first process, and never ends the run."""

from __future__ import annotations

import math
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.engine.training.test_loop import Broken, accelerator, log_lines  # noqa: F401 - a fixture
from tests.engine.training.test_record import start, without_matplotlib  # noqa: F401 - fixtures
from tests.engine.training.toy import KillAt, make_task, settings
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.signals import Interrupted
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.live_report import SHARE, LiveReport, RunStatus
from wanvae.engine.training.loop import train
from wanvae.engine.training.run_folder import Progress
from wanvae.errors import UserError

pytestmark = pytest.mark.usefixtures("without_matplotlib")
# A picture of one pixel: only what is read of it.
PICTURE = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1, 1)


class Reports:
    """The states and steps that were reported."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.errors: list[str] = []

    def __call__(self, status: RunStatus) -> None:
        self.seen.append((status.state, status.progress.step))
        self.errors.append(status.error)


def judged(reports: Callable[[RunStatus], None], samples: object = None):
    task = make_task(samples)
    return replace(
        task,
        evaluate=lambda model: {"score": 1.0},
        preview=lambda model, path: path.write_bytes(PICTURE),
        report=reports,
    )


def test_the_report_follows_the_run(tmp_path: Path, start: Callable) -> None:  # noqa: F811
    reports = Reports()
    config = settings(tmp_path, log_every=9, evaluate_every=3, preview_every=4, steps=8)
    start(judged(reports), config)
    running = [("running", step) for step in (0, 3, 4, 6, 8)]
    # The last line of the log is written after step 8 too.
    assert [each for each in dict.fromkeys(reports.seen)] == [*running, ("complete", 8)]
    assert reports.seen[-1] == ("complete", 8) and reports.errors[-1] == ""
    start(judged(reports), config)
    assert reports.seen[-1] == ("complete", 8)


def test_the_report_says_why_a_run_stopped(tmp_path: Path, start: Callable) -> None:  # noqa: F811
    reports = Reports()
    with pytest.raises(Interrupted):
        start(judged(reports, KillAt(4, signal.SIGINT)), settings(tmp_path / "signal"))
    assert reports.seen[-1] == ("stopped", 2) and reports.errors[-1] == ""
    with pytest.raises(NotFiniteError):
        config = settings(tmp_path / "infinite", most_skipped_steps=1)
        start(judged(reports, Broken(*range(16))), config)
    assert reports.seen[-1] == ("stopped", 2)
    assert reports.errors[-1].startswith("NotFiniteError: 2 steps in a row were not finite")


def test_a_report_that_cannot_be_written_is_told_once(
    tmp_path: Path,
    start: Callable,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(status: RunStatus) -> None:
        raise UserError("the disk is full")

    start(judged(fail), settings(tmp_path, evaluate_every=1))
    assert capsys.readouterr().err.count("no report of the run: the disk is full") == 1
    assert (tmp_path / "model.safetensors").exists()


def live_report(
    write: Callable[[RunStatus], None], folder: Path, *, first: bool = True
) -> LiveReport:
    process = SimpleNamespace(is_main_process=first)
    return LiveReport(write, TrainerConfig(run=str(folder)), Progress(), SimpleNamespace(), process)


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    for first in (True, False):
        reports = Reports()
        with live_report(reports, tmp_path, first=first) as report:
            report.update()
        assert len(reports.seen) == (3 if first else 0)


def test_reports_take_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, reported = [0.0], [0]
    monkeypatch.setattr("wanvae.engine.training.live_report.time.monotonic", lambda: now[0])

    def write(status: RunStatus) -> None:
        now[0] += 0.5
        reported[0] += 1

    with live_report(write, tmp_path) as report:
        while now[0] < 1000:
            now[0] += 0.1
            report.update_if_due()
    # All but the first and the last, over the whole time.
    assert 0.8 * SHARE < 0.5 * (reported[0] - 2) / now[0] <= SHARE


def test_tensorboard_shows_each_step_once_after_a_sudden_end(
    tmp_path: Path,
    accelerator: Callable[..., Accelerator],  # noqa: F811
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings(tmp_path, tracker="tensorboard", evaluate_every=2, preview_every=2)

    class Sudden(BaseException):
        pass

    def die(model: torch.nn.Module, path: Path) -> None:
        path.write_bytes(PICTURE)
        if path.stem.endswith("6"):
            raise Sudden

    task = replace(judged(Reports()), preview=die)
    with pytest.raises(Sudden):
        train(task, config, accelerator(config))
    assert not [*(tmp_path / "checkpoints").glob("step-*6")]
    time.sleep(1.1)  # files of events are ordered by seconds
    train(judged(Reports()), config, accelerator(config))
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    assert [event.step for event in events.Scalars("evaluation_score")] == [2, 4, 6, 8]
    pictures = events.Images("preview")
    assert [event.step for event in pictures] == [2, 4, 6, 8]
    assert pictures[0].encoded_image_string == PICTURE
    assert (pictures[0].width, pictures[0].height) == (1, 1)
    assert [line["step"] for line in log_lines(tmp_path) if "loss" in line] == list(range(1, 9))


def test_figures_that_do_not_exist_are_in_no_line(
    tmp_path: Path,
    start: Callable,  # noqa: F811
) -> None:
    task = replace(make_task(), evaluate=lambda model: {"score": math.nan, "other": 1.0})
    start(task, settings(tmp_path, steps=1))
    lines = [line for line in log_lines(tmp_path) if "evaluation_other" in line]
    assert len(lines) == 1 and "evaluation_score" not in lines[0]
