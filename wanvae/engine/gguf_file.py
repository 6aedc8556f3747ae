"""Reading GGUF files: the header at once, each tensor when somebody asks for it.

The common types are read here. The library ``gguf`` is needed for other quantized types alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from wanvae.engine.stored_tensors import (
    CheckpointError,
    FileReader,
    StoredFile,
    StoredTensors,
    damaged,
    outline_tensor,
)

GGUF_MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
# Limits of a header: tensors, values, axes of a tensor, bytes of a text that is kept.
MOST_TENSORS = 100_000
MOST_VALUES = 100_000
MOST_AXES = 8
LONGEST_TEXT = 1_000_000
# ComfyUI's tools flatten tensors, and write the shape under this key and the name of the tensor.
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
# Formats of the types of values; texts and arrays have their own.
VALUES = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
TEXT, ARRAY = 8, 9
PLAIN = {
    **{0: torch.float32, 1: torch.float16, 30: torch.bfloat16, 28: torch.float64},
    **{24: torch.int8, 25: torch.int16, 26: torch.int32, 27: torch.int64},
}
Q8_0 = 8
# A block of Q8_0: a scale in float16 and 32 whole numbers.
BLOCK, BLOCK_BYTES = 32, 34


@dataclass(frozen=True)
class Entry:
    """Where a tensor is in a file.

    Attributes:
        kind: the number of its type.
        shape: its shape.
        start: its first byte, counted from the beginning of the file.
    """

    kind: int
    shape: tuple[int, ...]
    start: int


class HeaderReader:
    """Reads the values of a header one after the other."""

    def __init__(self, file: FileIO, size: int) -> None:
        self.file = file
        self.size = size

    def number(self, layout: str) -> int | float:
        """Returns the next number."""
        count = struct.calcsize(layout)
        return struct.unpack(layout, self.take(count))[0]

    def count(self, limit: int, what: str) -> int:
        """Returns the next number of 64 bits, which is at most ``limit``."""
        (count,) = struct.unpack("<Q", self.take(8))
        if count > limit:
            raise ValueError(f"its header claims {count} {what}")
        return count

    def text(self) -> str:
        """Returns the next text."""
        return self.take(self.count(LONGEST_TEXT, "bytes of text")).decode(errors="replace")

    def value(self) -> int | float | str | tuple[int | float, ...] | None:
        """Returns the next value of any type; None for a long array or one of texts."""
        kind = self.number("<I")
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.number(VALUES[int(kind)])
        inner, length = int(self.number("<I")), self.count(self.size, "values")
        if inner == TEXT:
            for _ in range(length):
                self.skip(self.count(LONGEST_TEXT, "bytes of text"))
            return None
        width = struct.calcsize(VALUES[inner])
        if length > MOST_AXES:
            self.skip(length * width)
            return None
        return tuple(self.number(VALUES[inner]) for _ in range(length))

    def take(self, count: int) -> bytes:
        """Returns the next bytes."""
        content = self.file.read(count)
        if len(content) < count:
            raise ValueError("it ends in its header")
        return content

    def skip(self, count: int) -> None:
        """Skips the next bytes."""
        if self.file.seek(count, 1) > self.size:
            raise ValueError("it ends in its header")


class Reader(FileReader[Entry]):
    """Reads the tensors of an open file."""

    def read(self, name: str) -> Tensor:
        """Returns a tensor; quantized tensors in float32."""
        entry = self.entries[name]
        if entry.kind in PLAIN:
            return self.read_bytes(name).view(PLAIN[entry.kind]).reshape(entry.shape)
        if entry.kind == Q8_0:
            return dequantize(self.read_bytes(name)).reshape(entry.shape)
        if find_spec("gguf") is None:
            raise CheckpointError(
                f"{self.path} stores {name} as GGUF type {entry.kind}, which needs the library "
                'gguf: run pip install "wanvae[gguf]"'
            )
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize as dequantize_any

        values = self.read_bytes(name).numpy()
        floats = dequantize_any(values, GGMLQuantizationType(entry.kind))
        return torch.from_numpy(floats).reshape(entry.shape)

    def read_bytes(self, name: str) -> Tensor:
        """Returns the bytes of a tensor."""
        entry = self.entries[name]
        content = torch.empty(bytes_of(entry), dtype=torch.uint8)
        self.fill(content, entry.start, name)
        return content


def open_gguf(path: Path) -> StoredFile:
    """Reads the header of a GGUF file.

    Raises:
        CheckpointError: the header does not fit the file.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    file = FileIO(path)
    try:
        entries = read_entries(HeaderReader(file, size))
        outline = {
            name: outline_tensor(entry.shape, PLAIN.get(entry.kind, torch.float32))
            for name, entry in entries.items()
        }
    except (ValueError, KeyError) as error:
        file.close()
        raise damaged(path, error) from error
    reader = Reader(path, file, entries)
    kinds = {name: kind_of(entry) for name, entry in entries.items() if entry.kind not in PLAIN}
    return StoredFile(StoredTensors(outline, reader.read), "gguf", size=size, quantized=kinds)


