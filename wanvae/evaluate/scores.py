"""The figures of one reconstructed clip, collected frame by frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wanvae.config import RGBA
from wanvae.metrics.images import ms_ssim, psnr, ssim
from wanvae.metrics.lpips import Lpips
from wanvae.metrics.means import Mean, mean_of
from wanvae.metrics.temporal import LEVELS, TemporalError

# The number of worst frames that are kept of a clip, and their smallest distance.
WORST = 2
APART = 8


@dataclass(frozen=True, eq=False)
class WorstFrame:
    """One of the worst frames of a clip.

    Attributes:
        number: number of the frame in the clip.
        psnr: PSNR in dB.
        original, image: the frame and its reconstruction, ``(C, H, W)`` in [-1, 1].
    """

    number: int
    psnr: float
    original: Tensor
    image: Tensor


@dataclass
class Scores:
    """The figures of one model on one clip so far. A few frames are kept, however long the clip.

    Attributes:
        temporal_factor: frames of a group, which the model decodes at once after the first frame.
        network: network of LPIPS; None leaves LPIPS out.
        psnr: PSNR of each frame, in dB.
        ssim, ms_ssim, lpips: means over frames.
        alpha: mean absolute error of alpha, in 8-bit levels, if frames have it.
        temporal: the error of the changes between frames.
        worst: frames of the lowest PSNR, the worst first.
    """

    temporal_factor: int
    network: Lpips | None = None
    psnr: list[float] = field(default_factory=list)
    ssim: Mean = field(default_factory=Mean)
    ms_ssim: Mean = field(default_factory=Mean)
    lpips: Mean = field(default_factory=Mean)
    alpha: Mean = field(default_factory=Mean)
    temporal: TemporalError = field(init=False)
    worst: list[WorstFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.temporal = TemporalError(self.temporal_factor)

    @torch.no_grad()
    def add(self, original: Tensor, image: Tensor) -> None:
        """Counts the next frame and its reconstruction, ``(C, H, W)`` in [-1, 1]; C may be 4."""
        pair = image[None], original[None]
        number, value = len(self.psnr), psnr(*pair)
        self.psnr.append(value)
        self.ssim.add(ssim(*pair))
        self.ms_ssim.add(ms_ssim(*pair))
        if self.network is not None and min(image.shape[1:]) >= self.network.smallest_side:
            self.lpips.add(self.network(*(x[:, :, None] for x in pair)).item())
        if len(original) == RGBA:
            self.alpha.add(LEVELS * (image[-1] - original[-1]).abs().mean().item())
        self.temporal.add(original, image)
        self._keep_if_bad(number, value, original, image)

    def _keep_if_bad(self, number: int, psnr: float, original: Tensor, image: Tensor) -> None:
        near = [kept for kept in self.worst if abs(kept.number - number) < APART]
        if any(kept.psnr <= psnr for kept in near):
            return
        others = [kept for kept in self.worst if kept not in near]
        if len(others) < WORST or psnr < others[-1].psnr:
            # Copies, because an image may be a view of all frames that were decoded with it.
            frame = WorstFrame(number, psnr, original.clone(), image.clone())
            self.worst = sorted([*others, frame], key=lambda kept: kept.psnr)[:WORST]

    @property
    def mean_psnr(self) -> float | None:
        """The mean PSNR of the frames, in dB; None if all frames are exact."""
        return mean_of(self.psnr)
