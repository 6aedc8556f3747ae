"""The report of a run, which is written anew while the run works."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from accelerate import Accelerator

from wanvae.engine.text import first_sentence
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.log import Log
from wanvae.engine.training.run_folder import Progress
from wanvae.errors import UserError

# The largest share of the time of a run that reports between evaluations may take.
SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How a run is, for its report.

    Attributes:
        config: of the loop, with the folder of the run.
        progress: how far the run is.
        state: "running"; "complete" after the last step; "stopped" before it.
        error: what stopped the run, if it was an error.
    """

    config: TrainerConfig
    progress: Progress
    state: Literal["running", "complete", "stopped"] = "running"
    error: str = ""

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return Path(self.config.run)


class LiveReport:
    """Writes the report of a run in the first process: at the start, while it works, at the end.

    A report that cannot be written is told once, and does not end the run.

    Args:
        write: writes the report; None is a run without one.
    """

    def __init__(
        self,
        write: Callable[[RunStatus], None] | None,
        config: TrainerConfig,
        progress: Progress,
        log: Log,
        accelerator: Accelerator,
    ) -> None:
        self._write = write if accelerator.is_main_process else None
        self._config, self._progress, self._log = config, progress, log
        self._due = 0.0
        self._told = False

    def __enter__(self) -> LiveReport:
        self.update()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        complete = error is None and self._progress.step >= self._config.steps
        self._show(
            RunStatus(
                config=self._config,
                progress=self._progress,
                state="complete" if complete else "stopped",
                error="" if error is None else f"{type(error).__name__}: {first_sentence(error)}",
            )
        )

    def update_if_due(self) -> None:
        """Writes the report, unless it was written so recently that it would cost much time."""
        if time.monotonic() >= self._due:
            self.update()

    def update(self) -> None:
        """Writes the report."""
        self._show(RunStatus(config=self._config, progress=self._progress))

    def _show(self, status: RunStatus) -> None:
        if self._write is None:
            return
        began = time.monotonic()
        try:
            self._write(status)
        except (UserError, OSError) as error:
            if not self._told:
                self._log.say(f"no report of the run: {first_sentence(error)}")
                self._told = True
        ended = time.monotonic()
        self._due = ended + (ended - began) / SHARE
