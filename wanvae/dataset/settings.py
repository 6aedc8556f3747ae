"""The settings of a data set of latents: ``dataset.json`` in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wanvae.checkpoints.latent_statistics import statistics_like
from wanvae.engine import output_folder
from wanvae.engine.config import check, check_option, to_json_dict
from wanvae.engine.output_folder import describe_differences
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.errors import UserError
from wanvae.latents.formats import LAYOUTS
from wanvae.latents.formats.layout import Condition
from wanvae.latents.scale import Scale

SETTINGS = "dataset.json"
# What the folder holds, for messages.
DATA_SET = "a data set of latents"

Store = Literal["moments", "mean", "sample"]
StoreDtype = Literal["float32", "bfloat16", "float16"]
Container = Literal["files", "tar", "safetensors"]
Conditioning = Literal["first_frame"]
LayoutName = Literal["wanvae", "musubi", "ai-toolkit", "simpletuner", "diffusion-pipe", "comfyui"]


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """How to encode videos and images.

    Attributes:
        frames: frames of each clip, 1 + 4n for the official temporal factor. Videos are cut into
            clips of this length, and the rest is dropped. None encodes each video as one clip,
            without up to 3 of its last frames.
        shorter: other numbers of frames, less than ``frames``. Where less than ``frames`` is left
            of a video, the longest clip that fits is cut, again and again.
        fps: frames per second, such as "16" or "30000/1001"; None keeps the rate of each video.
        resize: "480x832" scales and crops to that height and width, "480" scales the shorter side
            to that; None keeps the size. Sides are cropped to multiples of 8.
        buckets: sizes like "480x832", instead of ``resize``: each video gets the one that crops it
            least.
        store: what to store: mean and logarithm of the variance of the latents ("moments"), only
            the mean, or a sample.
        scale: "raw" latents are for the decoder, "normalized" latents for diffusion models.
        dtype: dtype of the stored latents.
        container: "files" writes one file for each clip; "tar" writes tars of such files;
            "safetensors" writes files with the tensors of many clips.
        shard_size: bytes after which a tar or a file of many clips is full.
        seed: seed of the samples.
        layout: "wanvae" writes our own files; others write files that this program reads as if it
            had cached them, with the scale that it stores, without a variance, not in containers.
        architecture: the model that the latents are for, as the program calls it; empty takes the
            one of so many channels.
        conditioning: "first_frame" also stores the latents of the first frame of each clip alone.
        control: a folder of videos with the names of those that are encoded. Their latents, at the
            same times and of the same size, are stored too.
        deinterlace: give each interlaced frame all lines of one time.
        background: the colour that transparent pictures are laid on, like "white" or "#ff8000", if
            the model does not encode alpha; None takes black.
    """

    frames: int | None = None
    shorter: tuple[int, ...] = ()
    fps: str | None = None
    resize: str | None = None
    buckets: tuple[str, ...] = ()
    store: Store = "moments"
    scale: Scale = "raw"
    dtype: StoreDtype = "float32"
    container: Container = "files"
    shard_size: int = 2**30
    seed: int = 0
    layout: LayoutName = "wanvae"
    architecture: str = ""
    conditioning: Conditioning | None = None
    control: str | None = None
    deinterlace: bool = False
    background: str | None = None

    def __post_init__(self) -> None:
        for name, kinds in (
            ("store", Store),
            ("scale", Scale),
            ("dtype", StoreDtype),
            ("container", Container),
            ("layout", LayoutName),
        ):
            check_option(name, getattr(self, name), kinds)
        if self.conditioning is not None:
            check_option("conditioning", self.conditioning, Conditioning)
        check(self.shard_size >= 1, "shard_size", self.shard_size, "at least 1 byte")
        for length in self.shorter:
            expected = f"less than frames, which is {self.frames}"
            check(self.frames is not None and length < self.frames, "shorter", length, expected)
        none = "empty with resize, which gives all clips one size"
        check(not (self.resize and self.buckets), "buckets", self.buckets, none)
        self._check_layout()

    def _check_layout(self) -> None:
        """Checks that the layout can hold what the other options ask for."""
        layout = LAYOUTS.get(self.layout)
        if layout is None:
            none = 'empty with layout "wanvae"'
            check(not self.architecture, "architecture", self.architecture, none)
            return
        reader = f"with layout {self.layout!r}, because {layout.program} stores nothing else"
        check(self.store != "moments", "store", self.store, f"mean or sample {reader}")
        check(self.scale == layout.scale, "scale", self.scale, f"{layout.scale} {reader}")
        check(self.container == "files", "container", self.container, f"files {reader}")

    @property
    def many(self) -> bool:
        """Whether files hold many clips, and stay as they are when a video changes."""
        return self.container != "files" or self.layout == "diffusion-pipe"

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors of a clip."""
        return ("mean", "logvar") if self.store == "moments" else ("latents",)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What is stored of a clip besides its own latents, in the order of the files."""
        found: list[Condition] = []
        if self.conditioning is not None:
            found.append(self.conditioning)
        if self.control is not None:
            found.append("control")
        return tuple(found)

    def tensors_of(self, condition: Condition) -> tuple[str, ...]:
        """The names of the tensors of a condition."""
        return tuple(f"{condition}_{name}" for name in self.tensors)

    def lengths(self, length: int) -> list[int]:
        """The latents along time of a clip of ``length`` and of its conditions, in order."""
        return [length, *(1 if c == "first_frame" else length for c in self.conditions)]

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as PyTorch's dtype."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Everything that the bytes of a data set depend on, except the videos.

    Attributes:
        options: how to encode.
        source: the folder of videos.
        checkpoint: SHA-256 of the file of the weights, in hexadecimal.
        compute_dtype: dtype that the model computes in.
        latents_mean: mean of each latent channel; empty means 0.
        latents_std: standard deviation of each latent channel; empty means 1.
        clips: a digest of the list of clips, where a file has many; else empty.
        model: SHA-256 of the tensors and the config of the model; empty in data sets of earlier
            versions, where ``checkpoint`` counts.
        stamps: a digest of the stamps of the videos, where a file has many clips; else empty.
        encoders: digests of the encoder of the model, and of copies of it that were rounded; empty
            in data sets of earlier versions. They differ only where ``model`` does.
    """

    options: DatasetOptions
    source: str
    checkpoint: str
    compute_dtype: str
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    clips: str = ""
    model: str = ""
    stamps: str = ""
    encoders: tuple[str, ...] = ()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation, float32, to broadcast with ``(z_dim, T, H, W)``."""
        return statistics_like(torch.empty(0), self.latents_mean, self.latents_std)

    def differences(self, other: DatasetSettings) -> list[str]:
        """Says in words what of ``other`` is not the same."""
        known = "model" if self.model and other.model else "checkpoint"
        differences = describe_differences(flat(self, known), flat(other, known))
        if self.clips != other.clips or (other.stamps and self.stamps != other.stamps):
            differences.append(
                "videos were added, removed or changed, as only --container files allows; other "
                "scenes in their manifest are a change too"
            )
        return differences


def flat(settings: DatasetSettings, known: str) -> dict[str, object]:
    """Returns the values that tell people something, by name.

    Args:
        known: the field that identifies the model.
    """
    values = to_json_dict(settings)
    model = values[known]
    for name in ("checkpoint", "model", "clips", "stamps", "encoders"):
        del values[name]
    return values.pop("options") | values | {"checkpoint": model}


def read_settings(folder: Location) -> DatasetSettings:
    """Returns the settings of a data set.

    Raises:
        UserError: ``folder`` does not exist, or is not a data set of this version.
    """
    if not isinstance(folder, RemotePath) and not folder.exists():
        raise UserError(f"the folder {folder} does not exist; check the path")
    try:
        return output_folder.read_settings(folder / SETTINGS, DatasetSettings, DATA_SET)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a data set of latents, because it has no {SETTINGS}; "
            "write one with wanvae encode-dataset"
        ) from None
