"""What is trained: everything that the loop has to know about a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from wanvae.engine.training.live_report import RunStatus

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class StepLosses:
    """The losses of one batch.

    Attributes:
        terms: scalars by name, each a mean over the batch. Their sum is minimized.
        figures: more scalars by name, only to report.
        output: what the discriminator judges, if there is one.
        statistics: what ``Task.end_step`` gets of this batch.
    """

    terms: dict[str, Tensor]
    figures: dict[str, Tensor] = field(default_factory=dict)
    output: Any = None
    statistics: Any = None

    def total(self) -> Tensor:
        """The sum of the terms, a float32 scalar."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()


@dataclass(frozen=True)
class Discriminator:
    """A second model, which learns in the same steps to tell outputs of the first from data.

    Attributes:
        model: only the losses of the task and ``losses`` call it.
        losses: from (wrapped discriminator, output, batch, step) to the losses of the
            discriminator. ``output`` comes from the losses of the task; ``losses`` must detach it.
            The names of terms and figures differ from the names in the losses of the task.
        starts_at: the first step, counted from 0, in which the discriminator takes part.
        learning_rate: its highest learning rate. It rises and falls as the learning rate of the
            model does.
    """

    model: nn.Module
    losses: Callable[[nn.Module, Any, Any, int], StepLosses]
    starts_at: int
    learning_rate: float


@dataclass(frozen=True)
class Task:
    """What to train: a model, its data, its losses, and how its weights are kept.

    All functions but ``losses`` get the model, or its moving average, as it is and not wrapped.

    Attributes:
        model: only ``losses`` calls it, so that accelerate may wrap it.
        samples: gives the sample of any number from 0 on.
        losses: from (wrapped model, wrapped discriminator, batch, step) to the losses of the model.
            The discriminator is None before its first step. Its parameters are constants here.
        save_weights: writes the model to a file.
        load_weights: reads such a file into the model, whose parameters stay the same objects.
        blocks: parts of the model with most of the parameters, none inside another, of which the
            model calls ``step``. Where processes share the parameters out, a process has whole
            blocks one at a time. Gradients may be asked for of parameters outside of blocks only.
        discriminator: a second model that is trained against the first.
        companion: a part of the model that ``save_weights`` leaves out. Only checkpoints keep it.
        evaluate: from the model, in evaluation mode, to figures by name. Every process calls it and
            the figures are averaged, so each may look at an equal share of the data.
        figures: the names of these figures. ``TrainerConfig.best`` is one of them.
        preview: writes a picture of what the model, in evaluation mode, can do to a PNG file.
        report: writes a report of the run to its folder, while the run works and at its end. The
            first process calls it.
        begin_step: gets the batches of a step on this process, before their losses.
        end_step: gets the statistics of these batches, after their losses; returns more figures by
            name. A step that is not finite puts the buffers of the model back afterwards.
        config: all options of the run, which its folder keeps; the options of the loop are among
            them. None: there are no others.
        identify_start: gives a digest of the checkpoint that the model starts from, which tells
            whether it is the same when the run goes on. None: a new model.
        result: name of the file in the folder of the run that gets the model at the end.
        describe_data: gives, for each part of the training data by name, a line for each file or
            clip in it, which tells whether it is the same when the run goes on. The names may
            change.
        fresh_workers: whether processes that load data start anew, and not as copies of this one,
            because they use a device. A copy of a process that uses CUDA cannot.
    """

    model: nn.Module
    samples: Dataset
    losses: Callable[[nn.Module, nn.Module | None, Any, int], StepLosses]
    save_weights: Callable[[Any, Path], None]
    load_weights: Callable[[Any, Path], None]
    blocks: Sequence[nn.Module] = ()
    discriminator: Discriminator | None = None
    companion: nn.Module | None = None
    evaluate: Callable[[Any], dict[str, float]] | None = None
    figures: Collection[str] = ()
    preview: Callable[[Any, Path], None] | None = None
    report: Callable[[RunStatus], None] | None = None
    begin_step: Callable[[Sequence[Any]], None] | None = None
    end_step: Callable[[Sequence[Any]], dict[str, Tensor]] | None = None
    config: DataclassInstance | None = None
    identify_start: Callable[[], str] | None = None
    result: str = WEIGHTS
    describe_data: Callable[[], Mapping[str, Iterable[str]]] = dict
    fresh_workers: bool = False
