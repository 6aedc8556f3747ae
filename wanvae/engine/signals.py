"""Signals that ask a process to end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# Ctrl-C; a scheduler or the shutdown of a machine; a terminal that closes. Windows has no SIGHUP.
STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# The status of a process after a signal is this and the number of the signal, as in shells.
SIGNALED = 128
# What interrupted jobs say that can go on.
GO_ON = "files that were written are complete; run it again to go on from there"
# A launcher or a terminal may repeat its signal, which must not interrupt the tidying up.
QUIET_SECONDS = 5.0


class Interrupted(KeyboardInterrupt):
    """A signal has ended a job, after it kept what is done. The message says how to go on.

    Attributes:
        signal: the signal.
    """

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.signal = number


@dataclass
class Caught:
    """The last signal that interrupted a block.

    Attributes:
        signal: the signal; SIGINT as long as no other signal came.
        time: when it came, on the monotonic clock.
    """

    signal: signal.Signals = signal.SIGINT
    time: float = float("-inf")


@dataclass
class StopRequest:
    """Whether a process has been asked to end soon.

    Attributes:
        signal: the signal that asked; None as long as there was none.
        deadline: when to give up what is under way, on the monotonic clock.
    """

    signal: signal.Signals | None = None
    deadline: float = float("inf")

    @property
    def asked(self) -> bool:
        """Whether to begin nothing new."""
        return self.signal is not None

    @property
    def overdue(self) -> bool:
        """Whether to give up what is under way."""
        return time.monotonic() >= self.deadline


@contextmanager
def handle_signals(
    handler: Callable[[int, FrameType | None], object], *signals: signal.Signals
) -> Iterator[None]:
    """Handles signals in a block. Signals that the process ignores, as after ``nohup``, stay so.

    Only the main thread can handle signals: in other threads nothing changes.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in signals}
        # None is a handler that was not installed from Python.
        previous = {n: old for n, old in previous.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in previous:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def interrupted_by_signals() -> Iterator[Caught]:
    """Makes SIGTERM and SIGHUP raise KeyboardInterrupt in a block, as SIGINT does.

    So whatever tidies up after Ctrl-C also tidies up after these signals.
    """
    caught = Caught()

    def interrupt(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if now - caught.time < QUIET_SECONDS:
            return
        caught.signal, caught.time = signal.Signals(number), now
        raise KeyboardInterrupt

    with handle_signals(interrupt, *(s for s in STOP_SIGNALS if s is not signal.SIGINT)):
        yield caught


@contextmanager
def stopped_by_sigterm(grace: float) -> Iterator[StopRequest]:
    """Makes SIGTERM ask the block to end soon, instead of interrupting it at once.

    Schedulers and spot machines send SIGTERM some time before they kill a process.

    Args:
        grace: seconds that the block may go on with what is under way.
    """
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        if not request.asked:
            request.deadline = time.monotonic() + grace
            request.signal = signal.Signals(number)

    with handle_signals(note, signal.SIGTERM):
        yield request
