"""Random colours of training crops.

All changes of a crop together are one affine map of colours, the same for all pixels and frames, as
in the augmentation of StyleGAN2-ADA (Karras et al., arXiv 2006.06676): gray is the mean of red,
green and blue, and hues turn around the gray axis. The ranges are given as in the colour jitter of
torchvision. Changed orders of the channels are from CutBlur (Yoo et al., arXiv 2004.00448).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin, sqrt

import numpy as np
import torch
from torch import Tensor

from wanvae.engine.config import check
from wanvae.errors import UserError

BLACK = -1.0


@dataclass(frozen=True, kw_only=True)
class ColourConfig:
    """Random colours of training crops, the same for all frames of a crop. Off by default.

    The changes are made in the order of the options, and what leaves the range of colours is
    clipped. Alpha stays as it is.

    Attributes:
        probability: how likely a crop gets the changes of brightness, contrast, saturation and hue.
        brightness: colours are multiplied by a factor between 1 minus this and 1 plus this. Black
            stays as it is. The smallest factor is 0, here and below.
        contrast: differences to medium gray are multiplied by such a factor.
        saturation: differences to the gray of the pixel are multiplied by such a factor.
        hue: hues are turned by up to this part of a whole turn, at most 0.5, either way.
        permutation: how likely the channels of a crop get a random order, out of all six.
    """

    probability: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    permutation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("probability", "permutation"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            check(0 <= value < float("inf"), name, value, "at least 0")
        check(0 <= self.hue <= 0.5, "hue", self.hue, "between 0 and 0.5")
        if self.probability not in (0, 1) and not self.jitters:
            raise UserError(
                f"probability {self.probability} of colour changes nothing: "
                "brightness, contrast, saturation and hue are all 0"
            )

    @property
    def jitters(self) -> bool:
        """Whether brightness, contrast, saturation or hue can change."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def changes(self) -> bool:
        """Whether any crop can get other colours."""
        return bool((self.probability and self.jitters) or self.permutation)


def draw_colours(config: ColourConfig, random: np.random.Generator) -> np.ndarray:
    """Draws an affine map of colours in [-1, 1].

    Returns:
        ``(3, 4)`` in float64. For each new channel, the factors of the three channels and what is
        added.
    """
    # All is drawn always, so that an option does not change what the others do.
    jitter, permute, *ranges = random.random(6)
    order = random.permutation(3)
    limits = config.brightness, config.contrast, config.saturation
    brightness, contrast, saturation = (
        max(0.0, 1 - limit) + (limit + min(1.0, limit)) * part
        for limit, part in zip(limits, ranges[:3], strict=True)
    )
    colours = np.eye(4)[:3]
    if jitter < config.probability:
        # Brightness keeps black, contrast keeps 0.
        colours[:, 3] = BLACK * (1 - brightness) * contrast
        turn = 2 * pi * config.hue * (2 * ranges[3] - 1)
        colours[:, :3] = turn_of_hues(turn) @ scale_of_saturation(saturation)
        colours[:, :3] *= brightness * contrast
    if permute < config.permutation:
        colours = colours[order]
    return colours


def scale_of_saturation(factor: float) -> np.ndarray:
    """A matrix ``(3, 3)`` that multiplies the differences of a colour to its gray."""
    gray = np.full((3, 3), 1 / 3)
    return factor * np.eye(3) + (1 - factor) * gray


def turn_of_hues(angle: float) -> np.ndarray:
    """A matrix ``(3, 3)`` that turns colours around the gray axis, by an angle in radians."""
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / sqrt(3)
    return cos(angle) * np.eye(3) + (1 - cos(angle)) / 3 + sin(angle) * across


def recolour(crop: Tensor, colours: np.ndarray) -> Tensor:
    """Returns a crop ``(3 or 4, T, H, W)`` in [-1, 1] with other colours; alpha stays.

    Args:
        colours: as ``draw_colours`` returns.
    """
    red, green, blue, *alpha = crop
    # Products and sums of tensors round alike on any number of threads; matrix products may not.
    channels = [
        (red * of_red + green * of_green + blue * of_blue + added).clamp(-1, 1)
        for of_red, of_green, of_blue, added in colours.tolist()
    ]
    return torch.stack([*channels, *alpha])
