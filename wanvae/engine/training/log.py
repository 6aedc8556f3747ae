"""The log of a run: progress bar, log.jsonl, trackers, a plot of the losses."""

from __future__ import annotations

import json
import math
import resource
import struct
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from torch import Tensor
from tqdm import tqdm

from wanvae.engine.config import parse_json
from wanvae.engine.files import atomic_path
from wanvae.engine.processes import means_over_processes
from wanvae.engine.training.run_folder import Progress
from wanvae.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# The file of a run.
LOG = "log.jsonl"
# What the names of figures of evaluations begin with.
EVALUATION = "evaluation_"
# Figures that say how the run goes, not how well it learns. They are not plotted.
CIRCUMSTANCES = {"step", "seconds", "steps_per_second", "memory_gb", "learning_rate", "skipped"}


class Means:
    """Means of scalars over steps, kept on their device so that no step waits for them."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds the scalars of a step. Each step may have others."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, Tensor]:
        """Returns the mean of each scalar over the steps that had it, and starts anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self.__init__()
        return means


class Log:
    """Progress bar, ``run/log.jsonl`` and ``run/loss.png``, on the main process only.

    Args:
        run: the folder of the run.
        steps: how many steps the whole run has.
        step: how many steps are done. Lines of later steps, from before the run stopped, are
            dropped.
        options: of the run by name, for the tracker; None if it has them already.
    """

    def __init__(
        self,
        run: Path,
        steps: int,
        step: int,
        accelerator: Accelerator,
        options: Mapping[str, bool | int | float | str] | None = None,
    ) -> None:
        self.path = run / LOG
        self.accelerator = accelerator
        self.bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            disable=not accelerator.is_main_process,
            smoothing=0.05,
        )
        self.started = self.last_time = time.monotonic()
        self.last_step = step
        self.means = Means()
        if accelerator.is_main_process and self.path.exists():
            write_lines(self.path, read_lines(self.path, step))
        # TensorBoard drops later steps too.
        accelerator.init_trackers(
            "tensorboard",
            None if options is None else dict(options),
            {"tensorboard": {"purge_step": step + 1}},
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Counts a step with its scalars. A skipped step has none."""
        # A run whose terminal has closed still has to save its last step.
        with suppress(OSError):
            self.bar.update()
        self.means.add(values)

    def write_means(self, progress: Progress, learning_rate: float) -> None:
        """Reports the means of the scalars over the processes and the steps since the last line."""
        steps = progress.step - self.last_step
        if steps == 0:
            return
        figures = means_over_processes(self.means.take(), self.accelerator.device)
        now = time.monotonic()
        speed = steps / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = progress.step, now
        memory = peak_memory(self.accelerator.device) / 1e9
        self.bar.set_postfix({**rounded(figures), "GB": f"{memory:.1f}"}, refresh=False)
        self._write(
            progress.step,
            {
                "steps_per_second": speed,
                "memory_gb": memory,
                "learning_rate": learning_rate,
                "skipped": progress.skipped,
                **figures,
            },
        )

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Reports the figures of an evaluation after ``step`` steps."""
        self.say(f"step {step}: " + ", ".join(f"{k} {v:.5g}" for k, v in figures.items()))
        self._write(step, {f"{EVALUATION}{name}": value for name, value in figures.items()})

    def previewed(self, step: int, path: Path) -> None:
        """Shows the tracker a PNG file, the preview after ``step`` steps."""
        if not self.accelerator.is_main_process:
            return
        for tracker in self.accelerator.trackers:
            if isinstance(tracker, TensorBoardTracker):
                add_picture(tracker.tracker, "preview", path, step)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.accelerator.is_main_process:
            with suppress(OSError):
                self.bar.write(text, file=sys.stderr)

    def plot(self) -> None:
        """Plots log.jsonl so far, if matplotlib is installed."""
        if self.accelerator.is_main_process and find_spec("matplotlib") and self.path.exists():
            plot_lines(read_lines(self.path), self.path.with_name("loss.png"))

    def _write(self, step: int, figures: dict[str, float]) -> None:
        figures = rounded(figures)
        self.accelerator.log(figures, step=step)
        if self.accelerator.is_main_process:
            seconds = round(time.monotonic() - self.started, 1)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "seconds": seconds, **figures}) + "\n")


def add_picture(writer: SummaryWriter, name: str, path: Path, step: int) -> None:
    """Adds a PNG file to TensorBoard as it is."""
    # Its names are made when it is imported.
    from tensorboard.compat.proto.summary_pb2 import (
        Summary,  # pyright: ignore[reportAttributeAccessIssue]
    )

    content = path.read_bytes()
    # A PNG file begins with a signature of 8 bytes and a chunk of 8 bytes and these two numbers.
    width, height = struct.unpack(">II", content[16:24])
    image = Summary.Image(width=width, height=height, encoded_image_string=content)
    writer._get_file_writer().add_summary(
        Summary(value=[Summary.Value(tag=name, image=image)]), step
    )
    writer.flush()


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Figures with five digits. Without the ones that are not finite, which JSON cannot hold."""
    return {name: float(f"{x:.5g}") for name, x in figures.items() if math.isfinite(x)}


def read_lines(path: Path, last_step: int | None = None) -> list[dict[str, float]]:
    """The lines of a log up to ``last_step``, without lines that were cut off."""
    lines = []
    for text in path.read_bytes().splitlines():
        with suppress(UserError):
            lines.append(parse_json(text))
    return [line for line in lines if last_step is None or line["step"] <= last_step]


def write_lines(path: Path, lines: Iterable[dict[str, float]]) -> None:
    """Replaces a log."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def plot_lines(lines: list[dict[str, float]], path: Path) -> None:
    """Plots each figure of a log over the steps, one below the other, into a PNG file."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for line in lines for name in line))
    names = [name for name in names if name not in CIRCUMSTANCES]
    if not names:
        return
    figure = Figure(figsize=(8, 2 * len(names)))
    figure.subplots_adjust(left=0.1, right=0.95, top=0.98, bottom=0.03, hspace=0.4)
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) == 1 else None)
        axes.set_title(name, fontsize="small")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far, on the GPU, or in the process if there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
