"""Latents that ``wanvae encode-dataset`` wrote, as clips to train on."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import torch
from torch import Tensor

from wanvae.dataset.clip import LatentClip
from wanvae.dataset.records import INDEX, IndexedClip
from wanvae.dataset.settings import read_settings
from wanvae.engine.json_files import read_lines
from wanvae.engine.storage.remote_path import Location
from wanvae.errors import UserError
from wanvae.posterior import Posterior


class OwnLatents:
    """The clips in a folder of ``wanvae encode-dataset``. ``read`` normalizes them.

    Args:
        folder: the folder.
        sample: draw latents from their distribution each time, instead of taking their mean.

    Attributes:
        settings: the settings that the data set was written with.
        clips: the clips.

    Raises:
        UserError: the folder is not a data set or not complete, or no distribution is stored.
    """

    def __init__(self, folder: Location, sample: bool) -> None:
        self.folder = folder
        self.settings = read_settings(folder)
        self.clips = self._read_index()
        self._sample = sample
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
                "run wanvae encode-dataset again to go on, or wanvae merge-index to join parts"
            ) from None
        except UserError as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it, and run wanvae encode-dataset again"
            ) from error

    def read(self, index: int) -> LatentClip:
        """Returns a clip.

        Raises:
            UserError: the clip cannot be read, or is not finite.
        """
        clip = self.clips[index]
        tensors = self.read_tensors(clip)
        if not tensors.isfinite().all():
            raise UserError(
                f"the latents of {clip.name} in {self.folder / clip.file} are not finite (NaN or "
                "infinity); delete this file, and encode again in bfloat16 or float32"
            )
        latents = tensors[:1]
        if self._sample:
            latents = Posterior(*tensors.split(1)).sample()
        if self.settings.options.scale == "raw":
            mean, std = self.settings.statistics()
            latents = (latents - mean) / std
        return LatentClip(latents[0], float(Fraction(clip.fps)), clip.source)

    def read_tensors(self, clip: IndexedClip) -> Tensor:
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
