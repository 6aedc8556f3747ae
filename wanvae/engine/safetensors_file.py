"""Reading safetensors files: the header at once, each tensor when somebody asks for it.

Reading instead of mapping keeps the memory of a large file at the size of the wanted tensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wanvae.engine.stored_tensors import (
    FileReader,
    StoredFile,
    StoredTensors,
    damaged,
    outline_tensor,
)

# Bytes of the longest header. Files of tens of thousands of tensors have a tenth of it.
LONGEST_HEADER = 25_000_000
# Bytes before the header: its length.
LENGTH_BYTES = 8
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor is in a file.

    Attributes:
        dtype: its dtype.
        shape: its shape.
        start: its first byte, counted from the beginning of the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class Reader(FileReader[Entry]):
    """Reads the tensors of an open file."""

    def read(self, name: str) -> Tensor:
        """Returns a tensor in memory of its own."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        self.fill(tensor, entry.start, name)
        return tensor


def open_safetensors(path: Path) -> StoredFile:
    """Reads the header of a safetensors file.

    Raises:
        CheckpointError: the header does not fit the file.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    file = FileIO(path)
    try:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > min(LONGEST_HEADER, size - LENGTH_BYTES):
            raise damaged(path, f"its header claims {length} bytes, of {size} in the file")
        try:
            header = json.loads(file.read(length))
            metadata, entries, ignored = parse_header(header, LENGTH_BYTES + length, size)
            outline = {n: outline_tensor(e.shape, e.dtype) for n, e in entries.items()}
        except (ValueError, RecursionError) as error:
            raise damaged(path, error) from error
    except BaseException:
        file.close()
        raise
    reader = Reader(path, file, entries)
    tensors = StoredTensors(outline, reader.read)
    return StoredFile(tensors, "safetensors", metadata, ignored, size)


def parse_header(
    header: Any, start: int, size: int
) -> tuple[dict[str, str], dict[str, Entry], tuple[str, ...]]:
    """Returns metadata, the place of each tensor, and the names whose dtype is not known.

    Args:
        header: the content of the header.
        start: the first byte after the header.
        size: bytes of the file.

    Raises:
        ValueError: the header is not valid, or tensors are not all in the file.
    """
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", None) or {}
    texts = isinstance(metadata, dict) and all(isinstance(t, str) for t in metadata.values())
    if not texts:
        raise ValueError("its metadata are not texts")
    entries: dict[str, Entry] = {}
    ignored: list[str] = []
    total = 0
    for name, value in header.items():
        shape, (first, last) = numbers(value, "shape"), numbers(value, "data_offsets", 2)
        total += last - first
        if not first <= last <= size - start or total > size - start:
            raise ValueError(f"the tensor {name} is not in the file")
        dtype = DTYPES.get(str(value.get("dtype")))
        if dtype is None:
            ignored.append(name)
            continue
        if math.prod(shape) * dtype.itemsize != last - first:
            raise ValueError(f"the tensor {name} has {last - first} bytes, but the shape {shape}")
        entries[name] = Entry(dtype, shape, start + first)
    return metadata, entries, tuple(ignored)


def numbers(value: Any, key: str, count: int | None = None) -> tuple[int, ...]:
    """Returns the whole numbers under a key of an entry in the header.

    Raises:
        ValueError: there are none, or not ``count``.
    """
    found = value.get(key) if isinstance(value, dict) else None
    whole = isinstance(found, list) and all(type(n) is int and n >= 0 for n in found)
    if not isinstance(found, list) or not whole or count not in (None, len(found)):
        raise ValueError(f"an entry of its header has no valid {key}")
    return tuple(found)
