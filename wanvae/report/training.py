"""The page of a training run, ``report.html`` in its folder.

Its size is bounded, however long the run is: a curve has so many points, and there are pictures
after three steps.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from wanvae.engine.json_files import read_value
from wanvae.engine.training.live_report import RunStatus
from wanvae.engine.training.log import CIRCUMSTANCES, EVALUATION, LOG, read_lines
from wanvae.engine.training.record import RECORD, Record
from wanvae.engine.training.run_folder import previews
from wanvae.report import Column, Curves, Picture, Pictures, Row, Section, Table, write_page
from wanvae.report.elements import Element

PAGE = "report.html"
# Seconds after which the page of a run that works loads itself again.
RELOAD = 30
# Points of a curve. Each point of a longer curve is a mean over several lines of the log.
POINTS = 500
# Bytes of the pictures that a page holds.
PICTURE_LIMIT = 24 * 2**20
CIRCUMSTANCE_COLUMNS = {
    "learning_rate": Column("learning rate"),
    "steps_per_second": Column("steps per second"),
    "memory_gb": Column("memory (GB), the most so far"),
    "skipped": Column("skipped steps, in all"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingPage:
    """What the page of a run says about its kind of model.

    Attributes:
        columns: how figures of the evaluation are shown, by name. Others are shown by their names.
        pictures: what the previews show.
        side_by_side: how many of them are in a row.
        note: what readers should know about the evaluation; empty if there is nothing.
    """

    columns: Mapping[str, Column]
    pictures: str
    side_by_side: int
    note: str = ""

    def write(self, status: RunStatus) -> None:
        """Writes the page of a run.

        Raises:
            FileError: the page cannot be written.
        """
        log = status.run / LOG
        lines = read_lines(log) if log.exists() else []
        write_page(
            status.run / PAGE,
            title=f"Training of {status.run.resolve().name}",
            facts=facts(status, lines),
            sections=self.sections(status, lines),
            reload=RELOAD if status.state == "running" else None,
        )

    def sections(self, status: RunStatus, lines: Sequence[dict[str, float]]) -> Iterator[Section]:
        """Yields all sections of the page."""
        judged = [line for line in map(evaluation_of, lines) if len(line) > 1]
        trained = [line for line in lines if "learning_rate" in line]
        if judged:
            parts = [self.table(status, judged), *curves(judged, self.columns)]
            yield Section("Evaluation", "evaluation", parts, self.note, columns=2)
        else:
            text = f"The first evaluation is after step {status.config.evaluate_every:,}."
            yield Section("Evaluation", "evaluation", [], self.note or text)
        pictures, left_out = choose_pictures(status)
        if pictures or left_out:
            parts = [Pictures(pictures, self.side_by_side)] if pictures else []
            yield Section("Pictures", "pictures", parts, f"{self.pictures} {left_out}".strip())
        charts = [*curves(without(CIRCUMSTANCES - {"step"}, trained), {})]
        text = "" if charts else "Nothing is logged yet."
        yield Section("Training", "training", charts, text, columns=2)
        if trained:
            kept = [
                {name: line[name] for name in ("step", *CIRCUMSTANCE_COLUMNS) if name in line}
                for line in trained
            ]
            charts = [*curves(kept, CIRCUMSTANCE_COLUMNS)]
            yield Section("How it runs", "how-it-runs", charts, columns=2)

    def table(self, status: RunStatus, judged: Sequence[dict[str, float]]) -> Table:
        """Returns the figures of the first, the best and the latest evaluation."""
        names = names_of(judged)
        best = [line for line in judged if line["step"] == status.progress.best_step]
        rows = {line["step"]: line for line in (judged[0], *best, judged[-1])}
        labels = label_steps(judged[0]["step"], status.progress.best_step, judged[-1]["step"])
        return Table(
            [
                Column("evaluation"),
                Column("step", 0),
                *(self.columns.get(name, Column(name, 4)) for name in names),
            ],
            [
                Row([labels[step], step, *(line.get(name) for name in names)])
                for step, line in rows.items()
            ],
        )


def facts(status: RunStatus, lines: Sequence[dict[str, float]]) -> dict[str, str]:
    """Returns how the run is and what it is, for the head of the page."""
    progress, steps = status.progress, status.config.steps
    states = {
        "running": f"running; this page loads itself again every {RELOAD} seconds",
        "complete": "complete",
        "stopped": "stopped; run the same command again to go on",
    }
    about = {
        "state": states[status.state] + (f" ({status.error})" if status.error else ""),
        "steps": f"{progress.step:,} of {steps:,}",
        "skipped": f"{progress.skipped:,}, because they were not finite",
    }
    if not progress.skipped:
        del about["skipped"]
    speeds = [line["steps_per_second"] for line in lines if "steps_per_second" in line]
    if status.state == "running" and speeds and speeds[-1] > 0:
        about["time left"] = describe_time((steps - progress.step) / speeds[-1])
    if progress.best_step is not None and progress.best_score is not None:
        score = f"{status.config.best} {progress.best_score:.5g}"
        about["best checkpoint"] = f"{score}, after step {progress.best_step:,}"
    record = read_value(status.run / RECORD, Record)
    about |= {"command": record.command, "versions": record.versions}
    return about | {"written": time.strftime("%Y-%m-%d %H:%M:%S")}


def describe_time(seconds: float) -> str:
    """Returns about how long it is, in words."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return "less than 2 minutes"


