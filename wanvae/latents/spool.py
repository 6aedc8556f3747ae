"""Latents of any length on their way to a safetensors file, in constant memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

# Names of dtypes in safetensors files, and the same by which PyTorch calls them.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Frames of latents copied at once.
PIECE = 64

# Of a tensor: dtype and shape, and its size in bytes.
TensorEntry = tuple[dict[str, Any], int]


class LatentsSpool:
    """Collects latents along time in a temporary file, to copy them from there in their order.

    Args:
        file: temporary, and empty.
        names: of tensors of one shape, whose channels come together, one tensor after the other.
        dtype: to store, one of ``DTYPES``.

    Attributes:
        length: of the latents so far, along time.
        times: of the frames of the video in seconds; append to them.
    """

    def __init__(self, file: IO[bytes], names: Sequence[str], dtype: torch.dtype) -> None:
        self._file = file
        self._names = names
        self._dtype = dtype
        self.length = 0
        self._sizes: tuple[int, ...] = ()
        self.times: list[float] = []

    def write(self, latents: Tensor) -> None:
        """Append ``(channels of all tensors, T, H, W)``, T >= 1."""
        # Time outermost, so that pieces follow each other.
        frames = latents.to(self._dtype).cpu().transpose(0, 1).contiguous()
        self.length += len(frames)
        self._sizes = tuple(frames.shape[1:])
        self._file.write(frames.view(torch.uint8).numpy().tobytes())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each tensor so far: (channels, T, H, W)."""
        channels, *space = self._sizes
        return (channels // len(self._names), self.length, *space)

    def times_entry(self) -> TensorEntry:
        """What ``times_content`` is."""
        return {"dtype": "F64", "shape": [len(self.times)]}, 8 * len(self.times)

    def times_content(self) -> bytes:
        """``times`` as a file has them. They must be first there, or data are not aligned."""
        return np.array(self.times, np.float64).tobytes()

    def entries(self) -> dict[str, TensorEntry]:
        """What ``copy_to`` writes, in its order."""
        (dtype,) = (name for name, kind in DTYPES.items() if kind is self._dtype)
        size = math.prod(self.shape) * self._dtype.itemsize
        return {name: ({"dtype": dtype, "shape": self.shape}, size) for name in self._names}

    def copy_to(self, file: IO[bytes]) -> None:
        """Write all latents that were collected."""
        self._file.flush()
        kind = f"u{self._dtype.itemsize}"
        latents = np.memmap(self._file, kind, "r", shape=(self.length, *self._sizes))
        for channel in range(self._sizes[0]):
            for start in range(0, self.length, PIECE):
                file.write(np.ascontiguousarray(latents[start : start + PIECE, channel]))

    def write_file(self, file: IO[bytes], metadata: Mapping[str, str]) -> None:
        """Write a whole safetensors file of times and latents."""
        tensors = {"times": self.times_entry(), **self.entries()}
        file.write(safetensors_header(tensors, metadata))
        file.write(self.times_content())
        self.copy_to(file)


def safetensors_header(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file of ``tensors``, whose data follow in the same order."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (entry, size) in tensors.items():
        content[name] = {**entry, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned
    return len(text).to_bytes(8, "little") + text
