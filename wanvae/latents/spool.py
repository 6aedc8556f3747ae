"""Latents of any length, collected on disk for a safetensors file, in constant memory."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

# Dtypes by their names in safetensors files.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Latent frames that are copied at once.
PIECE = 64

# The dtype and shape of a tensor in a file, and its size in bytes.
TensorEntry = tuple[dict[str, Any], int]


class LatentsSpool:
    """Collects latents along time in a temporary file, and copies them channel by channel.

    A safetensors file stores channels one after the other, but latents arrive frame by frame.

    Args:
        file: an empty temporary file.
        names: names of the tensors. They have one shape, and ``write`` takes their channels
            together, one tensor after the other.
        dtype: the dtype to store, one of ``DTYPES``.

    Attributes:
        length: number of latents along time so far.
        times: times of the video frames in seconds. Append to this list.
    """

    def __init__(self, file: IO[bytes], names: Sequence[str], dtype: torch.dtype) -> None:
        self._file = file
        self._names = names
        self._dtype = dtype
        self.length = 0
        self._sizes: tuple[int, ...] = ()
        self.times: list[float] = []

    def write(self, latents: Tensor) -> None:
        """Appends latents ``(channels of all tensors, T, H, W)`` with T >= 1."""
        # Time is the first dimension on disk, so that pieces follow each other.
        frames = latents.to(self._dtype).cpu().transpose(0, 1).contiguous()
        self.length += len(frames)
        self._sizes = tuple(frames.shape[1:])
        self._file.write(frames.view(torch.uint8).numpy().tobytes())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each tensor so far, (channels, T, H, W)."""
        channels, *space = self._sizes
        return (channels // len(self._names), self.length, *space)

    def times_entry(self) -> TensorEntry:
        """Returns dtype, shape and size of ``times_content``."""
        return {"dtype": "F64", "shape": [len(self.times)]}, 8 * len(self.times)

    def times_content(self) -> bytes:
        """Returns ``times`` as bytes. They must come first in a file to keep all data aligned."""
        return array("d", self.times).tobytes()

    def entries(self) -> dict[str, TensorEntry]:
        """Returns dtype, shape and size of the tensors that ``copy_to`` writes, in order."""
        (dtype,) = (name for name, kind in DTYPES.items() if kind is self._dtype)
        size = math.prod(self.shape) * self._dtype.itemsize
        return {name: ({"dtype": dtype, "shape": self.shape}, size) for name in self._names}

    def tensor(self) -> Tensor:
        """Returns all collected latents ``(channels of all tensors, T, H, W)`` in memory."""
        channels_first = self._on_disk().swapaxes(0, 1).copy(order="C")
        return torch.from_numpy(channels_first).view(self._dtype)

    def cut(self, length: int) -> None:
        """Drops the latents after the first ``length`` along time."""
        self.length = min(self.length, length)

    def copy_to(self, file: IO[bytes]) -> None:
        """Writes all collected latents."""
        latents = self._on_disk()
        for channel in range(self._sizes[0]):
            for start in range(0, self.length, PIECE):
                file.write(latents[start : start + PIECE, channel].copy(order="C").data)

    def _on_disk(self) -> np.ndarray:
        """Returns all collected latents ``(T, channels, H, W)`` as whole numbers, mapped."""
        import numpy as np

        self._file.flush()
        kind = f"u{self._dtype.itemsize}"
        return np.memmap(self._file, kind, "r", shape=(self.length, *self._sizes))

    def write_file(
        self, file: IO[bytes], metadata: Mapping[str, str], others: Sequence[LatentsSpool] = ()
    ) -> None:
        """Writes a whole safetensors file of times and latents.

        Args:
            others: more latents for the same file, of tensors with other names.
        """
        tensors = {"times": self.times_entry(), **self.entries()}
        for other in others:
            tensors |= other.entries()
        file.write(safetensors_header(tensors, metadata))
        file.write(self.times_content())
        for spool in (self, *others):
            spool.copy_to(file)


def safetensors_header(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Returns the header of a safetensors file whose data follow in the order of ``tensors``."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (entry, size) in tensors.items():
        content[name] = {**entry, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned
    return len(text).to_bytes(8, "little") + text
