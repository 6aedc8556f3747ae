"""A meter of the memory of tensors, with values or without."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

R = TypeVar("R")


class MemoryMeter(TorchDispatchMode):
    """A meter of the memory of all tensors that exist inside ``with``, except the given tensors.

    Args:
        device: the type of the device whose tensors are counted; None counts all tensors.
    """

    def __init__(self, given: Iterable[Tensor], device: str | None = None) -> None:
        super().__init__()
        self._device = device
        self.peak = self._current = 0
        # By identity: no other storage can have it while this one exists.
        self._given = {id(storage): storage for storage in map(Tensor.untyped_storage, given)}
        self._counted: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns False, because PyTorch would load its compiler to keep it away from the meter."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        shortcut = SHORTCUTS.get(function)
        if shortcut is not None and tree_leaves(args[0])[0].is_meta:
            result = shortcut(*args, **(kwargs or {}))
        else:
            result = function(*args, **(kwargs or {}))
        for leaf in [result] if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor) and self._device in (None, leaf.device.type):
                self._count(leaf.untyped_storage())
        return result

    def measure(self, run: Callable[[], R]) -> tuple[R, int]:
        """Returns what ``run`` returns, and how many bytes it takes at most."""
        before, start = self.peak, self._current
        self.peak = start
        result = run()
        taken, self.peak = self.peak - start, max(before, self.peak)
        return result, taken

    def count_for_now(self, size: int) -> None:
        """Counts ``size`` bytes that are taken, and freed at once."""
        self.peak = max(self.peak, self._current + size)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._given or key in self._counted:
            return

        def release(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._counted[key]
            self._current -= size

        self._counted[key] = weakref.ref(storage, release)
        self._current += size
        self.peak = max(self.peak, self._current)


def allocate(shape: Sequence[int], like: Tensor) -> Tensor:
    """Allocates a tensor with the dtype of ``like`` and axes in its order."""
    return torch.empty_permuted(shape, find_order(like), dtype=like.dtype, device=like.device)


def find_order(x: Tensor) -> tuple[int, ...]:
    """Returns the axes of a tensor in the order of its memory, the outermost first."""
    return tuple(sorted(range(x.dim()), key=x.stride, reverse=True))


def change_in_place(x: Tensor, *_: object, **__: object) -> Tensor:
    """Returns ``x``, which an operation in place changes."""
    return x


def allocate_clone(x: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """Allocates the result of ``torch.clone``."""
    if memory_format == torch.preserve_format:
        return allocate(x.shape, x)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def allocate_joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Allocates the result of ``torch.cat``."""
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return allocate(shape, tensors[0])


def allocate_mean(x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """Allocates the result of ``torch.mean`` without the axes ``dims``, or with axes of size 1."""
    gone = {dim % x.dim() for dim in dims}
    sizes = [1 if dim in gone else size for dim, size in enumerate(x.shape)]
    shape = [size for dim, size in enumerate(sizes) if keepdim or dim not in gone]
    return torch.empty(shape, dtype=x.dtype, device=x.device)


aten = torch.ops.aten
# PyTorch computes these on the meta device in Python, and loads its compiler for it, which takes
# longer than a whole plan.
SHORTCUTS: dict[Any, Callable[..., Tensor]] = {
    aten.add_.Tensor: change_in_place,
    aten.copy_.default: change_in_place,
    aten.clone.default: allocate_clone,
    aten.cat.default: allocate_joined,
    aten.mean.dim: allocate_mean,
}
