"""What is trained: all that the loop has to be told about a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


@dataclass(frozen=True)
class StepLosses:
    """What one batch gives.

    Attributes:
        terms: scalars by name, each a mean over the batch; their sum is what is minimized.
        figures: more scalars by name, to report only.
        output: what the adversary looks at, if there is one.
    """

    terms: dict[str, Tensor]
    figures: dict[str, Tensor] = field(default_factory=dict)
    output: Any = None

    def total(self) -> Tensor:
        """The sum of the terms, a float32 scalar."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()


@dataclass(frozen=True)
class Adversary:
    """A second model that learns, in the same steps, to tell outputs of the first from data.

    Attributes:
        model: called by the losses of the task and by its own only.
        losses: from (wrapped adversary, output, batch, step) to losses of the adversary alone: they
            detach ``output``, which is that of the task's losses. Names differ from theirs.
        starts_at: the first step, counted from 0, that it takes part in.
        learning_rate: at its highest; its course is that of the model's.
    """

    model: nn.Module
    losses: Callable[[nn.Module, Any, Any, int], StepLosses]
    starts_at: int
    learning_rate: float


@dataclass(frozen=True)
class Task:
    """What to train: a model, its data, its losses, and how its weights are kept.

    Attributes:
        model: called by ``losses`` only, so that accelerate may wrap it.
        samples: gives sample ``number`` for any number from 0 on.
        losses: from (wrapped model, wrapped adversary, batch, step) to the losses of the model.
            There is no adversary before its first step; its parameters are constants here.
        save_weights: writes the model to a file.
        load_weights: reads such a file into the model, whose parameters stay the same objects.
        adversary: a second model that is trained against the first.
        evaluate: from the model, in evaluation mode, to figures by name. Every process calls it and
            the figures are averaged, so each may look at an equal share of the data.
        preview: writes a picture of what the model, in evaluation mode, can do to a PNG file.
    """

    model: nn.Module
    samples: Dataset
    losses: Callable[[nn.Module, nn.Module | None, Any, int], StepLosses]
    save_weights: Callable[[nn.Module, Path], None]
    load_weights: Callable[[nn.Module, Path], None]
    adversary: Adversary | None = None
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    preview: Callable[[nn.Module, Path], None] | None = None
