"""Degraded clips as inputs, with the clips as they are as targets."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import numpy as np
from torch.utils.data import Dataset

from wanvae.train.crops import VideoCrops
from wanvae.train.degradation import DegradationConfig, degrade, draw_degradation
from wanvae.train.held_out import HeldOutClip
from wanvae.train.pair import Pair


class DegradedCrops(Dataset):
    """Crops and what the encoder sees of them. Sample ``number`` follows from (seed, number)."""

    def __init__(self, crops: VideoCrops, config: DegradationConfig, seed: int) -> None:
        self.crops = crops
        self.config = config
        self.seed = seed

    def __getitem__(self, number: int) -> Pair:
        target = self.crops[number]
        random = np.random.default_rng([self.seed, 4, number])
        return Pair(degrade(target, draw_degradation(self.config, random)), target)


def degrade_clip(clip: HeldOutClip, config: DegradationConfig) -> HeldOutClip:
    """Returns a held-out clip whose input is degraded, in the way that follows from its name."""
    name = clip.name.encode(errors="surrogateescape")
    random = np.random.default_rng([*sha256(name).digest()])
    return replace(clip, input=degrade(clip.video, draw_degradation(config, random)))
