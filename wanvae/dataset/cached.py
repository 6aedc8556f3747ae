"""Latents that another program cached, as clips to train on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import nan
from pathlib import Path

import torch
from torch import Tensor

from wanvae.checkpoints.latent_statistics import PUBLISHED, statistics_like
from wanvae.config import WanVAEConfig
from wanvae.dataset.clip import LatentClip
from wanvae.engine.checkpoint import CheckpointError
from wanvae.errors import UserError
from wanvae.latents.cached import CachedClip, find_cache
from wanvae.latents.formats.base import whose
from wanvae.latents.scale import Scale, choose_scale, find_scale, has_statistics, measure

LOGGER = logging.getLogger("wanvae")
# Clips of a program, and latent frames of each, that are looked at to tell the scale.
MEASURED_CLIPS = 16
MEASURED_FRAMES = 8
# What people write to name a scale.
OPTION = 'scale="{}"'
# Published models by the channels of their latents.
MODELS = {model.config.z_dim: model for model in PUBLISHED}


class CachedLatents:
    """The clips in a folder or file that another program cached. ``read`` normalizes them.

    Args:
        path: the folder or file.
        scale: the scale of the latents; None takes what the program stores, or what the values
            tell, and logs which.
        config: the model that encoded them; None takes the statistics of Wan2.1 for 16 channels,
            and of Wan2.2 for 48.

    Attributes:
        clips: the clips.

    Raises:
        UserError: there are no latents, they have different numbers of channels, nothing is known
            of their model, or nothing tells their scale.
    """

    def __init__(self, path: Path, scale: Scale | None, config: WanVAEConfig | None) -> None:
        cache = find_cache(path, None if config is None else config.z_dim)
        self.clips = list(cache.clips)
        self._path = path
        if any(clip.ambiguous for clip in cache.clips):
            LOGGER.warning("%s: latents are read as videos (z_dim, T, H, W), not as images", path)
        if cache.others:
            count = sum(cache.others.values())
            LOGGER.warning("%s: %d files hold other things and are left out", path, count)
        self._statistics = self._find_statistics(config)
        self._forced = scale is not None
        kinds = groupby(sorted(self.clips, key=by_format), key=by_format)
        self._scales: dict[str, Scale] = {
            kind: scale or self._find_scale(list(clips)) for kind, clips in kinds
        }

    def _find_statistics(
        self, config: WanVAEConfig | None
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Returns mean and deviation of each channel of raw latents."""
        if config is not None:
            return config.latents_mean, config.latents_std
        (channels, *more) = sorted({clip.shape[0] for clip in self.clips})
        if more or channels not in MODELS:
            counts = " and ".join(map(str, [channels, *more]))
            raise UserError(
                f"{self._path} has latents of {counts} channels{whose(channels)}; name the model "
                "that encoded them: config=vae.config"
            )
        model = MODELS[channels]
        LOGGER.warning(
            "%s: its latents are taken as latents of %s, because they have %d channels; config= "
            "names another model",
            self._path,
            model.name,
            channels,
        )
        return model.mean, model.std

    def _find_scale(self, clips: Sequence[CachedClip]) -> Scale:
        """Returns the scale of clips of one format, and logs it."""
        try:
            choice = choose_scale(
                clips[0].scale, clips[0].program, excerpts(clips), *self._statistics, OPTION
            )
            for clip in measured_clips(clips):
                self._check_scale(clip, excerpt(clip), choice.scale)
        except CheckpointError:
            raise
        except UserError as error:
            raise UserError(f"{self._path}: {error}") from error
        if choice.reason:
            LOGGER.warning("%s: its latents are %s", self._path, choice.reason)
        return choice.scale

    def _check_scale(self, clip: CachedClip, latents: Tensor, scale: Scale) -> None:
        """Raises UserError if a clip has another scale than the other clips of its format."""
        if not has_statistics(*self._statistics):
            return
        measured = find_scale(measure([latents]), *self._statistics)
        if measured not in (None, scale):
            raise UserError(
                f"the latents of {clip.name} look {measured}, others of {clip.program} are "
                f"{scale}; put them into a folder of their own, or say "
                f"{OPTION.format(measured)} or {OPTION.format(scale)}"
            )

    def read(self, index: int) -> LatentClip:
        """Returns a clip.

        Raises:
            UserError: the clip cannot be read, or is not finite.
        """
        clip = self.clips[index]
        latents = clip.load().float()
        if not latents.isfinite().all():
            raise UserError(
                f"the latents of {clip.name} in {clip.path} are not finite (NaN or infinity); "
                "delete this file, and encode again in bfloat16 or float32"
            )
        if not self._forced:
            self._check_scale(clip, latents, self._scales[clip.format])
        if self._scales[clip.format] == "raw":
            mean, std = statistics_like(torch.empty(0), *self._statistics)
            latents = (latents - mean) / std
        return LatentClip(latents, nan, clip.name, "", latents[:, :0], latents[:, :0])


def by_format(clip: CachedClip) -> str:
    """Returns the name of the format of a clip."""
    return clip.format


def excerpts(clips: Sequence[CachedClip]) -> Iterator[Tensor]:
    """Returns some latents of some of the clips, spread over all."""
    return map(excerpt, measured_clips(clips))


def measured_clips(clips: Sequence[CachedClip]) -> Sequence[CachedClip]:
    """Returns some of the clips, spread over all."""
    return clips[:: -(-len(clips) // MEASURED_CLIPS)]


def excerpt(clip: CachedClip) -> Tensor:
    """Returns some latents of a clip, spread over its time."""
    step = -(-clip.shape[1] // MEASURED_FRAMES)
    return clip.load()[:, ::step].float()
