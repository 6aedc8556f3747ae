"""Signals that ask a command to end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from wanvae.engine.command_line.outcome import exit_status
from wanvae.engine.signals import STOP_SIGNALS, interrupted_by_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")


def raising(*sent: int) -> Callable[[], int]:
    """A command that gets signals, one after another, while it tidies up after the first."""

    def run() -> int:
        try:
            signal.raise_signal(sent[0])
        finally:
            for number in sent[1:]:
                signal.raise_signal(number)
        return 0

    return run


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_status_names_the_signal(sent: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(map(signal.getsignal, STOP_SIGNALS))
    assert exit_status(raising(sent), "wanvae", []) == 128 + sent
    assert capsys.readouterr().err == "wanvae: interrupted; nothing was written\n"
    assert list(map(signal.getsignal, STOP_SIGNALS)) == before


def test_a_repeated_signal_does_not_interrupt_the_tidying_up() -> None:
    repeated = raising(signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)
    assert exit_status(repeated, "wanvae", []) == 128 + signal.SIGHUP


def test_a_signal_is_heard_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanvae.engine.signals.QUIET_SECONDS", 0)
    repeated = raising(signal.SIGHUP, signal.SIGTERM)
    assert exit_status(repeated, "wanvae", []) == 128 + signal.SIGTERM


def test_a_process_that_ignores_a_signal_goes_on() -> None:
    """As after nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert exit_status(raising(signal.SIGHUP), "wanvae", []) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_run_commands_too() -> None:
    def run() -> None:
        with interrupted_by_signals():
            done.append(signal.getsignal(signal.SIGTERM))

    done: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]
