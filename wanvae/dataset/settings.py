"""What a data set of latents was made with: ``dataset.json`` in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wanvae.checkpoints.latent_statistics import statistics_like
from wanvae.engine.config import check, check_option, from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.errors import UserError

SETTINGS = "dataset.json"

Store = Literal["moments", "mean", "sample"]
Scale = Literal["raw", "normalized"]
StoreDtype = Literal["float32", "bfloat16", "float16"]
Container = Literal["files", "tar", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What to make of videos and images.

    Attributes:
        frames: of each clip, 1 + 4n for the official temporal factor: videos are cut into clips of
            so many, and the rest is dropped. None makes one clip of each, less up to 3 frames.
        fps: frames per second, like "16" or "30000/1001"; None keeps those of each video.
        resize: "480x832" scales and crops to that height and width, "480" scales the shorter side
            to that; None keeps the size. Sides are cropped to multiples of 8.
        store: the mean and logarithm of the variance of the latents ("moments"), their mean alone,
            or a sample.
        scale: "raw" latents are as the decoder takes them, "normalized" as diffusion models do.
        dtype: of what is stored.
        container: "files" writes one for each clip; "tar" a tar of such files, "safetensors" one
            file with the tensors of many clips.
        shard_size: bytes that a tar or file of many clips is to have.
        seed: of samples.
    """

    frames: int | None = None
    fps: str | None = None
    resize: str | None = None
    store: Store = "moments"
    scale: Scale = "raw"
    dtype: StoreDtype = "float32"
    container: Container = "files"
    shard_size: int = 2**30
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kinds in (
            ("store", Store),
            ("scale", Scale),
            ("dtype", StoreDtype),
            ("container", Container),
        ):
            check_option(name, getattr(self, name), kinds)
        check(self.shard_size >= 1, "shard_size", self.shard_size, "at least 1 byte")

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors of a clip."""
        return ("mean", "logvar") if self.store == "moments" else ("latents",)

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` for PyTorch."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Everything that the bytes of a data set depend on, but for the videos.

    Attributes:
        options: as asked for.
        source: the folder of videos.
        checkpoint: SHA-256 of the weights, in hexadecimal.
        compute_dtype: that the model ran in.
        latents_mean: of each latent channel; empty means 0.
        latents_std: of each latent channel; empty means 1.
        clips: where a file has many, a digest of which clips there are; else empty.
    """

    options: DatasetOptions
    source: str
    checkpoint: str
    compute_dtype: str
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    clips: str = ""

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents ``(z_dim, T, H, W)``, float32, to broadcast."""
        return statistics_like(torch.empty(0), self.latents_mean, self.latents_std)

    def differences(self, other: DatasetSettings) -> list[str]:
        """What of ``other`` is not the same, in words."""
        differences = describe_differences(flat(self), flat(other))
        if self.clips != other.clips:
            differences.append(
                "videos were added, removed or changed, as only --container files allows"
            )
        return differences


def describe_differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """What of ``theirs`` is not the same, in words."""
    return [
        f"{name} is {theirs[name]!r}, not {value!r}"
        for name, value in ours.items()
        if theirs[name] != value
    ]


def flat(settings: DatasetSettings) -> dict[str, object]:
    """All values but the digest, which says nothing to people."""
    values = to_json_dict(replace(settings, clips=""))
    return values.pop("options") | values


def read_settings(folder: Path) -> DatasetSettings:
    """The settings of a data set; ValueError if ``folder`` has none."""
    path = folder / SETTINGS
    try:
        return from_json_dict(DatasetSettings, parse_json(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no data set of latents, for it has no {SETTINGS}; "
            "make one with wanvae encode-dataset"
        ) from None
    except UserError as error:
        raise UserError(f"{path} is not that of a data set of this version: {error}") from error


def write_settings(folder: Path, settings: DatasetSettings) -> None:
    """Write ``dataset.json``."""
    with atomic_path(folder / SETTINGS) as temporary:
        text = json.dumps(to_json_dict(settings), indent=2) + "\n"
        temporary.write_text(text, encoding="utf-8")
