"""Where a command computes: on a device that works, in one process or several."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from wanvae.engine.text import first_sentence
from wanvae.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

# Processes wait for each other at the end, when their shares may have taken very unequal times.
PATIENCE = timedelta(days=30)


def default_device() -> str:
    """The GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str, dtype: torch.dtype = torch.float32) -> None:
    """Raise ValueError if no model can run there; a convolution of one value tells."""
    try:
        one = torch.ones(1, 1, 1, 1, 1, device=device, dtype=dtype)
        F.conv3d(one, one).item()
    # What PyTorch raises for devices it does not know, that are not there, or not built in.
    except (RuntimeError, AssertionError) as error:
        other = "" if dtype is torch.float32 else " or another --dtype"
        raise UserError(
            f"cannot compute in {str(dtype).removeprefix('torch.')} on device {device!r}: "
            f"{first_sentence(error)}; try --device cpu{other}"
        ) from error


@contextmanager
def launched_processes(device: str | None) -> Iterator[PartialState]:
    """The processes that ``accelerate launch`` started, or the only one.

    Where one fails the launcher terminates the others, which then raise KeyboardInterrupt.

    Args:
        device: the one asked for, if any; processes on CPUs talk in another way.
    """
    from accelerate import PartialState

    # Without a GPU accelerate would take several processes for one if it is not told.
    state = PartialState(cpu=(device or default_device()) == "cpu", timeout=PATIENCE)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield state
    finally:
        signal.signal(signal.SIGTERM, before)
        state.destroy_process_group()


def device_of(processes: PartialState) -> str:
    """Where a process computes if it is not told: several have a device each."""
    return str(processes.device) if processes.num_processes > 1 else default_device()
