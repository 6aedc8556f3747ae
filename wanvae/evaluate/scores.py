"""The figures of one reconstructed clip, collected frame by frame."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wanvae.metrics.images import ms_ssim, psnr, ssim
from wanvae.metrics.lpips import Lpips

# The number of worst frames that are kept of a clip, and their smallest distance.
WORST = 2
APART = 8
# 8-bit levels per unit of [-1, 1].
LEVELS = 127.5


@dataclass
class Mean:
    """The mean of a stream of numbers, without those that are not finite."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Counts a number, if it is finite."""
        if math.isfinite(value):
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        """The mean so far; None without numbers."""
        return self.total / self.count if self.count else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the finite numbers among ``values``; None without any."""
    mean = Mean()
    for value in values:
        if value is not None:
            mean.add(value)
    return mean.value


@dataclass(frozen=True, eq=False)
class WorstFrame:
    """One of the worst frames of a clip.

    Attributes:
        number: number of the frame in the clip.
        psnr: PSNR in dB.
        original, image: the frame and its reconstruction, ``(3, H, W)`` in [-1, 1].
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
        temporal: mean absolute error of the differences between consecutive frames, in 8-bit
            levels.
        worst: frames of the lowest PSNR, the worst first.
    """

    temporal_factor: int
    network: Lpips | None = None
    psnr: list[float] = field(default_factory=list)
    ssim: Mean = field(default_factory=Mean)
    ms_ssim: Mean = field(default_factory=Mean)
    lpips: Mean = field(default_factory=Mean)
    temporal: Mean = field(default_factory=Mean)
    worst: list[WorstFrame] = field(default_factory=list)
    _borders: Mean = field(default_factory=Mean, init=False)
    _inside: Mean = field(default_factory=Mean, init=False)
    _error: Tensor | None = field(default=None, init=False)

    @torch.no_grad()
    def add(self, original: Tensor, image: Tensor) -> None:
        """Counts the next frame and its reconstruction, ``(3, H, W)`` in [-1, 1]."""
        pair = image[None], original[None]
        number, value = len(self.psnr), psnr(*pair)
        self.psnr.append(value)
        self.ssim.add(ssim(*pair))
        self.ms_ssim.add(ms_ssim(*pair))
        if self.network is not None and min(image.shape[1:]) >= self.network.smallest_side:
            self.lpips.add(self.network(*(x[:, :, None] for x in pair)).item())
        self._add_change(number, image - original)
        self._keep_if_bad(number, value, original, image)

    def _add_change(self, number: int, error: Tensor) -> None:
        if self._error is not None:
            # The change of the error is the error of the change.
            change = (error - self._error).abs().mean().item() * LEVELS
            self.temporal.add(change)
            border = (number - 1) % self.temporal_factor == 0
            (self._borders if border else self._inside).add(change)
        self._error = error

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

    @property
    def flicker(self) -> float | None:
        """The temporal error where groups begin, as a multiple of the error inside groups.

        None if the clip or the groups are too short.
        """
        if not self._borders.value or not self._inside.value:
            return None
        return self._borders.value / self._inside.value
