"""The device on which a command computes, in one process or several."""

from __future__ import annotations

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

# Processes wait for each other at the end, and their shares can take very unequal times. They also
# wait for what one of them does for all.
PATIENCE = timedelta(days=30)


def default_device() -> str:
    """The name of the GPU if there is one, else of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str, dtype: torch.dtype = torch.float32) -> None:
    """Raises a UserError if a convolution of one value cannot run on ``device`` in ``dtype``."""
    try:
        one = torch.ones(1, 1, 1, 1, 1, device=device, dtype=dtype)
        F.conv3d(one, one).item()
    # PyTorch raises these for devices that it does not know or that are missing.
    except (RuntimeError, AssertionError) as error:
        other = "" if dtype is torch.float32 else " or another --dtype"
        raise UserError(
            f"cannot compute in {str(dtype).removeprefix('torch.')} on device {device!r}: "
            f"{first_sentence(error)}; try --device cpu{other}"
        ) from error


@contextmanager
def launched_processes(device: str | None) -> Iterator[PartialState]:
    """The processes that ``accelerate launch`` started, or the only one.

    Args:
        device: the device that people asked for, if any. It decides how processes exchange data.
    """
    from accelerate import PartialState

    # Without a GPU accelerate must be told, or it takes several processes for one.
    state = PartialState(cpu=(device or default_device()) == "cpu", timeout=PATIENCE)
    try:
        yield state
    finally:
        state.destroy_process_group()


def device_of(processes: PartialState) -> str:
    """The default device of a process: each of several processes has its own."""
    return str(processes.device) if processes.num_processes > 1 else default_device()
