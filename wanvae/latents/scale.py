"""Whether latents are raw or normalized, measured from their values.

Raw latents have the mean and deviation of their model in each channel. Normalized latents have mean
0 and deviation 1. A clip is only near to either, so a measure counts only where it is near to one
of both and clearly further from the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wanvae.errors import UserError

Scale = Literal["raw", "normalized"]

# Positions (T x H x W) below which deviations are too uncertain.
FEWEST_POSITIONS = 64
# The largest mean squared difference of latents that fit, in units of the deviation, see ``Fit``.
LARGEST_DIFFERENCE = 2.0
# The largest size of latents of any scale, in units of the deviation. Flat pictures are small.
LARGEST_SIZE = 10.0
# How many times further from the latents the other scale must be, and its pattern.
MARGIN = 1.5
PATTERN_MARGIN = 1.5


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of latents.

    Attributes:
        mean: mean of each channel, float64.
        std: standard deviation of each channel, float64.
        positions: number of values of each channel.
    """

    mean: Tensor
    std: Tensor
    positions: int


@dataclass(frozen=True)
class Fit:
    """How far latents are from a scale.

    Attributes:
        difference: mean over channels of squared differences: of the means, in units of the
            expected deviation, and of the logarithms of the deviations.
        pattern: variance over channels of the logarithms' differences. It does not depend on the
            contrast of a clip, which changes all deviations alike.
    """

    difference: float
    pattern: float


def measure(pieces: Iterable[Tensor]) -> ChannelStatistics:
    """Returns the statistics of latents ``(C, T, H, W)`` that come in pieces, at least one."""
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for piece in pieces:
        values = piece.flatten(1).double()
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.square().sum(1)
    mean = total / count
    return ChannelStatistics(mean, (squares / count - mean.square()).clamp(min=0).sqrt(), count)


def has_statistics(means: Sequence[float], stds: Sequence[float]) -> bool:
    """Whether raw and normalized latents of a model differ."""
    return any(mean != 0 for mean in means) or any(std != 1 for std in stds)


def has_pattern(stds: Sequence[float]) -> bool:
    """Whether the deviations of raw latents differ between channels."""
    return len(set(stds)) > 1


def find_scale(
    found: ChannelStatistics, means: Sequence[float], stds: Sequence[float]
) -> Scale | None:
    """Returns the scale of latents; None if their statistics do not tell it.

    Args:
        means: mean of each channel of raw latents; empty means 0.
        stds: standard deviation of each channel of raw latents; empty means 1.
    """
    fits: dict[Scale, Fit] = {
        "normalized": fit(found, (), ()),
        "raw": fit(found, means, stds),
    }
    best, other = sorted(fits, key=lambda scale: fits[scale].difference)
    near, far = fits[best], fits[other]
    told = (
        found.positions >= FEWEST_POSITIONS
        and near.difference <= LARGEST_DIFFERENCE
        and far.difference >= MARGIN * near.difference
        and (not has_pattern(stds) or far.pattern >= PATTERN_MARGIN * near.pattern)
    )
    return best if told else None


def fit(found: ChannelStatistics, means: Sequence[float], stds: Sequence[float]) -> Fit:
    """Returns how far latents are from a mean and deviation of each channel."""
    mean = torch.tensor(means or (0.0,), dtype=torch.float64)
    std = torch.tensor(stds or (1.0,), dtype=torch.float64)
    offsets = (found.mean - mean) / std
    ratios = (found.std.clamp(min=1e-12) / std).log()
    difference = (offsets.square() + ratios.square()).mean()
    return Fit(float(difference), float(ratios.var(unbiased=False)))


def size(found: ChannelStatistics, means: Sequence[float], stds: Sequence[float]) -> float:
    """Returns how large latents are, in units of the deviation of a scale."""
    mean = torch.tensor(means or (0.0,), dtype=torch.float64)
    std = torch.tensor(stds or (1.0,), dtype=torch.float64)
    return float((((found.mean - mean) / std).square() + (found.std / std).square()).mean().sqrt())


@dataclass(frozen=True)
class ScaleChoice:
    """The scale that latents are taken to have.

    Attributes:
        scale: "raw" or "normalized".
        reason: why, in a few words for people; empty if it makes no difference.
    """

    scale: Scale
    reason: str


def choose_scale(
    known: Scale | None,
    program: str,
    pieces: Iterable[Tensor],
    means: Sequence[float],
    stds: Sequence[float],
    option: str,
) -> ScaleChoice:
    """Returns the scale of latents of another program.

    Args:
        known: the scale that the program stores; None if it stores both.
        program: its name.
        pieces: latents ``(C, T, H, W)`` to measure.
        means, stds: as for ``find_scale``.
        option: what people write to name the scale {}, like "--scale {}".

    Raises:
        UserError: the values are not finite, do not tell the scale, or contradict ``known``.
    """
    if not has_statistics(means, stds):
        return ScaleChoice("raw", "")
    found = measure(pieces)
    if not (found.mean.isfinite().all() and found.std.isfinite().all()):
        raise UserError("they are not finite (NaN or infinity); encode again, in float32")
    measured = find_scale(found, means, stds)
    large = min(size(found, (), ()), size(found, means, stds)) > LARGEST_SIZE
    if known is not None and measured in (known, None) and not large:
        return ScaleChoice(known, f"{known}, as {program} stores them")
    if known is None and measured is not None:
        return ScaleChoice(measured, f"{measured}, as their values tell ({describe(found)})")
    ways = f"say {option.format('raw')} or {option.format('normalized')}"
    expected = (
        "normalized latents have mean 0 and deviation 1, raw latents of this model "
        + describe_range(means, stds)
    )
    if measured is not None:
        raise UserError(
            f"{program} stores {known} latents, but the values look {measured} "
            f"({describe(found)}; {expected}); {ways}"
        )
    few = f", of only {found.positions} positions" if found.positions < FEWEST_POSITIONS else ""
    raise UserError(
        "their values do not tell whether they are raw or normalized "
        f"({describe(found)}{few}; {expected}); {ways}"
    )


def describe(found: ChannelStatistics) -> str:
    """Says the statistics of latents in words."""
    return describe_range(found.mean.tolist(), found.std.tolist())


def describe_range(means: Sequence[float], stds: Sequence[float]) -> str:
    """Says in words between which numbers the means and deviations of channels are."""
    low, high = (f"{extreme(means or (0.0,)):.2g}" for extreme in (min, max))
    least, most = (f"{extreme(stds or (1.0,)):.2g}" for extreme in (min, max))
    return f"means {low} to {high} and deviations {least} to {most}"
