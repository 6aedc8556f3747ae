"""Data sets of latents for training diffusion models: our own, and caches of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from wanvae.config import WanVAEConfig
from wanvae.dataset.clip import LatentClip
from wanvae.dataset.own import OwnLatents
from wanvae.dataset.records import IndexedClip
from wanvae.dataset.settings import SETTINGS, DatasetSettings
from wanvae.engine.storage.remote_path import location
from wanvae.errors import UserError
from wanvae.latents.scale import Scale

if TYPE_CHECKING:
    from wanvae.dataset.cached import CachedLatents
    from wanvae.latents.cached import CachedClip


class LatentDataset(Dataset):
    """The clips of a data set of latents. All latents are normalized, whatever is stored.

    Args:
        folder: the folder that ``wanvae encode-dataset`` wrote, on a disk or at an address like
            ``s3://bucket/latents``; or a folder or file that another program cached.
        sample: draw latents from their distribution each time, with PyTorch's global generator.
            Without it, latents are the mean, or the one sample that is stored.
        scale: the scale of a cache of another program; None takes what the program stores, or what
            the values tell, and logs which.
        config: the model that encoded a cache of another program; None takes the statistics of
            Wan2.1 for 16 channels, and of Wan2.2 for 48, and logs which.

    Attributes:
        settings: the settings that the data set was written with; None for a cache.
        clips: facts of each clip, such as the shape of its latents.

    Raises:
        UserError: the folder is not a data set or not complete, or ``sample`` is asked for and no
            variance is stored, or a cache does not tell its scale or model. Reading a clip raises
            it if the latents are not there or not finite.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        sample: bool = False,
        scale: Scale | None = None,
        config: WanVAEConfig | None = None,
    ) -> None:
        self.folder = location(folder)
        self.settings: DatasetSettings | None = None
        self._source: OwnLatents | CachedLatents
        if isinstance(self.folder, Path) and is_cache(self.folder):
            if sample:
                raise UserError(
                    f"{folder} is no data set of wanvae encode-dataset, and other programs store "
                    "no distribution of the latents: leave out sample"
                )
            self._source = open_cache(self.folder, scale, config)
        else:
            self._source = OwnLatents(self.folder, sample)
            self.settings = self._source.settings
            if scale is not None or config is not None:
                raise UserError(f"{folder} says how it was encoded; leave out scale and config")
        self.clips: Sequence[IndexedClip] | Sequence[CachedClip] = self._source.clips

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape ``(z_dim, T, H, W)`` of the latents of each clip, for ``BucketBatches``.

        No latents are read.
        """
        if isinstance(self._source, OwnLatents):
            return self._source.shapes()
        return [clip.shape for clip in self.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> LatentClip:
        return self._source.read(index)


def is_cache(folder: Path) -> bool:
    """Whether a folder or file is there that is no data set of our own."""
    return folder.exists() and not (folder / SETTINGS).exists()


def open_cache(folder: Path, scale: Scale | None, config: WanVAEConfig | None) -> CachedLatents:
    """Opens a cache of another program.

    Raises:
        UserError: as ``LatentDataset``.
    """
    # Imported here, because they know the files of seven programs.
    from wanvae.dataset.cached import CachedLatents
    from wanvae.latents.cached import NoLatentsError

    try:
        return CachedLatents(folder, scale, config)
    except NoLatentsError as error:
        raise UserError(
            f"{folder} is not a data set of latents, because it has no {SETTINGS}, nor latents of "
            "a known program; write one with wanvae encode-dataset"
        ) from error
