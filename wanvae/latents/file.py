"""The latents of one video in a safetensors file, written and read piece by piece.

A file holds ``mean`` and ``logvar`` ``(z_dim, T, H, W)``, and ``times`` ``(frames,)`` in seconds as
float64. Its metadata hold the size and rate of the video, when its last frame ends, which model
encoded it, and whether the latents are normalized. ``wanvae encode`` writes float32, not
normalized. ``wanvae encode-dataset`` may write another dtype, ``latents`` instead of mean and
logvar, and normalized latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.config import from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.engine.storage.temporary_files import temporary_file_in
from wanvae.errors import UserError
from wanvae.latents.common import FORMAT, OTHER_NAME, readable
from wanvae.latents.spool import LatentsSpool
from wanvae.nn.kernels.precision import wide_dtype
from wanvae.posterior import Posterior
from wanvae.video.rate import parse_rate

# More seconds than any video has.
LONGEST = 1e9


@dataclass(frozen=True, kw_only=True)
class VideoShape:
    """Facts of a video that its latents do not tell.

    Attributes:
        width: pixels, before padding to a multiple of the spatial factor.
        height: pixels, before the same padding.
        fps: frames per second, as a fraction like "30000/1001".
        source: name of the video file.
    """

    width: int
    height: int
    fps: str
    source: str

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise UserError(f"a video cannot have {self.width}x{self.height} pixels")
        parse_rate(self.fps)

    @property
    def rate(self) -> Fraction:
        """``fps`` as a number."""
        return parse_rate(self.fps)


class LatentsWriter:
    """Collects the posterior of a video of any length. ``write_latents`` creates it."""

    def __init__(self, spool: LatentsSpool) -> None:
        self._spool = spool
        self._end: float | None = None

    def write(self, posterior: Posterior) -> None:
        """Appends the posterior ``(1, z_dim, T, H, W)`` of the next frames."""
        self._spool.write(torch.cat([posterior.mean, posterior.logvar], dim=1)[0])

    def write_time(self, time: float) -> None:
        """Appends the time in seconds of a frame of the video. Padding has no time."""
        self._spool.times.append(time)

    def end_at(self, time: float) -> None:
        """Says when the last frame ends, in seconds from the first; otherwise nobody knows."""
        self._end = time

    @property
    def end(self) -> float | None:
        """When the last frame ends, as ``end_at`` was told."""
        return self._end

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the mean so far, (z_dim, T, H, W)."""
        return self._spool.shape


def video_metadata(
    shape: VideoShape,
    *,
    normalized: bool = False,
    model: str = "",
    encoders: tuple[str, ...] = (),
    start: float | None = None,
    end: float | None = None,
) -> dict[str, str]:
    """Returns the metadata of a file of latents.

    Args:
        model: a digest that identifies the model; empty if it is not known.
        encoders: digests that identify its encoder, and copies of it that were rounded.
        start: time of the first frame, in seconds from the first frame of the video file; None if
            it is not known, or told elsewhere.
        end: when the last frame ends, in seconds from the first frame of the latents; None if it is
            not known.
    """
    metadata = {
        "format": FORMAT,
        "video": json.dumps(to_json_dict(shape)),
        "normalized": "true" if normalized else "false",
    }
    if start is not None:
        metadata["start"] = str(start)
    if end is not None:
        metadata["end"] = str(end)
    digests = {"model": model, "encoder": " ".join(encoders)}
    return metadata | {name: digest for name, digest in digests.items() if digest}


