"""Data sets of latents for training diffusion models, as ``wanvae encode-dataset`` writes them."""

from __future__ import annotations

from fractions import Fraction
from math import prod
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from wanvae.dataset.records import INDEX, IndexedClip
from wanvae.dataset.settings import read_settings
from wanvae.engine.json_files import read_lines
from wanvae.errors import UserError
from wanvae.posterior import Posterior


class LatentClip(NamedTuple):
    """A clip to train on.

    Attributes:
        latents: ``(z_dim, T, H, W)``, float32, normalized.
        fps: frames per second of the video.
        source: name of the video.
    """

    latents: Tensor
    fps: float
    source: str


class LatentDataset(Dataset):
    """The clips of a data set of latents. All latents are normalized, whatever is stored.

    Args:
        folder: the folder that ``wanvae encode-dataset`` wrote.
        sample: draw latents from their distribution each time, with PyTorch's global generator.
            Without it, latents are the mean, or the one sample that is stored.

    Attributes:
        settings: the settings that the data set was written with.
        clips: facts of each clip, such as the shape of its latents.

    Raises:
        UserError: the folder is not a data set or not complete, or ``sample`` is asked for and no
            variance is stored. Reading a clip raises it if the latents are not there or not finite.
    """

    def __init__(self, folder: str | PathLike[str], *, sample: bool = False) -> None:
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self.clips = self._read_index()
        self.sample = sample
        store = self.settings.options.store
        if sample and store != "moments":
            raise UserError(
                f"{folder} stores a {store} of the latents, not their distribution: leave out "
                "sample, or encode the videos again with --store moments"
            )

    def _read_index(self) -> list[IndexedClip]:
        path = self.folder / INDEX
        try:
            return read_lines(path, IndexedClip)
        except FileNotFoundError:
            raise UserError(
                f"{self.folder} is not complete, because it has no {INDEX}; "
                "run wanvae encode-dataset again to go on"
            ) from None
        except UserError as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it, and run wanvae encode-dataset again"
            ) from error

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> LatentClip:
        clip = self.clips[index]
        tensors = self._read(clip)
        if not tensors.isfinite().all():
            raise UserError(
                f"the latents of {clip.name} in {self.folder / clip.file} are not finite (NaN or "
                "infinity); delete this file, and encode again in bfloat16 or float32"
            )
        latents = tensors[:1]
        if self.sample:
            latents = Posterior(*tensors.split(1)).sample()
        if self.settings.options.scale == "raw":
            mean, std = self.settings.statistics()
            latents = (latents - mean) / std
        return LatentClip(latents[0], float(Fraction(clip.fps)), clip.source)

    def _read(self, clip: IndexedClip) -> Tensor:
        """Returns the tensors of a clip, ``(1 or 2, z_dim, T, H, W)``, as float32."""
        options = self.settings.options
        shape = len(options.tensors), *clip.shape
        content = bytearray(prod(shape) * options.torch_dtype.itemsize)
        path = self.folder / clip.file
        try:
            with path.open("rb") as file:
                file.seek(clip.offset)
                read = file.readinto(content)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        if read < len(content):
            raise UserError(
                f"{path} ends too early; delete it, and run wanvae encode-dataset again"
            )
        return torch.frombuffer(content, dtype=options.torch_dtype).view(shape).float()
