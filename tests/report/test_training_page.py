"""The page of a run says how it is, and stays small however long the run is."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from tests.pages import needs_browser, opened
from wanvae.engine.json_files import write_value
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.live_report import RunStatus
from wanvae.engine.training.record import Record
from wanvae.engine.training.run_folder import Progress, preview_path
from wanvae.report import Column, training
from wanvae.report.training import POINTS, TrainingPage
from wanvae.video import write_video

PAGE = TrainingPage(
    columns={"psnr": Column("PSNR (dB)", 2, "higher")}, pictures="What it can do.", side_by_side=3
)
RECORD = Record(
    command="wanvae train <tiny>",
    versions="wanvae 1",
    batches_per_step=1,
    data_count=1,
    data_digest="",
)


def trained(step: int, **figures: float) -> dict[str, float]:
    return {"step": step, "steps_per_second": 2.0, "learning_rate": 1e-4, "skipped": 0, **figures}


def evaluated(step: int, psnr: float) -> dict[str, float]:
    return {"step": step, "evaluation_psnr": psnr, "evaluation_use_1": 1.0, "evaluation_use_2": 2.0}


def make_run(folder: Path, lines: list[dict[str, float]]) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_value(folder / "run.json", RECORD)
    return folder


def preview(run: Path, step: int, side: int = 16) -> Path:
    path = preview_path(run, step)
    path.parent.mkdir(exist_ok=True)
    noise = torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(step)) * 2 - 1
    write_video(path, noise, Fraction(1))
    return path


def write(run: Path, state: str = "running", error: str = "", **progress: object) -> str:
    """Writes the page, and returns its text."""
    config = TrainerConfig(run=str(run), steps=1000, best="psnr", evaluate_every=100)
    PAGE.write(
        RunStatus(config=config, progress=Progress(**progress), state=state, error=error),
    )
    return (run / "report.html").read_text()


def charts(text: str) -> dict[str, dict]:
    """The data of each chart by its title."""
    found = re.findall(
        r"<figcaption>([^<]*)</figcaption>\s*<script[^>]*>(.*?)</script>", text, re.DOTALL
    )
    return {title: json.loads(data) for title, data in found}


def test_the_page_tells_running_from_complete_and_stopped(tmp_path: Path) -> None:
    run = make_run(tmp_path, [trained(10, loss=1.0)])
    running = write(run, step=10)
    assert 'http-equiv="refresh"' in running and "running; " in running
    assert "10 of 1,000" in running and "about 8 minutes" in running
    assert "wanvae train &lt;tiny&gt;" in running and "skipped" not in running.split("<nav")[0]
    assert "The first evaluation is after step 100." in running
    complete = write(run, "complete", step=1000)
    assert "refresh" not in complete and "<dd>complete</dd>" in complete
    assert "time left" not in complete
    stopped = write(run, "stopped", "NotFiniteError: <nan>", step=10, skipped=3)
    assert "run the same command again to go on (NotFiniteError: &lt;nan&gt;)" in stopped
    assert "3, because they were not finite" in stopped


def test_before_the_first_line_there_is_a_page(tmp_path: Path) -> None:
    write_value(tmp_path / "run.json", RECORD)
    assert "Nothing is logged yet." in write(tmp_path)


def test_figures_are_over_the_steps_that_have_them(tmp_path: Path) -> None:
    lines = [trained(10, loss=1.0), trained(20), trained(30, loss=3.0, gan=5.0)]
    found = charts(write(make_run(tmp_path, [*lines, evaluated(30, 20.0)]), step=30))
    assert found["loss"]["x"] == [10, 20, 30]
    # All steps up to the second line were skipped.
    assert found["loss"]["lines"] == {"loss": [1.0, None, 3.0]}
    assert found["gan"]["lines"] == {"gan": [None, None, 5.0]}
    assert found["PSNR (dB), higher is better"]["lines"] == {"psnr": [20.0]}
    assert found["use"]["lines"] == {"use_1": [1.0], "use_2": [2.0]}
    assert found["learning rate"]["lines"] == {"learning_rate": [1e-4] * 3}


def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    lines = [trained(step, loss=float(step)) for step in range(1, 5001)]
    lines += [evaluated(step, step / 100) for step in range(10, 5001, 10)]
    for step in (10, 2000, 4990, 5000):
        preview(tmp_path, step)
    text = write(make_run(tmp_path, lines), step=5000, best_step=4990, best_score=49.9)
    found = charts(text)
    loss = found["loss"]
    assert len(loss["x"]) == POINTS and loss["x"][-1] == 5000
    # Each point is the mean over ten lines.
    assert loss["lines"]["loss"][0] == 5.5 and loss["x"][0] == 10
    assert len(found["PSNR (dB), higher is better"]["x"]) == 500
    assert text.count("<img") == 3 and len(text) < 200_000
    assert all(f"after step {step:,}: " in text for step in (10, 4990, 5000))
    rows = re.findall(r'<td class="text">([^<]*)</td>', text)
    assert rows == ["first", "best", "latest"]


def test_pictures_of_later_steps_are_not_shown(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint has pictures of steps that it has yet to do."""
    for step in (100, 200, 300):
        preview(tmp_path, step)
    text = write(make_run(tmp_path, []), step=250, best_step=100, best_score=1.0)
    assert "after step 200: latest" in text and "after step 100: best, first" in text
    assert "after step 300" not in text


def test_pictures_that_are_too_large_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [preview(tmp_path, step, side=48).stat().st_size for step in (100, 200)]
    monkeypatch.setattr(training, "PICTURE_LIMIT", sum(sizes) - 1)
    text = write(make_run(tmp_path, []), step=200)
    assert "after step 200: latest" in text and "after step 100: " not in text
    assert "Too large for this page: previews/step-00000100.png." in text


@needs_browser
def test_a_reader_sees_a_run_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RELOAD", 1)
    lines = [trained(step, loss=1 / step) for step in range(1, 60)]
    run = make_run(tmp_path, [*lines, evaluated(50, 20.0)])
    preview(run, 50)
    write(run, step=59)
    with opened(run / "report.html") as page:
        page.locator("svg path").last.wait_for(state="attached")
        page.evaluate("window.scrollTo(0, 300)")
        expect(page.locator("svg")).to_have_count(6)
        expect(page.locator("svg path")).to_have_count(7)  # use_1 and use_2 are in one picture
        write(run, "complete", step=1000)
        page.get_by_text("1,000 of 1,000").wait_for(timeout=20_000)
        assert page.evaluate("window.scrollY") > 250
        text_ends = """() => [...document.querySelectorAll("svg text")].every((text) =>
            text.getBoundingClientRect().right <= text.closest("svg").getBoundingClientRect().right
        )"""
        assert page.evaluate(text_ends)
