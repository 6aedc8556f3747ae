"""Random degradation of clips, for models that restore them.

Steps and their order are the first of the two rounds of Real-ESRGAN (Wang et al., arXiv
2107.10833): blur, scaling down, noise, JPEG. Then comes H.264, as in RealBasicVSR (Chan et al.,
arXiv 2111.12704), and last the clip is scaled up to its size. Motion blur is a second kind of blur.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, pi, sin

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.engine.config import check
from wanvae.video.recompression import H264, JPEG, recompress

# How often noise is alike in all channels, as in Real-ESRGAN.
GRAY_NOISE = 0.4
SCALINGS = "bilinear", "bicubic"


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """What the encoder sees instead of a clip, which stays the target. Off by default.

    A step of each name is made with that probability, in the order of the options. How strong it is
    is drawn between two limits, for each clip, and is the same for all frames. Noise is new in each
    frame. Alpha stays as it is.

    Attributes:
        blur: how likely a clip gets a Gaussian blur.
        blur_sigma: its standard deviation in pixels.
        motion_blur: how likely a clip is blurred along a line in a random direction.
        motion_blur_length: of the line, in pixels.
        shrink: how likely a clip is scaled down, and after all other steps up again.
        shrink_factor: how many times smaller.
        noise: how likely a clip gets Gaussian noise; in 4 of 10 clips it is gray.
        noise_level: its standard deviation, in levels of 255.
        jpeg: how likely each frame goes through JPEG.
        jpeg_scale: of quality, as FFmpeg's -q:v from 1 (best) to 31, in whole numbers. 2 is about
            the quality 90 of other programs, 5 is 75, 8 is 50 and 12 is 30.
        h264: how likely a clip goes through H.264.
        h264_crf: of quality, from 0 (best) to 51.
    """

    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.2, 3.0)
    motion_blur: float = 0.0
    motion_blur_length: tuple[float, float] = (3.0, 15.0)
    shrink: float = 0.0
    shrink_factor: tuple[float, float] = (1.0, 4.0)
    noise: float = 0.0
    noise_level: tuple[float, float] = (1.0, 30.0)
    jpeg: float = 0.0
    jpeg_scale: tuple[float, float] = (2.0, 12.0)
    h264: float = 0.0
    h264_crf: tuple[float, float] = (18.0, 35.0)

    def __post_init__(self) -> None:
        for name in ("blur", "motion_blur", "shrink", "noise", "jpeg", "h264"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        for name, least, most in (
            ("blur_sigma", 0.1, 100),
            ("motion_blur_length", 1, 1000),
            ("shrink_factor", 1, 100),
            ("noise_level", 0, 255),
            ("jpeg_scale", 1, 31),
            ("h264_crf", 0, 51),
        ):
            limits = getattr(self, name)
            ordered = least <= limits[0] <= limits[-1] <= most
            expected = f"two numbers in order, between {least} and {most}"
            check(len(limits) == 2 and ordered, name, limits, expected)

    @property
    def changes(self) -> bool:
        """Whether any clip can be degraded."""
        steps = self.blur, self.motion_blur, self.shrink, self.noise, self.jpeg, self.h264
        return any(steps)


@dataclass(frozen=True)
class Degradation:
    """What happens to one clip. A strength is None where its step is left out.

    Attributes:
        sigma, length, factor, level, scale, crf: as the limits of ``DegradationConfig`` say.
        angle: of the motion blur, in radians.
        down, up: how the clip is scaled, of ``SCALINGS``.
        gray: whether noise is alike in all channels.
        seed: of the noise.
    """

    sigma: float | None
    length: float | None
    factor: float | None
    level: float | None
    scale: float | None
    crf: float | None
    angle: float
    down: str
    up: str
    gray: bool
    seed: int


def draw_degradation(config: DegradationConfig, random: np.random.Generator) -> Degradation:
    """Draws what happens to one clip."""
    # All is drawn always, so that an option does not change what the others do.
    chances, parts = random.random(6), random.random(6)
    steps = (
        (config.blur, config.blur_sigma),
        (config.motion_blur, config.motion_blur_length),
        (config.shrink, config.shrink_factor),
        (config.noise, config.noise_level),
        (config.jpeg, config.jpeg_scale),
        (config.h264, config.h264_crf),
    )
    strengths = [
        least + (most - least) * part if chance < probability else None
        for (probability, (least, most)), chance, part in zip(steps, chances, parts, strict=True)
    ]
    angle, gray = random.random(2).tolist()
    down, up = (SCALINGS[number] for number in random.integers(len(SCALINGS), size=2))
    seed = int(random.integers(2**63))
    sigma, length, factor, level, scale, crf = strengths
    gray = bool(gray < GRAY_NOISE)
    return Degradation(sigma, length, factor, level, scale, crf, pi * angle, down, up, gray, seed)


def degrade(clip: Tensor, degradation: Degradation) -> Tensor:
    """Returns a clip ``(3 or 4, T, H, W)`` in [-1, 1] degraded, of the same size; alpha stays."""
    video, size = clip[:3], clip.shape[2:]
    if degradation.sigma is not None:
        kernel = gaussian(degradation.sigma)
        video = filtered(filtered(video, kernel), kernel.T)
    if degradation.length is not None:
        video = filtered(video, line(degradation.length, degradation.angle))
    if degradation.factor is not None:
        smaller = [max(1, round(side / degradation.factor)) for side in size]
        video = F.interpolate(video, smaller, mode=degradation.down, antialias=True)
    if degradation.level is not None:
        video = video + noise_like(video, degradation)
    if degradation.scale is not None:
        video = recompress(video, JPEG, degradation.scale)
    if degradation.crf is not None:
        video = recompress(video, H264, degradation.crf)
    if degradation.factor is not None:
        video = F.interpolate(video, size, mode=degradation.up)
    return torch.cat([video.clamp(-1, 1), clip[3:]])


def gaussian(sigma: float) -> np.ndarray:
    """A Gaussian along the width, ``(1, N)``, of sum 1."""
    radius = ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights[None] / weights.sum()


def line(length: float, angle: float) -> np.ndarray:
    """A line of ``length`` pixels through the middle of ``(N, N)``, of sum 1."""
    reach = (length - 1) / 2
    points = np.linspace(-reach, reach, 2 * ceil(length) + 1)
    grid = np.arange(-ceil(reach), ceil(reach) + 1)
    # Each point is shared by the four pixels around it.
    rows, columns = (
        np.maximum(0, 1 - np.abs(grid - points[:, None] * direction))
        for direction in (sin(angle), cos(angle))
    )
    weights = np.einsum("py,px->yx", rows, columns)
    return weights / weights.sum()


def filtered(video: Tensor, kernel: np.ndarray) -> Tensor:
    """Returns ``(C, T, H, W)`` filtered by a kernel of odd sides; edges are repeated."""
    height, width = video.shape[2:]
    rows, columns = (side // 2 for side in kernel.shape)
    padded = F.pad(video, (columns, columns, rows, rows), mode="replicate")
    result = torch.zeros_like(video)
    # Products and sums of tensors round alike on any number of threads; convolutions may not.
    for top, left in np.argwhere(kernel).tolist():
        part = padded[:, :, top : top + height, left : left + width]
        result += part * float(kernel[top, left])
    return result


def noise_like(video: Tensor, degradation: Degradation) -> Tensor:
    """Noise for ``(3, T, H, W)`` in [-1, 1], or for all channels alike ``(1, T, H, W)``."""
    channels = 1 if degradation.gray else len(video)
    random = np.random.default_rng(degradation.seed)
    noise = random.standard_normal((channels, *video.shape[1:]), dtype=np.float32)
    return torch.from_numpy(noise) * ((degradation.level or 0) / 127.5)
