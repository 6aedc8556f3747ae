"""How a command ends: its exit status, and what it tells people when it fails."""

from __future__ import annotations

import errno
import os
import platform
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version

import torch
from tqdm import tqdm

from wanvae.engine.memory import is_out_of_memory
from wanvae.engine.processes import LOST_PROCESS, is_lost_process
from wanvae.engine.signals import SIGNALED, Interrupted, interrupted_by_signals
from wanvae.errors import UserError

# The number of SIGPIPE, which Windows has not.
PIPE = 13
# The system answers so to a mistake in a program, not to a missing file or a full disk.
MISTAKES = (None, errno.EBADF, errno.EFAULT, errno.EINVAL)


def exit_status(
    run: Callable[[], int],
    program: str,
    arguments: Sequence[str],
    *,
    interrupted: str = "interrupted; nothing was written",
    out_of_memory: str = "use less of it",
) -> int:
    """Runs a command and tells people what stops it, and what it warns of.

    An error that is for people is one line. Any other error is a fault of this program: its
    traceback is printed, and a line that asks to report it. SIGTERM and SIGHUP interrupt the
    command as Ctrl-C does.

    Args:
        run: runs the command and returns its exit status.
        program: the name of the command in messages.
        arguments: of the command line, for the report of a fault.
        interrupted: the message after an interruption, unless the KeyboardInterrupt has its own.
        out_of_memory: what to try when memory runs out.

    Returns:
        The status that ``run`` returns; 1 after an error; 130 after Ctrl-C, 143 after SIGTERM,
        129 after SIGHUP; 141 if nobody reads the output any more, as after ``| head``.
    """
    with interrupted_by_signals() as caught, telling_warnings(program):
        try:
            status = run()
            sys.stdout.flush()
            return status
        except KeyboardInterrupt as interruption:
            message = f"interrupted; {interruption}" if interruption.args else interrupted
            told = interruption if isinstance(interruption, Interrupted) else caught
            # The terminal may have closed.
            with suppress(OSError):
                say(program, message)
            let_go(interruption)
            return SIGNALED + told.signal
        except BrokenPipeError:
            return stop_printing()
        except Exception as error:
            message = explanation(error, out_of_memory)
            if message is None:
                tqdm.write("".join(traceback.format_exception(error)), file=sys.stderr, end="")
                message = request_for_report([*program.split(), *arguments])
            say(program, message)
            return 1


def let_go(interruption: KeyboardInterrupt) -> None:
    """Frees what an interrupted command held.

    An object that was half made, such as a ZipFile, may fail as it goes away. Python would print a
    traceback of that, which tells people nothing.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        traceback.clear_frames(interruption.__traceback__)
    finally:
        sys.unraisablehook = hook


def stop_printing() -> int:
    """Drops further output, because its reader has seen enough, and returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return SIGNALED + PIPE


@contextmanager
def telling_warnings(program: str) -> Iterator[None]:
    """Prints each warning as people need it: without the file and the line of code it comes from.

    Processes that load data and are forked in the block do the same.
    """

    def show(message: Warning | str, *_: object) -> None:
        tqdm.write(f"{program}: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def say(program: str, message: str) -> None:
    """Prints one line to stderr, above a progress bar if one is shown."""
    tqdm.write(f"{program}: {' '.join(message.splitlines())}", file=sys.stderr)


def explanation(error: Exception, out_of_memory: str) -> str | None:
    """The line that tells people of ``error``; None for a fault of this program."""
    if is_for_people(error):
        return message_of(error)
    if is_out_of_memory(error):
        return f"out of memory; {out_of_memory}"
    return LOST_PROCESS if is_lost_process(error) else None


def is_for_people(error: Exception) -> bool:
    """Whether people can mend what ``error`` tells of.

    They can mend a UserError, and what the system says of files, disks and networks.
    """
    if isinstance(error, OSError):
        return error.errno not in MISTAKES or error.filename is not None
    return isinstance(error, UserError)


def message_of(error: Exception) -> str:
    """The message of ``error``, without the traceback of a process that loads data."""
    text = str(error).strip()
    if "Original Traceback" in text:
        # PyTorch gives the whole traceback as the message. Its last line is "module.Class: why".
        text = re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
    return text or type(error).__name__


def request_for_report(command: Sequence[str]) -> str:
    """A line that asks to report a fault of this program."""
    return (
        "this is a fault of the program, not of what you gave it. Please report it with the "
        f"traceback above, the command {shlex.join(command)!r} and the versions: {versions()}"
    )


def versions() -> str:
    """What the behaviour of a command depends on, apart from its arguments."""
    try:
        own = version("wanvae")
    except PackageNotFoundError:
        own = "(not installed)"
    python = platform.python_version()
    return f"wanvae {own}, PyTorch {torch.__version__}, Python {python}, {platform.platform()}"
