"""HDR and other light to SDR: curves of light, and the tone mapping that fits HDR into SDR.

Light is relative: 1 is the white of paper, which HDR shows at 203 cd/m2 (ITU-R BT.2408) and SDR as
its brightest white. SDR is displayed with a gamma of 2.4 (ITU-R BT.1886 without black level).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WHITE = 203.0  # cd/m2, of paper in HDR
# cd/m2. The most that HDR without metadata is mastered for, and the most that PQ can say.
USUAL_PEAK, HIGHEST_PEAK = 1000.0, 10_000.0
_GAMMA = 2.4
# Light that is mapped to itself, as a share of white.
_KNEE = 0.3
_TINY = 1e-6


class Transfer(NamedTuple):
    """How code values from 0 to 1 stand for light.

    Attributes:
        name: what people call it.
        linear: code values to relative light.
    """

    name: str
    linear: Callable[[np.ndarray], np.ndarray]


def _pq(code: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100, table 4."""
    root = code ** (1 / 78.84375)
    light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    return light ** (1 / 0.1593017578125) * HIGHEST_PEAK / WHITE


def _hlg(code: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100, table 5: light of the scene, from 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    bright = np.exp((np.maximum(code, 0.5) - c) / a) + b
    return np.where(code <= 0.5, 4 * code**2, bright) / 12


def _bt1886(code: np.ndarray) -> np.ndarray:
    return code**_GAMMA


PQ, HLG = Transfer("PQ", _pq), Transfer("HLG", _hlg)
SDR = Transfer("SDR", _bt1886)
# By the numbers of ITU-T H.273, which FFmpeg has too. All others are shown as SDR.
TRANSFERS: Mapping[int, Transfer] = {
    8: Transfer("linear", lambda code: code),
    9: Transfer("logarithmic", lambda code: np.where(code > 0, 10 ** (2 * (code - 1)), 0)),
    10: Transfer("logarithmic", lambda code: np.where(code > 0, 10 ** (2.5 * (code - 1)), 0)),
    16: PQ,
    17: Transfer("SMPTE 428", lambda code: code**2.6 * 52.37 / 48),
    18: HLG,
}


def displayed_hlg(scene: Tensor) -> Tensor:
    """Returns what a display of 1000 cd/m2 shows, as ITU-R BT.2100 defines it.

    Args:
        scene: light ``(3, ...)`` of the scene from 0 to 1, linear RGB of BT.2020.
    """
    luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
    return scene * luminance.clamp_(min=_TINY).pow_(0.2).mul_(USUAL_PEAK / WHITE)


def map_tones(light: Tensor, peak: float) -> Tensor:
    """Returns light ``(3, ...)`` whose brightest part is at most white.

    The brightest of red, green and blue decides; all three are multiplied with the same number, so
    their hue stays. It is the curve "mobius" of FFmpeg's filter "tonemap": up to 0.3 of white
    nothing changes, and from there on (x + a) / (x + b) goes smoothly up to white at the peak.

    Args:
        light: linear RGB in which white is 1.
        peak: the brightest light, at least 1. Brighter light exceeds 1.
    """
    brightest = light.amax(dim=0).clamp_(min=_TINY)
    j = _KNEE
    a = -j * j * (peak - 1) / (j * j - 2 * j + peak)
    b = (j * j - 2 * j * peak + peak) / max(peak - 1, _TINY)
    scale = (b * b + 2 * b * j + j * j) / (b - a)
    mapped = scale * (brightest + a) / (brightest + b)
    return light * torch.where(brightest > j, mapped / brightest, 1.0)


def to_sdr(light: Tensor) -> Tensor:
    """Returns code values from 0 to 1 of light; what SDR cannot show is clipped."""
    return light.clamp(0, 1).pow_(1 / _GAMMA)
