"""Latents of one video in a safetensors file, written and read piece by piece.

A file holds ``mean`` and ``logvar`` ``(z_dim, T, H, W)``, float32 and not normalised, ``times``
``(frames,)`` in seconds, float64, and in its metadata the size and rate of the video.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wanvae.engine.checkpoint import CheckpointError, atomic_path
from wanvae.engine.config import from_json_dict, parse_json, to_json_dict
from wanvae.posterior import Posterior
from wanvae.video.common import RATES

FORMAT = "wanvae-latents"
# Latents of other programs are a single tensor of this name.
OTHER_NAME = "latents"
# Frames of latents copied at once.
PIECE = 64
# More seconds than any video has.
LONGEST = 1e9


@dataclass(frozen=True, kw_only=True)
class VideoShape:
    """What latents do not tell of the video they came from.

    Attributes:
        width: in pixels, before padding to a multiple of the spatial factor.
        height: likewise.
        fps: frames per second, as a fraction like "30000/1001".
        source: name of the video file.
    """

    width: int
    height: int
    fps: str
    source: str

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a video of {self.width}x{self.height} pixels cannot be")
        parse_rate(self.fps)

    @property
    def rate(self) -> Fraction:
        """``fps`` as a number."""
        return parse_rate(self.fps)


def parse_rate(text: str) -> Fraction:
    """Frames per second from a text like "25", "29.97" or "30000/1001"; ValueError if it is none.

    No exponents: "1e999999999" would take forever.
    """
    number = re.fullmatch(r"\d{1,10}(\.\d{1,10}|/0*[1-9]\d{0,9})?", text, re.ASCII)
    lowest, highest = RATES
    if number is None or not lowest <= Fraction(text) <= highest:
        raise ValueError(
            f"fps must be a rate like 25 or 30000/1001, from {lowest} to {highest}, not {text!r}"
        )
    return Fraction(text)


class LatentsWriter:
    """Collects the posterior of a video of any length; made by ``write_latents``."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._times: list[float] = []
        self._length = 0
        self._sizes: tuple[int, ...] = ()

    def write(self, posterior: Posterior) -> None:
        """Append the posterior ``(1, z_dim, T, H, W)`` of the next frames."""
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1)[0].float().cpu()
        channels, length, *space = moments.shape
        self._sizes = (channels, *space)
        self._length += length
        # Time outermost, so that pieces follow each other.
        self._spool.write(moments.transpose(0, 1).contiguous().numpy().tobytes())

    def write_time(self, time: float) -> None:
        """Append the time in seconds of a frame of the video; padding has none."""
        self._times.append(time)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the mean so far: (z_dim, T, H, W)."""
        channels, *space = self._sizes
        return (channels // 2, self._length, *space)

    def complete(self, path: Path, shape: VideoShape) -> None:
        """Write all that was collected as a safetensors file, in constant memory."""
        if not self._length:
            raise CheckpointError("there are no latents to write; encode at least one frame")
        self._spool.flush()
        moments = np.memmap(self._spool, np.float32, "r", shape=(self._length, *self._sizes))
        half = {"dtype": "F32", "shape": self.shape}
        header = {"mean": (half, moments.nbytes // 2), "logvar": (half, moments.nbytes // 2)}
        times = np.array(self._times, np.float64)
        header["times"] = ({"dtype": "F64", "shape": [len(times)]}, times.nbytes)
        metadata = {"format": FORMAT, "video": json.dumps(to_json_dict(shape))}
        with path.open("wb") as file:
            file.write(safetensors_header(header, metadata))
            for channel in range(self._sizes[0]):
                for start in range(0, self._length, PIECE):
                    file.write(np.ascontiguousarray(moments[start : start + PIECE, channel]))
            file.write(times)


def safetensors_header(
    tensors: dict[str, tuple[dict[str, Any], int]], metadata: dict[str, str]
) -> bytes:
    """The start of a safetensors file of tensors (dtype and shape, size in bytes), in order."""
    content: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (entry, size) in tensors.items():
        content[name] = {**entry, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned
    return len(text).to_bytes(8, "little") + text


@contextmanager
def write_latents(path: str | PathLike[str], shape: VideoShape) -> Iterator[LatentsWriter]:
    """A writer whose file appears at the end of the block, or not at all if it raises.

    Raises:
        CheckpointError: ``path`` does not end in .safetensors or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors; change its name")
    with atomic_path(path) as temporary, TemporaryFile(dir=path.parent) as spool:
        writer = LatentsWriter(spool)
        yield writer
        writer.complete(temporary, shape)


@dataclass(frozen=True)
class LatentsFile:
    """Latents to read piece by piece; made by ``read_latents``.

    Attributes:
        channels: of a latent.
        length: latents along time.
        height: of a latent frame.
        width: of a latent frame.
        video: what is known of the video; None for latents of another program.
        times: of its frames in seconds; empty for latents of another program.
    """

    channels: int
    length: int
    height: int
    width: int
    video: VideoShape | None
    times: tuple[float, ...]
    _slices: Any
    _batched: bool

    def piece(self, start: int, end: int) -> Tensor:
        """Latents ``(1, z_dim, end - start, H, W)``."""
        if self._batched:
            return self._slices[:, :, start:end]
        return self._slices[:, start:end][None]


@contextmanager
def read_latents(path: str | PathLike[str]) -> Iterator[LatentsFile]:
    """Open latents that ``write_latents`` wrote, or a tensor "latents" of another program.

    The latter is ``(z_dim, T, H, W)`` or ``(1, z_dim, T, H, W)``.

    Raises:
        CheckpointError: the file cannot be read or holds no such tensor.
    """
    with readable(path):
        file = safe_open(path, framework="pt")
    with file:
        with readable(path):
            latents = describe_latents(file)
        yield latents


@contextmanager
def readable(path: str | PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong in reading latents from ``path`` into a CheckpointError."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; check the path") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as latents: {error}; encode it again, or give a safetensors "
            f"file with a tensor {OTHER_NAME!r}"
        ) from error


def describe_latents(file: safe_open) -> LatentsFile:
    """What an open safetensors file holds; ValueError if those are no latents."""
    metadata = file.metadata() or {}
    ours = metadata.get("format") == FORMAT
    names = set(file.keys())
    name = "mean" if ours else OTHER_NAME
    if name not in names:
        raise ValueError(f"it has no tensor {name!r}, only {sorted(names)[:5]}")
    slices = file.get_slice(name)
    sizes = slices.get_shape()
    batched = len(sizes) == 5 and sizes[0] == 1
    if not (batched or len(sizes) == 4) or 0 in sizes:
        raise ValueError(f"{name} must be (z_dim, T, H, W) or (1, z_dim, T, H, W), not {sizes}")
    video, times = None, ()
    if ours:
        video = from_json_dict(VideoShape, parse_json(metadata.get("video", "")))
        times = check_times(file.get_tensor("times"))
    return LatentsFile(*sizes[-4:], video, times, slices, batched)


def check_times(times: Tensor) -> tuple[float, ...]:
    """The values of ``times``; ValueError if no frames of a video can have them."""
    right = times.dim() == 1 and times.is_floating_point() and times.numel() > 0
    # Not a number fails every comparison.
    if not (right and times[0] >= 0 and times[-1] < LONGEST and (times.diff() > 0).all()):
        raise ValueError("its times are not increasing seconds")
    return tuple(times.tolist())
