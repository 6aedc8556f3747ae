"""Named tensors of a file, each read when somebody asks for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from wanvae.engine.files import FileError
from wanvae.engine.text import first_sentence

Read = Callable[[str], Tensor]
Entry = TypeVar("Entry")


class CheckpointError(FileError):
    """A checkpoint cannot be read or used. The message says what to do."""


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name. Asking for one reads it.

    Args:
        outline: a tensor for each name that tells its shape and dtype, like one on the meta device.
        read: returns the tensor of a name, on the CPU.
        shared: whether what ``read`` returns may be in memory of others, like a mapped file.
    """

    def __init__(self, outline: Mapping[str, Tensor], read: Read, *, shared: bool = False) -> None:
        self.outline = dict(outline)
        self.shared = shared
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.outline:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.outline)

    def __len__(self) -> int:
        return len(self.outline)

    def renamed(self, names: Mapping[str, str]) -> StoredTensors:
        """Returns some of these tensors by new names.

        Args:
            names: the present name of each tensor by its new name.
        """
        return StoredTensors(
            {new: self.outline[old] for new, old in names.items()},
            lambda new: self[names[new]],
            shared=self.shared,
        )

    def under(self, prefix: str) -> StoredTensors:
        """Returns the tensors whose names begin with ``prefix``, by the rest of their names."""
        return self.renamed({n.removeprefix(prefix): n for n in self if n.startswith(prefix)})

    def changed(
        self, dtypes: Mapping[str, torch.dtype], change: Callable[[str, Tensor], Tensor]
    ) -> StoredTensors:
        """Returns these tensors, some of them changed to another dtype.

        Args:
            dtypes: the new dtype of each tensor that changes.
            change: returns the changed tensor of a name.
        """
        outline = {
            name: tensor.to("meta", dtypes.get(name)) if name in dtypes else tensor
            for name, tensor in self.outline.items()
        }
        return StoredTensors(
            outline,
            lambda name: change(name, self[name]) if name in dtypes else self[name],
            shared=self.shared,
        )

    def to(self, dtype: torch.dtype) -> StoredTensors:
        """Returns these tensors with all floating point tensors in another dtype."""
        floating = [name for name, tensor in self.outline.items() if tensor.is_floating_point()]
        return self.changed(dict.fromkeys(floating, dtype), lambda _, tensor: tensor.to(dtype))


def outline_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor without memory that tells a shape and a dtype.

    Raises:
        ValueError: no tensor can have such a shape.
    """
    try:
        return torch.empty(shape, dtype=dtype, device="meta")
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"no tensor can have the shape {shape}") from error


def stored(tensors: Mapping[str, Tensor]) -> StoredTensors:
    """Returns tensors that are in memory, or mapped there, as stored tensors.

    Stored tensors are returned as they are.
    """
    if isinstance(tensors, StoredTensors):
        return tensors
    return StoredTensors(tensors, tensors.__getitem__, shared=True)


@dataclass(frozen=True)
class StoredFile:
    """An open file of named tensors.

    Attributes:
        tensors: by name. Tensors in dicts of a pickle have names with dots.
        container: the kind of file, for people.
        metadata: the texts in a safetensors file; empty for others.
        ignored: the names of what is no tensor, or of no known dtype.
        size: bytes of the file.
        quantized: the names of the types of quantized tensors, which are read in float32.
    """

    tensors: StoredTensors
    container: str
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    size: int = 0
    quantized: dict[str, str] = field(default_factory=dict)


class FileReader(Generic[Entry]):
    """An open file with tensors at known places. It closes with the reader.

    Args:
        path: the path of the file, for errors.
        file: the open file.
        entries: what the header of the file tells of each tensor.
    """

    def __init__(self, path: Path, file: FileIO, entries: Mapping[str, Entry]) -> None:
        self.path = path
        self.entries = entries
        self._file = file
        weakref.finalize(self, file.close)

    def fill(self, tensor: Tensor, start: int, name: str) -> None:
        """Fills a contiguous tensor with the bytes of the file from ``start`` on.

        Args:
            name: the name of the tensor, for the error.

        Raises:
            CheckpointError: the file ends before.
        """
        room = tensor.reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(start)
        while room:
            count = self._file.readinto(room)
            if not count:
                raise damaged(self.path, f"it ends within {name}")
            room = room[count:]


def damaged(path: Path, error: Exception | str) -> CheckpointError:
    """Returns the error for a file that cannot be read as what it is."""
    reason = error if isinstance(error, str) else first_sentence(error)
    return CheckpointError(f"{path} is damaged or incomplete ({reason}); download or save it again")
