"""How much of a run is done, told between the steps of its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from wanvae.execution.flow import run_step
from wanvae.nn import State, Streaming
from wanvae.nn.region import Region

# Takes the share of the work that is done, from 0 to 1. What it raises ends the run.
Progress: TypeAlias = "Callable[[float], None]"


class TellingSteps:
    """Runs steps of layers, and tells after each step which share of the run is done.

    Args:
        progress: is told the share.
        work: multiply-adds of the whole run.
    """

    def __init__(self, progress: Progress, work: int) -> None:
        self._progress = progress
        self._work = work
        self._done = 0

    def __call__(
        self, layer: Streaming, x: Tensor, state: State, region: Region | None
    ) -> tuple[Tensor, State]:
        """Returns what the step of ``layer`` returns."""
        y, next_state = run_step(layer, x, state, region)
        height, width = y.shape[3:]
        self._done += len(x) * layer.multiply_adds(height * width, x.shape[2])
        self._progress(min(1.0, self._done / max(1, self._work)))
        return y, next_state
