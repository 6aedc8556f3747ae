"""Latents that ``wanvae encode-dataset`` wrote, as clips to train on."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import torch
from torch import Tensor

from wanvae.dataset.clip import LatentClip
from wanvae.dataset.records import INDEX, IndexedClip
from wanvae.dataset.settings import read_settings
from wanvae.engine.json_lines import JsonLines
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
        self.clips = self._open_index()
        self._sample = sample
        store = self.settings.options.store
        if sample and store != "moments":
            raise UserError(
                f"{folder} stores a {store} of the latents, not their distribution: leave out "
                "sample, or encode the videos again with --store moments"
            )

    def _open_index(self) -> JsonLines[IndexedClip]:
        advice = "delete it, and run wanvae encode-dataset again"
        try:
            return JsonLines(self.folder / INDEX, IndexedClip, advice)
        except FileNotFoundError:
            raise UserError(
                f"{self.folder} is not complete, because it has no {INDEX}; "
                "run wanvae encode-dataset again to go on, or wanvae merge-index to join parts"
            ) from None

    def shapes(self) -> list[tuple[int, ...]]:
        """Returns the shape of the latents of each clip, without parsing all of the index.

        Raises:
            UserError: the index is damaged.
        """
        known: dict[bytes, tuple[int, ...]] = {}
        found = []
        for number, line in enumerate(self.clips.lines()):
            # Text in a line has no unescaped quotes, and fields with objects come after the shape.
            shape = line.partition(b'"shape": [')[2].partition(b"]")[0]
            if shape not in known or not shape:
                known[shape] = self.clips.parse(line, number).shape
            found.append(known[shape])
        return found

    def read(self, index: int) -> LatentClip:
        """Returns a clip.

        Raises:
            UserError: the clip cannot be read, or is not finite.
        """
        clip = self.clips[index]
        tensors, *others = self.read_stored(clip)
        latents = self._normalized(tensors, clip)
        conditions = {
            condition: self._normalized(stored, clip)
            for condition, stored in zip(self.settings.options.conditions, others, strict=True)
        }
        return LatentClip(
            latents,
            float(Fraction(clip.fps)),
            clip.source,
            clip.caption or "",
            conditions.get("first_frame", latents[:, :0]),
            conditions.get("control", latents[:, :0]),
        )

    def _normalized(self, tensors: Tensor, clip: IndexedClip) -> Tensor:
        """Returns latents ``(z_dim, T, H, W)`` of stored tensors, as ``read_stored`` gives them."""
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
        return latents[0]

    def read_stored(self, clip: IndexedClip) -> list[Tensor]:
        """Returns what is stored of a clip, ``(1 or 2, z_dim, T, H, W)`` each, as float32.

        First come the tensors of the clip, then the tensors of its conditions. They follow each
        other in the file.
        """
        options = self.settings.options
        channels, length, height, width = clip.shape
        tensors = len(options.tensors)
        shapes = [(tensors, channels, each, height, width) for each in options.lengths(length)]
        content = bytearray(sum(map(prod, shapes)) * options.torch_dtype.itemsize)
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
        values = torch.frombuffer(content, dtype=options.torch_dtype).float()
        parts = values.split([prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
