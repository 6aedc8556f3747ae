"""Videos and pictures of a clip and its reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from wanvae.evaluate.records import WorstRecord
from wanvae.evaluate.scores import WorstFrame
from wanvae.frames import pad_to_multiple
from wanvae.metrics.lpips import show_over_gray
from wanvae.metrics.temporal import LEVELS
from wanvae.report.elements import number
from wanvae.video import VideoWriter, write_video

# H.264 quality of the videos, in which differences from the original must stay visible.
QUALITY = 8
# Width of all panels together, in pixels, that browsers still play.
WIDEST = 8192
# The part of the pixels of an error map that is brighter than its scale can show.
CLIPPED = 0.005
# Number of colours in the colour map.
COLOURS = 256
# From OKLab to cone responses, whose cubes mix to linear sRGB (Ottosson 2020).
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
    """Writes the original and all reconstructions side by side, so that they stay in step.

    Panels with alpha are shown over gray.

    Panels have even sides, because players need this, and are scaled down if they are too wide
    together. A context manager like ``VideoWriter``: the file is there after the block.

    Args:
        path: the file; .mp4, or .webp for an image.
        panels: number of panels.
        size: height and width of the frames.
        fps: frames per second.
        frames: largest number of frames to write.
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
        """Writes the next frame of each panel, ``(C, H, W)`` in [-1, 1], up to the limit."""
        if not self._left:
            return
        self._left -= 1
        images = torch.stack([over_gray(image).float().cpu() for image in panels])
        if images.shape[2:] != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        even = pad_to_multiple(images[:, :, None], 2)[:, :, 0]
        self._writer.write(torch.cat(list(even), dim=2)[:, None])

    def __enter__(self) -> ComparisonWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._stack.__exit__(kind, error, traceback)


def write_worst(folder: Path, prefix: str, frames: Sequence[WorstFrame]) -> tuple[WorstRecord, ...]:
    """Writes pictures of the worst frames: original, reconstruction and error map."""
    records = []
    for frame in frames:
        colours, levels = map_of_errors(frame.original.cpu(), frame.image.cpu())
        shown, image = over_gray(frame.original), over_gray(frame.image)
        pictures = {"original": shown, "image": image, "difference": colours}
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


def over_gray(image: Tensor) -> Tensor:
    """Returns the colours ``(3, H, W)`` of an image, over gray if it has alpha."""
    return show_over_gray(image[None, :, None])[0, :, 0]


def map_of_errors(original: Tensor, image: Tensor) -> tuple[Tensor, float]:
    """Colours each pixel by its absolute error, the largest over the channels.

    Args:
        original, image: ``(C, H, W)`` in [-1, 1].

    Returns:
        ``(3, H, W)`` in [-1, 1], and the error in 8-bit levels that the brightest colour means.
    """
    errors = (image - original).abs().amax(0) * LEVELS
    rank = max(1, round((1 - CLIPPED) * errors.numel()))
    top = max(1.0, errors.flatten().kthvalue(rank).values.item())
    index = (errors / top * (COLOURS - 1)).round().clamp(0, COLOURS - 1).long()
    return colour_map()[index].permute(2, 0, 1), top


@lru_cache(maxsize=1)
def colour_map() -> Tensor:
    """Returns colours ``(256, 3)`` in [-1, 1]: black, purple, orange, nearly white.

    Lightness in OKLab grows evenly, so that equal steps of a value look equal.
    """
    value = torch.linspace(0, 1, COLOURS)
    lightness = 0.98 * value
    # As strong as sRGB allows along this path.
    chroma = 0.16 * torch.sin(torch.pi * value)
    hue = torch.deg2rad(-75 + 170 * value)
    lab = torch.stack([lightness, chroma * hue.cos(), chroma * hue.sin()], dim=1)
    cones = einsum(torch.tensor(LAB_TO_CONES), lab, "c l, n l -> n c") ** 3
    linear = einsum(torch.tensor(CONES_TO_RGB), cones, "r c, n c -> n r").clamp(0, 1)
    encoded = torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-9) ** (1 / 2.4) - 0.055
    )
    return 2 * encoded - 1
