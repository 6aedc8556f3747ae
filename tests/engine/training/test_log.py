"""The lines of the log are means since the line before, and a plot shows each point."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.training.test_loop import Broken, log_lines
from tests.engine.training.test_record import start, without_matplotlib  # noqa: F401 - fixtures
from tests.engine.training.toy import KillAt, make_task, settings
from wanvae.engine.signals import Interrupted
from wanvae.engine.training.log import Means, plot_lines
from wanvae.engine.training.run_folder import Checkpoints, Progress

CIRCUMSTANCES = {"seconds", "steps_per_second", "memory_gb"}


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(-100, 100, width=32)), max_size=6)
)
def test_means_are_over_the_steps_that_had_the_scalar(steps: list[dict[str, float]]) -> None:
    means = Means()
    for values in steps:
        means.add({name: torch.tensor(value) for name, value in values.items()})
    found = means.take()
    for name in "abc":
        values = [step[name] for step in steps if name in step]
        if values:
            expected = sum(values) / len(values)
            assert found.pop(name).item() == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert found == {} and means.take() == {}


@pytest.mark.usefixtures("without_matplotlib")
def test_a_line_is_the_mean_of_the_steps_since_the_line_before(tmp_path: Path, start) -> None:  # noqa: F811
    start(make_task(), settings(tmp_path / "each"))
    start(make_task(), settings(tmp_path / "some", log_every=3, checkpoint_every=5))
    each, some = log_lines(tmp_path / "each"), log_lines(tmp_path / "some")
    # After a checkpoint too, and after the last step.
    assert [line["step"] for line in some] == [3, 5, 6, 8]
    for first, stop, line in zip((0, 3, 5, 6), (3, 5, 6, 8), some, strict=True):
        for name in ("loss", "doubled", "gradient_norm"):
            mean = sum(step[name] for step in each[first:stop]) / (stop - first)
            assert line[name] == pytest.approx(mean, rel=1e-3)


@pytest.mark.usefixtures("without_matplotlib")
def test_skipped_steps_are_in_no_mean(tmp_path: Path, start) -> None:  # noqa: F811
    """Steps 2, 4, 5 and 6 are infinite, of which the last line has no other."""
    broken = Broken(2, 6, 8, 10)
    for name, every in (("each", 1), ("some", 3)):
        config = settings(tmp_path / name, steps=6, log_every=every, checkpoint_every=9)
        start(make_task(broken), config)
    each, some = log_lines(tmp_path / "each"), log_lines(tmp_path / "some")
    assert some[0]["loss"] == pytest.approx((each[0]["loss"] + each[2]["loss"]) / 2, rel=1e-3)
    assert "loss" not in some[1] and some[1]["skipped"] == 4


@pytest.mark.usefixtures("without_matplotlib")
def test_a_run_that_was_stopped_logs_all_steps(tmp_path: Path, start) -> None:  # noqa: F811
    start(make_task(), settings(tmp_path / "each"))
    config = settings(tmp_path / "cut", log_every=4)
    with pytest.raises(Interrupted):
        start(make_task(KillAt(4, signal.SIGINT)), config)
    start(make_task(), config)
    losses = [line["loss"] for line in log_lines(tmp_path / "each")]
    total, before = 0.0, 0
    for line in log_lines(tmp_path / "cut"):
        total += line["loss"] * (line["step"] - before)
        before = line["step"]
    assert before == 8 and total == pytest.approx(math.fsum(losses), rel=1e-3)


@pytest.mark.usefixtures("without_matplotlib")
def test_a_run_that_was_killed_after_a_checkpoint_logs_the_steps_before_it(
    tmp_path: Path,
    start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checkpoint of step 3 is between two lines of the log."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    save = Checkpoints.save

    def save_and_copy(
        checkpoints: Checkpoints, progress: Progress, before_named: Callable[[], None]
    ) -> None:
        save(checkpoints, progress, before_named)
        if progress.step == 3:
            shutil.copytree(whole, killed)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_copy)
        start(make_task(), settings(whole, log_every=2))
    start(make_task(), settings(killed, log_every=2))
    expected, found = (
        [{name: x for name, x in line.items() if name not in CIRCUMSTANCES} for line in lines]
        for lines in (log_lines(whole), log_lines(killed))
    )
    assert found == expected and 3 in [line["step"] for line in found]


def test_a_plot_of_one_point_shows_it(tmp_path: Path) -> None:
    plot_lines([{"step": 10, "loss": 0.5}], tmp_path / "loss.png")
    with av.open(str(tmp_path / "loss.png")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    # The first colour of matplotlib.
    assert (np.abs(picture.astype(int) - [0x1F, 0x77, 0xB4]).max(2) < 8).sum() > 9
