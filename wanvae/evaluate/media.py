"""Videos and pictures of a clip and what models make of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from wanvae.commands.pipeline import pad_to_multiple
from wanvae.evaluate.records import WorstRecord
from wanvae.evaluate.scores import LEVELS, WorstFrame
from wanvae.report.elements import number
from wanvae.video import VideoWriter, write_video

# H.264 quality of the videos, in which differences to the original have to survive.
QUALITY = 8
# Pixels across all panels together that browsers still play.
WIDEST = 8192
# This part of the pixels of a map of errors is brighter than its scale can show.
CLIPPED = 0.005
# Entries of the colour map.
COLOURS = 256
# OKLab to the cone responses whose cubes are mixed to linear sRGB (Ottosson 2020).
LAB_TO_CONES = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
CONES_TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


class ComparisonWriter:
    """Writes the original and all models side by side, so that they are of the same moment.

    Panels have even sides, as players need it, and are scaled down where they would be too wide
    together. A context manager as ``VideoWriter``; the file is there once it is left.

    Args:
        path: of the file; .mp4, or .webp for an image.
        panels: how many there are.
        size: height and width of the frames.
        frames: how many are written at most.
    """

    def __init__(
        self, path: Path, panels: int, size: tuple[int, int], fps: Fraction, frames: int
    ) -> None:
        self.path = path
        self._left = frames
        scale = min(1.0, WIDEST / (panels * size[1]))
        height, width = (max(1, int(side * scale)) for side in size)
        self._size = height, width
        self._stack = ExitStack()
        even_height, even_width = height + height % 2, width + width % 2
        self._writer = self._stack.enter_context(
            VideoWriter(path, width=panels * even_width, height=even_height, fps=fps, crf=QUALITY)
        )

    def add(self, panels: Sequence[Tensor]) -> None:
        """Write the next frame of each panel, ``(3, H, W)`` in [-1, 1], unless it has enough."""
        if not self._left:
            return
        self._left -= 1
        images = torch.stack([image.float().cpu() for image in panels])
        if images.shape[2:] != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        even = pad_to_multiple(images[:, :, None], 2)[:, :, 0]
        self._writer.write(torch.cat(list(even), dim=2)[:, None])

    def __enter__(self) -> ComparisonWriter:
        return self

    def __exit__(self, *exception: object) -> bool | None:
        return self._stack.__exit__(*exception)


def write_worst(folder: Path, prefix: str, frames: Sequence[WorstFrame]) -> tuple[WorstRecord, ...]:
    """Write the pictures of frames that came out badly: original, image and map of errors."""
    records = []
    for frame in frames:
        colours, levels = map_of_errors(frame.original.cpu(), frame.image.cpu())
        pictures = {"original": frame.original, "image": frame.image, "difference": colours}
        names = {name: f"{prefix}-{frame.number}-{name}.jpg" for name in pictures}
        for name, picture in pictures.items():
            write_video(folder / names[name], picture[:, None], Fraction(1))
        records.append(
            WorstRecord(
                number=frame.number,
                psnr=number(frame.psnr),
                levels=levels,
                **names,
            )
        )
    return tuple(records)


def map_of_errors(original: Tensor, image: Tensor) -> tuple[Tensor, float]:
    """The absolute error of each pixel, the largest of its channels, as a colour.

    Args:
        original, image: ``(3, H, W)`` in [-1, 1].

    Returns:
        ``(3, H, W)`` in [-1, 1], and the error in 8-bit levels that is brightest.
    """
    errors = (image - original).abs().amax(0) * LEVELS
    rank = max(1, round((1 - CLIPPED) * errors.numel()))
    top = max(1.0, errors.flatten().kthvalue(rank).values.item())
    index = (errors / top * (COLOURS - 1)).round().clamp(0, COLOURS - 1).long()
    return colour_map()[index].permute(2, 0, 1), top


@lru_cache(maxsize=1)
def colour_map() -> Tensor:
    """Colours ``(256, 3)`` in [-1, 1], from black by purple and orange to nearly white.

    Their lightness in OKLab grows evenly, so that equal steps of a value look equal.
    """
    value = torch.linspace(0, 1, COLOURS)
    lightness = 0.98 * value
    # As strong as sRGB has room for on this way.
    chroma = 0.16 * torch.sin(torch.pi * value)
    hue = torch.deg2rad(-75 + 170 * value)
    lab = torch.stack([lightness, chroma * hue.cos(), chroma * hue.sin()], dim=1)
    cones = einsum(torch.tensor(LAB_TO_CONES), lab, "c l, n l -> n c") ** 3
    linear = einsum(torch.tensor(CONES_TO_RGB), cones, "r c, n c -> n r").clamp(0, 1)
    encoded = torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-9) ** (1 / 2.4) - 0.055
    )
    return 2 * encoded - 1
