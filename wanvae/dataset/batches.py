"""Batches of clips of one shape, the same number for each process, in an order that can go on."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from torch.utils.data import Dataset, Sampler

from wanvae.dataset.steps import count_steps, plan_steps
from wanvae.engine.config import check
from wanvae.engine.output_folder import describe_differences
from wanvae.engine.processes import count_processes
from wanvae.errors import UserError

LOGGER = logging.getLogger("wanvae")
T = TypeVar("T")


class BucketBatches(Sampler[list[int]]):
    """Batches of the numbers of clips of one shape: a ``batch_sampler`` of PyTorch's DataLoader.

    In each epoch every clip is in exactly one batch. All processes get the same number of batches,
    and in each step batches of about the same work, mostly of one shape. Where clips of a shape are
    left over, a batch is smaller. If the number of batches is no multiple of the number of
    processes, a few batches are divided in two; if all have one clip, some come twice, which is
    logged.

    The order depends on ``seed`` and the epoch alone. Loop over ``track(loader)``: each pass is one
    epoch, and ``state_dict`` tells which batches the loop has had, however many batches a
    DataLoader or accelerate has asked for ahead.

    With accelerate, give the DataLoader to ``prepare``, which shares out the batches. Without it,
    each process says its number as ``process``.

    Args:
        shapes: the shape of each clip, like ``LatentDataset.shapes``.
        batch_size: clips in a batch.
        seed: decides the order.
        shuffle: whether clips and batches come in random order. Without it, the batches with the
            most work come first.
        drop_last: leave out smaller batches, and batches that are too many for a multiple of the
            number of processes. Clips that no epoch has are logged.
        processes: how many processes share the batches; None takes all processes of the run.
        process: the number of this process, which gets only its own batches. None gives the batches
            of all processes, one step after the other, for accelerate.

    Attributes:
        epoch: number of the epoch that the next batch belongs to.

    Raises:
        UserError: an argument is out of range. Asking for batches raises it if there are no clips,
            or ``drop_last`` leaves none.
    """

    def __init__(
        self,
        shapes: Iterable[Sequence[int]],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        processes: int | None = None,
        process: int | None = None,
    ) -> None:
        # A data set can be iterated over too, but gives clips.
        if isinstance(shapes, Dataset):
            raise UserError("BucketBatches takes the shapes of the clips: give dataset.shapes")
        check(batch_size >= 1, "batch_size", batch_size, "1 or more")
        check(processes is None or processes >= 1, "processes", processes, "1 or more")
        self.drop_last = drop_last
        self.epoch = 0
        self._size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._all_processes, self._process = processes, process
        if process is not None:
            numbers = f"from 0 to {self.processes - 1}, a number of one of the processes"
            check(0 <= process < self.processes, "process", process, numbers)
        clips: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, shape in enumerate(shapes):
            clips[tuple(shape)].append(number)
        self._clips = dict(clips)
        # Batches of each process that the loop has had in this epoch.
        self._step = 0
        # Whether a pass goes through track, and whether there was one that does not.
        self._tracking = self._missed = False
        self._warn()

    def _warn(self) -> None:
        """Logs which clips no epoch has, or how many come twice."""
        sizes = [len(clips) for clips in self._clips.values()]
        rare = [size for size in sizes if size < self._size]
        if self.drop_last and rare:
            LOGGER.warning(
                "drop_last leaves out %d clips in every epoch, because there are fewer than %d of "
                "their shape",
                *(sum(rare), self._size),
            )
        twice = self._steps * self.processes - sum(sizes)
        if twice > 0:
            LOGGER.warning(
                "%d of %d clips come twice in every epoch, so that all %d processes have as many",
                *(twice, sum(sizes), self.processes),
            )

    @property
    def processes(self) -> int:
        """The number of processes that share the batches."""
        return self._all_processes or count_processes()

    @property
    def batch_size(self) -> None:
        """None, which tells accelerate that batches have different sizes.

        Raises:
            UserError: ``process`` is given, so that accelerate would share out a share.
        """
        if self._process is not None and self.processes > 1:
            raise UserError(
                "accelerate would share out the batches of one process once more: leave out "
                "process, or do not prepare the DataLoader"
            )

    # Batches

    def __len__(self) -> int:
        """The number of batches in a whole epoch: of this process if it has a number, or of all."""
        return self._steps * (self.processes if self._process is None else 1)

    @property
    def _steps(self) -> int:
        """The number of batches of each process in a whole epoch."""
        sizes = [len(clips) for clips in self._clips.values()]
        return count_steps(sizes, self._size, self.processes, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches that are left of the epoch."""
        self._missed |= not self._tracking
        # A text is the same seed in all versions of Python.
        generator = random.Random(f"{self._seed}/{self.epoch}") if self._shuffle else None
        steps = plan_steps(
            self._clips, self._size, self.processes, drop_last=self.drop_last, generator=generator
        )
        for step in islice(steps, self._step, None):
            yield from step if self._process is None else [step[self._process]]

    # Going on

    def set_epoch(self, epoch: int) -> None:
        """Starts an epoch, unless it is the epoch that has begun."""
        if epoch != self.epoch:
            self.epoch, self._step = epoch, 0

    def track(self, loader: Iterable[T]) -> Iterator[T]:
        """Yields what is left of the epoch, counts it for ``state_dict``, and ends the epoch.

        Args:
            loader: the DataLoader that takes these batches, prepared by accelerate or not.

        Raises:
            UserError: the loader gives another number of batches.
        """
        # The loaders of accelerate count epochs themselves.
        set_epoch = getattr(loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.epoch)
        self._tracking, self._missed = True, False
        try:
            for item in loader:
                self._step += 1
                yield item
        finally:
            self._tracking = False
        if self._step != self._steps:
            raise UserError(
                f"the loader ended after {self._step} batches, not {self._steps}: it must take "
                f"these batches, and {self.processes} processes must share them"
            )
        self.set_epoch(self.epoch + 1)

    def state_dict(self) -> dict[str, int | bool | str]:
        """Returns where the training is: after the batch that ``track`` gave last.

        Raises:
            UserError: batches were taken without ``track``, so that nothing counts them.
        """
        if self._missed:
            raise UserError(
                "nothing counts the batches of the training: loop over batches.track(loader)"
            )
        return {"epoch": self.epoch, "step": self._step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int | bool | str]) -> None:
        """Goes on after the batch of ``state``, which ``state_dict`` returned.

        Raises:
            UserError: the state is of other clips or of other arguments.
        """
        ours = self._identity()
        if state.keys() != {"epoch", "step", *ours}:
            raise UserError(f"these are no batches of clips, but {', '.join(map(str, state))}")
        if differences := describe_differences(ours, state):
            raise UserError(
                "training cannot go on in the middle of an epoch with other batches: "
                + "; ".join(differences)
            )
        self.epoch, self._step = int(state["epoch"]), int(state["step"])
        self._missed = False

    def _identity(self) -> dict[str, int | bool | str]:
        """Returns what the batches of an epoch depend on."""
        shapes = hashlib.sha256()
        for shape, clips in self._clips.items():
            shapes.update(f"{shape} {clips}\n".encode())
        return {
            "batch_size": self._size,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "drop_last": self.drop_last,
            "processes": self.processes,
            "clips": shapes.hexdigest(),
        }