def evaluation_of(line: dict[str, float]) -> dict[str, float]:
    """Returns the step and the figures of an evaluation; of other lines, the step."""
    figures = {
        name.removeprefix(EVALUATION): value
        for name, value in line.items()
        if name.startswith(EVALUATION)
    }
    return {"step": line["step"], **figures}


def without(names: set[str], lines: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Returns lines without some figures."""
    return [{name: line[name] for name in line if name not in names} for line in lines]


def names_of(lines: Sequence[dict[str, float]]) -> list[str]:
    """Returns the figures of lines, in their order."""
    return [name for name in dict.fromkeys(n for line in lines for n in line) if name != "step"]


def curves(lines: Sequence[dict[str, float]], columns: Mapping[str, Column]) -> Iterator[Element]:
    """Yields a chart for each figure over the steps. "x_1", "x_2", ... share the chart of "x"."""
    charts: dict[str, list[str]] = {}
    for name in names_of(lines):
        charts.setdefault(re.sub(r"_\d+$", "", name), []).append(name)
    groups = split(lines, POINTS)
    for chart, names in charts.items():
        column = columns.get(chart, Column(chart))
        direction = f", {column.better} is better" if column.better else ""
        yield Curves(
            f"{column.name}{direction}",
            "step",
            "",
            {name: [mean_in(group, name) for group in groups] for name in names},
            x=[group[-1]["step"] for group in groups],
        )


def split(lines: Sequence[dict[str, float]], most: int) -> list[Sequence[dict[str, float]]]:
    """Returns the lines in at most so many groups, each of as many lines that follow each other."""
    size = -(-len(lines) // most) or 1
    return [lines[start : start + size] for start in range(0, len(lines), size)]


def mean_in(lines: Sequence[dict[str, float]], name: str) -> float | None:
    """Returns the mean of a figure over the lines that have it; None if none has."""
    values = [line[name] for line in lines if name in line]
    return sum(values) / len(values) if values else None


def label_steps(first: float, best: float | None, latest: float) -> dict[float, str]:
    """Returns what the first, the best and the latest step are called; one may be several."""
    labels: dict[float, list[str]] = {}
    for step, label in ((latest, "latest"), (best, "best"), (first, "first")):
        if step is not None:
            labels.setdefault(step, []).append(label)
    return {step: ", ".join(words) for step, words in labels.items()}


def choose_pictures(status: RunStatus) -> tuple[list[Picture], str]:
    """Returns the latest, the best and the first preview; and which of them are too large."""
    # A run that goes on from an earlier step may have previews of later ones.
    paths = {
        step: path for step, path in previews(status.run).items() if step <= status.progress.step
    }
    if not paths:
        return [], ""
    best = status.progress.best_step
    labels = label_steps(min(paths), best if best in paths else None, max(paths))
    room, found, left_out = PICTURE_LIMIT, {}, []
    # The latest one gets its room first.
    for step, label in labels.items():
        path = paths[int(step)]
        size = path.stat().st_size
        if size > room:
            left_out.append(str(path.relative_to(status.run)))
            continue
        room -= size
        found[step] = Picture(path, f"after step {step:,}: {label}")
    pictures = [found[step] for step in sorted(found)]
    return pictures, f"Too large for this page: {', '.join(left_out)}." if left_out else ""
