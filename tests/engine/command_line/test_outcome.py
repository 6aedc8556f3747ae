"""What people are told when a command fails, and what is kept for whoever mends it."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import torch
from jsonargparse import Namespace
from torch.utils.data import DataLoader, Dataset

from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.outcome import exit_status
from wanvae.engine.command_line.program import Command, Listed, Program
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.training.command import training_command
from wanvae.engine.training.config import TrainerConfig
from wanvae.errors import UserError


def failing(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


def message_of(error: BaseException, capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    """The only line that is printed for ``error``."""
    assert exit_status(failing(error), "wanvae", ["encode", "a b.mp4"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("wanvae: ")


class HalfMade:
    """An object that is interrupted as it is made, and fails as it goes away, as ZipFile does."""

    def __init__(self) -> None:
        raise KeyboardInterrupt

    def __del__(self) -> None:
        raise AttributeError("what was not made")


def test_what_is_half_made_goes_away_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    hook = sys.unraisablehook
    assert exit_status(lambda: HalfMade() and 0, "wanvae", []) == 130
    gc.collect()
    assert capsys.readouterr().err == "wanvae: interrupted; nothing was written\n"
    assert sys.unraisablehook is hook


def pair_strictly(_: object = None) -> int:
    """A mistake of ours that is a ValueError."""
    return len(list(zip([1], [1, 2], strict=True)))


def program_of(command: Command) -> Program:
    """A program whose only command is called run."""
    return Program(
        name="toy",
        version="1",
        description=None,
        commands={"run": Listed("runs", lambda: command)},
        train=lambda arguments, program: 0,
        training="nothing",
        out_of_memory="",
    )


def assert_fault_is_reported(printed: str, program: str, command: str) -> None:
    *traceback, last = printed.splitlines()
    assert traceback[0] == "Traceback (most recent call last):"
    assert any("pair_strictly" in line for line in traceback)
    assert traceback[-1] == "ValueError: zip() argument 2 is longer than argument 1"
    assert last.startswith(f"{program}: this is a fault of the program")
    assert f"the command {command}" in last and "report" in last
    assert f"PyTorch {torch.__version__}" in last


def test_a_fault_of_ours_shows_its_traceback_and_asks_for_a_report(capsys):
    assert exit_status(pair_strictly, "wanvae", ["encode", "a b.mp4"]) == 1
    assert_fault_is_reported(capsys.readouterr().err, "wanvae", "\"wanvae encode 'a b.mp4'\"")


def test_a_fault_in_a_command_of_a_program(capsys):
    command = Command(pair_strictly, lambda parser: None, "Pairs.")
    assert program_of(command).run(["run"]) == 1
    assert_fault_is_reported(capsys.readouterr().err, "toy", "'toy run'")


def test_a_fault_in_training(capsys):
    status = training_command(TrainerConfig, pair_strictly, "toy train", "Trains.", ["--steps=2"])
    assert status == 1
    assert_fault_is_reported(capsys.readouterr().err, "toy train", "'toy train --steps=2'")


def test_a_wrong_argument_is_one_line_and_status_2(capsys):
    def add_options(parser: Parser) -> None:
        parser.add_argument("--even", type=even)

    def even(text: str) -> int:
        if int(text) % 2:
            raise UserError(f"even must be a multiple of 2, not {text}")
        return int(text)

    def run(_: Namespace) -> None:
        raise AssertionError("the arguments are wrong")

    program = program_of(Command(run, add_options, "Runs."))
    for text in ("3", "x"):
        with pytest.raises(SystemExit) as stopped:
            program.run(["run", f"--even={text}"])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"invalid even value: {text!r} (see toy run --help)")


def test_a_config_file_that_is_no_text_is_one_line_and_status_2(capsys, tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    program = program_of(Command(pair_strictly, lambda parser: None, "Runs."))
    option = f"--config={tmp_path / 'config.yaml'}"
    for run in (
        lambda: program.run(["run", option]),
        lambda: training_command(TrainerConfig, pair_strictly, "train", "Trains.", [option]),
    ):
        with pytest.raises(SystemExit) as stopped:
            run()
        assert stopped.value.code == 2
        assert "a config file must be text in UTF-8" in capsys.readouterr().err.splitlines()[-1]


def test_errors_for_people_are_one_line(capsys):
    assert message_of(UserError("width must be\nat least 1"), capsys) == "width must be at least 1"
    assert message_of(NotFiniteError("3 steps in a row"), capsys) == "3 steps in a row"
    assert message_of(KeyboardInterrupt(), capsys, 130) == "interrupted; nothing was written"
    assert message_of(KeyboardInterrupt("go on"), capsys, 130) == "interrupted; go on"
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        assert message_of(error, capsys).startswith("out of memory; ")
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [1.2.3.4]:5")
    assert message_of(lost, capsys).startswith("another process of the run has ended")


def test_what_the_system_says_of_files_and_disks_is_for_people(capsys, tmp_path: Path):
    for opened in (tmp_path / "missing", tmp_path):
        with pytest.raises(OSError) as caught:
            opened.open()
        assert str(opened) in message_of(caught.value, capsys)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert message_of(full, capsys).endswith("No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBADF, "Bad file descriptor"),
        OSError(errno.EINVAL, "Invalid argument"),
        io.UnsupportedOperation("not readable"),
        RuntimeError("shapes"),
        KeyError("name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
)
def test_other_errors_keep_their_traceback(error: Exception, capsys):
    assert exit_status(failing(error), "wanvae", []) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback") and "this is a fault of the program" in printed


class Unreadable(Dataset):
    """Data whose samples cannot be read."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> int:
        raise self.error("clip 7 cannot be read")


@pytest.mark.parametrize("error", [UserError, ValueError])
def test_an_error_in_a_process_that_loads_data(capsys, error: type[Exception]):
    def run() -> int:
        return len(list(DataLoader(Unreadable(error), num_workers=1)))

    assert exit_status(run, "wanvae train", []) == 1
    printed = capsys.readouterr().err
    if error is UserError:
        assert printed == "wanvae train: clip 7 cannot be read\n"
    else:
        assert "__getitem__" in printed and "this is a fault of the program" in printed


def test_output_that_nobody_reads_ends_quietly() -> None:
    command = "print('line')"
    code = (
        "import sys; from wanvae.engine.command_line.outcome import exit_status; "
        f"sys.exit(exit_status(lambda: {command} or 0, 'wanvae', []))"
    )
    with Popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
