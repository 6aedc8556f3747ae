"""A stand-in for CUDA graphs on any device: work runs again instead of being replayed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wanvae.execution.nested import list_tensors

R = TypeVar("R")


class Origins(TorchDispatchMode):
    """Tells which memory comes from outside of the work inside ``with``.

    Attributes:
        outside: the storages that operations read or write but that were not allocated inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outside: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._inside: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns False, because PyTorch would load its compiler to keep it away from this mode."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for storage in storages((args, kwargs or {})):
            if storage.data_ptr() not in self._inside:
                self.outside.setdefault(storage.data_ptr(), weakref.ref(storage))
        result = function(*args, **(kwargs or {}))
        places = {storage.data_ptr() for storage in storages(result)}
        self._inside |= places - self.outside.keys()
        return result


class Rerunner:
    """Records no graph, and runs work again on the same memory; everything else is as with graphs.

    Before each replay the results of all work hold NaN, as after a replay of other work. A replay
    that reads memory that was not read when the work was recorded is an error. So is memory from
    outside that nobody keeps, which a graph would read after it is freed. Tensors must be small:
    large ones come from the pool of the package, which looks like memory from outside.

    Attributes:
        recorded: how often work was recorded.
        replayed: how often work was replayed.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self._results: list[weakref.ref[Tensor]] = []

    def check_device(self, device: torch.device) -> None:
        """Accepts every device."""

    def record(self, device: torch.device, work: Callable[[], R]) -> tuple[R, Callable[[], object]]:
        """Runs ``work``; replays run it again."""
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        self.recorded += 1
        with Origins() as origins:
            results = work()
        known = origins.outside
        assert all(storage() is not None for storage in known.values()), "freed after the work"
        # What the work only passes on is not its own to overwrite.
        places = list_tensors(results)
        own = [place.untyped_storage().data_ptr() not in known for place in places]
        self._results += [weakref.ref(x) for x, is_own in zip(places, own, strict=True) if is_own]

        @torch.no_grad()
        def replay() -> None:
            self.replayed += 1
            for result in self._results:
                place = result()
                if place is not None:
                    place.fill_(math.nan)
            with Origins() as again:
                values = list_tensors(work())
            assert again.outside.keys() <= known.keys(), "reads memory that a graph would not"
            for place, value, is_own in zip(places, values, own, strict=True):
                if is_own:
                    place.copy_(value)

        return results, replay


def storages(values: Any) -> list[torch.UntypedStorage]:
    """Returns the storages of all tensors in containers, except of empty tensors and scalars.

    A scalar on the host is part of the launch of a kernel.
    """
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return [x.untyped_storage() for x in tensors if x.numel() and x.dim()]
