"""Jobs in a process of their own, so that a job that crashes or hangs does not lose the others.

A worker gets the names of jobs one by one, and answers each with a line of JSON. If it dies, or if
a job takes too long, the supervisor reports this job and starts another worker for the rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from queue import Empty, Queue
from threading import Thread
from time import monotonic
from typing import IO, Any

# A job may take this many times the seconds that it is expected to take.
PATIENCE = 4
# Seconds that the first job of a worker may take on top, because Python and PyTorch start.
START = 60


@dataclass(frozen=True)
class Job:
    """A job for a worker.

    Attributes:
        seconds: how long it is expected to take.
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: "ok", "failed" or "skipped".
        seconds: how long it took.
        figures: what it measured.
        message: why it failed or was skipped.
        usable: whether the worker can run other jobs.
    """

    name: str
    status: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    usable: bool = True


class Worker:
    """A process that runs jobs.

    Args:
        command: starts a process that calls ``work``.
    """

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*command], stdin=pipe, stdout=pipe, text=True)
        self._lines: Queue[str | None] = Queue()
        self._patience = START
        assert self._process.stdout is not None
        Thread(target=forward, args=(self._process.stdout, self._lines), daemon=True).start()

    def run(self, job: Job, seconds: float) -> Outcome:
        """Runs a job for at most this many seconds. Seconds of a start are added to them."""
        assert self._process.stdin is not None
        began = monotonic()
        try:
            print(job.name, file=self._process.stdin, flush=True)
            line = self._lines.get(timeout=seconds + self._patience)
            ended = f"its process ended with status {self._process.wait()}" if line is None else ""
        except BrokenPipeError:
            line, ended = None, f"its process ended with status {self._process.wait()}"
        except Empty:
            line, ended = None, f"it took more than {seconds + self._patience:.0f} s"
        self._patience = 0
        if line is None:
            return Outcome(job.name, "failed", monotonic() - began, {}, ended, usable=False)
        return Outcome(**json.loads(line))

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def run_all(
    jobs: Iterable[Job], command: Sequence[str], seconds: float, slowness: float = 1.0
) -> Iterator[Outcome]:
    """Yields the outcome of each job.

    Args:
        command: starts a process that calls ``work``.
        seconds: time for all jobs. A job that does not fit in the rest of it is skipped.
        slowness: how much longer than expected jobs take here.
    """
    end, worker = monotonic() + seconds, None
    try:
        for job in jobs:
            left, expected = end - monotonic(), slowness * job.seconds
            if expected > left:
                message = f"it takes {expected:.0f} s, and {max(left, 0):.0f} s are left"
                yield Outcome(job.name, "skipped", message=message)
                continue
            worker = worker or Worker(command)
            outcome = worker.run(job, min(left, PATIENCE * expected))
            if not outcome.usable:
                worker.stop()
                worker = None
            yield outcome
    finally:
        if worker is not None:
            worker.stop()


def forward(stream: IO[str], lines: Queue[str | None]) -> None:
    """Puts the lines of JSON that a worker writes in a queue, and None at its end."""
    for line in stream:
        if line.startswith("{"):
            lines.put(line)
        else:
            sys.stderr.write(line)
    lines.put(None)


def work(
    functions: Mapping[str, Callable[[], dict[str, Any]]], is_usable: Callable[[], bool]
) -> None:
    """Runs the jobs that stdin names, until it ends, and writes the outcome of each to stdout.

    Args:
        functions: what each job runs; it returns figures.
        is_usable: whether this process can go on after a job failed.
    """
    for line in sys.stdin:
        name, began, message = line.strip(), monotonic(), ""
        figures: dict[str, Any] = {}
        try:
            figures = functions[name]()
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        status, usable = ("failed", is_usable()) if message else ("ok", True)
        outcome = Outcome(name, status, monotonic() - began, figures, message, usable)
        print(json.dumps(asdict(outcome)), flush=True)