def read_entries(header: HeaderReader) -> dict[str, Entry]:
    """Returns the place of each tensor.

    Raises:
        ValueError: the header is not valid, or tensors are not in the file.
        KeyError: a value or tensor has a type that does not exist.
    """
    if header.take(4) != GGUF_MAGIC or header.number("<I") not in VERSIONS:
        raise ValueError("its version is not 2 or 3")
    tensors = header.count(MOST_TENSORS, "tensors")
    values = {}
    for _ in range(header.count(MOST_VALUES, "values")):
        name = header.text()
        value = header.value()
        if name.startswith(ORIGINAL_SHAPE) or name == "general.alignment":
            values[name] = value
    found: dict[str, Entry] = {}
    for _ in range(tensors):
        name = header.text()
        if name in found:
            raise ValueError(f"two tensors are called {name!r}")
        axes = int(header.number("<I"))
        if axes > MOST_AXES:
            raise ValueError(f"the tensor {name} has {axes} axes")
        stored = tuple(header.count(header.size * BLOCK, "values") for _ in range(axes))[::-1]
        kind, offset = int(header.number("<I")), header.count(header.size, "bytes")
        shape = values.get(f"{ORIGINAL_SHAPE}{name}", stored)
        if math.prod(stored) > header.size * BLOCK:
            raise ValueError(f"the tensor {name} is not in the file")
        if math.prod(shape) != math.prod(stored) or any(n < 0 for n in shape):
            raise ValueError(f"the tensor {name} has the shape {stored}, but claims {shape}")
        found[name] = Entry(kind, tuple(map(int, shape)), offset)
    alignment = max(1, int(values.get("general.alignment", ALIGNMENT)))
    start = -(-header.file.tell() // alignment) * alignment
    entries = {n: Entry(e.kind, kernel_shape(n, found), start + e.start) for n, e in found.items()}
    for name, entry in entries.items():
        if entry.start + bytes_of(entry) > header.size:
            raise ValueError(f"the tensor {name} is not in the file")
    return entries


def kernel_shape(name: str, entries: Mapping[str, Entry]) -> tuple[int, ...]:
    """Returns the shape of a tensor. Some programs join the first two of five axes of a kernel.

    The bias of the layer tells the first of them.
    """
    shape = entries[name].shape
    bias = entries.get(name.removesuffix("weight") + "bias")
    if not name.endswith(".weight") or bias is None or len(shape) != 4 or len(bias.shape) != 1:
        return shape
    (outputs,) = bias.shape
    if not outputs or shape[0] == outputs or shape[0] % outputs:
        return shape
    return (outputs, shape[0] // outputs, *shape[1:])


def bytes_of(entry: Entry) -> int:
    """Returns how many bytes a tensor takes in the file.

    Types that this file does not read without the library take no byte without it.
    """
    count = math.prod(entry.shape)
    if entry.kind in PLAIN:
        return count * PLAIN[entry.kind].itemsize
    if entry.kind == Q8_0:
        block, size = BLOCK, BLOCK_BYTES
    elif find_spec("gguf") is None:
        return 0
    else:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(entry.kind)]
    if count % block:
        raise ValueError(f"{count} values are not blocks of {block}")
    return count // block * size


def kind_of(entry: Entry) -> str:
    """Returns the name of a quantized type."""
    return "Q8_0" if entry.kind == Q8_0 else f"GGUF type {entry.kind}"


def dequantize(content: Tensor) -> Tensor:
    """Returns the values of blocks of Q8_0 in float32."""
    blocks = content.reshape(-1, BLOCK_BYTES)
    scales = blocks[:, :2].contiguous().view(torch.float16).float()
    return (blocks[:, 2:].contiguous().view(torch.int8).float() * scales).reshape(-1)