@contextmanager
def write_latents(
    path: str | PathLike[str],
    shape: VideoShape,
    *,
    model: str = "",
    encoders: tuple[str, ...] = (),
    start: float | None = None,
) -> Iterator[LatentsWriter]:
    """Gives a writer. Its file appears at the end of the block, or not at all if the block raises.

    Args:
        model: a digest that identifies the model; empty if it is not known.
        encoders: digests that identify its encoder, and copies of it that were rounded.
        start: time of the first frame, in seconds from the first frame of the video file; None if
            it is not known.

    Raises:
        CheckpointError: ``path`` does not end in .safetensors, or nothing was written to it.
        FileError: ``path`` cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors; change its name")
    with atomic_path(path) as temporary, temporary_file_in(path.parent) as spool:
        latents = LatentsSpool(spool, ("mean", "logvar"), torch.float32)
        writer = LatentsWriter(latents)
        yield writer
        if not latents.length:
            raise CheckpointError("there are no latents to write; encode at least one frame")
        with temporary.open("wb") as file:
            metadata = video_metadata(
                shape, model=model, encoders=encoders, start=start, end=writer.end
            )
            latents.write_file(file, metadata)


@dataclass(frozen=True)
class LatentsFile:
    """Latents to read piece by piece. ``read_latents`` creates it.

    Attributes:
        channels: channels of a latent, z_dim.
        length: number of latents along time, T.
        height: latents along height, H.
        width: latents along width, W.
        video: facts of the video; None for latents of another program.
        times: times of the video frames in seconds; empty for latents of another program.
        normalized: whether the latents are normalized; None if this is not known.
        model: a digest that identifies the model that encoded; empty if the file does not say.
        encoders: likewise, of its encoder, and of copies of it that were rounded.
        program: the program that wrote the file; empty for this package.
        start: time of the first frame, in seconds from the first frame of the video file; None if
            the file does not say.
        end: when the last frame ends, in seconds like ``times``; None if the file does not say.
    """

    channels: int
    length: int
    height: int
    width: int
    video: VideoShape | None
    times: tuple[float, ...]
    normalized: bool | None
    model: str
    encoders: tuple[str, ...]
    program: str
    start: float | None
    end: float | None
    _slices: Any

    def piece(self, start: int, end: int) -> Tensor:
        """Returns latents ``(1, z_dim, end - start, H, W)``, as float32 or wider."""
        piece = self._slices[:, start:end][None]
        return piece.float() if piece.itemsize == 1 else piece.to(wide_dtype(piece))


@contextmanager
def read_latents(path: str | PathLike[str]) -> Iterator[LatentsFile]:
    """Opens latents that ``write_latents`` or ``wanvae encode-dataset`` wrote.

    Raises:
        CheckpointError: the file cannot be read, or holds no such latents.
    """
    with readable(path):
        file = safe_open(path, framework="pt")
    with file:
        with readable(path):
            latents = describe_latents(file)
        yield latents


def describe_latents(file: safe_open) -> LatentsFile:
    """Returns the latents of an open safetensors file; raises UserError if it has none."""
    metadata = file.metadata() or {}
    names = set(file.keys())
    name = OTHER_NAME if OTHER_NAME in names else "mean"
    if metadata.get("format") != FORMAT or name not in names:
        raise UserError(f"it has no tensor {name!r} of this package, only {sorted(names)[:5]}")
    slices = file.get_slice(name)
    sizes = slices.get_shape()
    if len(sizes) != 4 or 0 in sizes:
        raise UserError(f"{name} must be (z_dim, T, H, W), not {sizes}")
    channels, length, height, width = sizes
    times = check_times(file.get_tensor("times"))
    return LatentsFile(
        channels=channels,
        length=length,
        height=height,
        width=width,
        video=from_json_dict(VideoShape, parse_json(metadata.get("video", ""))),
        times=times,
        # Files of earlier versions say it only of latents that are normalized.
        normalized=metadata.get("normalized") == "true",
        model=metadata.get("model", ""),
        encoders=tuple(metadata.get("encoder", "").split()),
        program="",
        start=find_start(metadata),
        end=find_end(metadata, times[-1]),
        _slices=slices,
    )


def find_end(metadata: Mapping[str, str], last: float) -> float | None:
    """Returns when the last frame ends, in seconds; None if the file does not say.

    Args:
        last: when it begins.

    Raises:
        UserError: what it says is no such time.
    """
    end = metadata.get("end")
    if end is None:
        return None
    seconds = seconds_of(end)
    if not last < seconds < LONGEST:
        raise UserError(f"its end, {end!r}, is no time in seconds after its last frame, {last} s")
    return seconds


def seconds_of(value: object) -> float:
    """Returns a value of metadata as a number; -1 if it is none."""
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return -1.0


def find_start(metadata: Mapping[str, str]) -> float | None:
    """Returns when latents begin in their video, in seconds; None if their file does not say.

    Raises:
        UserError: what it says is no such time.
    """
    start = metadata.get("start")
    if start is None:  # data sets have it among other facts of a clip
        clip = parse_json(metadata.get("clip", "{}"))
        start = clip.get("start") if isinstance(clip, dict) else None
    if start is None:
        return None
    seconds = seconds_of(start)
    if not 0 <= seconds < LONGEST:
        raise UserError(f"its start, {start!r}, is no time in seconds")
    return seconds


def check_times(times: Tensor) -> tuple[float, ...]:
    """Returns the values of ``times``; raises UserError if they cannot be times of a video."""
    right = times.dim() == 1 and times.is_floating_point() and times.numel() > 0
    # NaN fails every comparison.
    if not (right and times[0] >= 0 and times[-1] < LONGEST and (times.diff() > 0).all()):
        raise UserError("its times are not increasing seconds")
    return tuple(times.tolist())
