"""How a program is launched: the settings that are fastest on this GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wanvae.nn.kernels.gpu.programs.rows import WARPS


class Settings(NamedTuple):
    """What may differ from launch to launch without a change of numbers.

    Attributes:
        scale: multiplies the positions of a block.
        warps: of 32 threads each, for one block.
    """

    scale: int
    warps: int


# The first ones run where nothing is measured.
SETTINGS = (Settings(1, WARPS), Settings(2, WARPS), Settings(2, 2 * WARPS))
# Tensors with fewer values take too little time to measure it.
FEWEST_VALUES = 2**25
LAUNCHES = 10

Launch = Callable[[Settings], None]

# What was measured in this process.
FASTEST: dict[Hashable, Settings] = {}


def launch_first(launch: Launch, x: Tensor) -> None:
    """Launches a program on the device of ``x``, with the first settings."""
    with on_device_of(x):
        launch(SETTINGS[0])


def launch_fastest(launch: Launch, x: Tensor, name: str) -> None:
    """Launches a program on the device of ``x``, with the settings that are fastest.

    The first time that a program ``name`` gets a large tensor, it is measured for the device, the
    dtype and the channels (dim 1) of ``x``. For that it runs several times, so it must not change
    its inputs. Nothing is measured while a CUDA graph is captured.
    """
    key = (name, x.device, x.dtype, x.shape[1])
    with on_device_of(x):
        if key not in FASTEST and can_measure(x):
            FASTEST[key] = min(SETTINGS, key=lambda settings: measure(launch, settings))
        launch(FASTEST.get(key, SETTINGS[0]))


def grid(program: Any, *sizes: int) -> Callable[..., None]:
    """Returns a function that launches a program so many times, with its arguments and options."""
    return program[sizes]


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Returns a context in which programs are launched on the GPU of ``x``, if it is on one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def can_measure(x: Tensor) -> bool:
    """Returns whether a program on ``x`` takes long enough, and may wait for its end."""
    return x.is_cuda and x.numel() >= FEWEST_VALUES and not torch.cuda.is_current_stream_capturing()


def measure(launch: Launch, settings: Settings) -> float:
    """Returns the milliseconds of some launches."""
    launch(settings)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(LAUNCHES):
        launch(settings)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
