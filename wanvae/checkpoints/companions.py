"""Tensors that lie beside the tensors of a model: statistics of the latents."""

from __future__ import annotations

import math

from torch import Tensor

from wanvae.checkpoints.latent_statistics import Statistics
from wanvae.engine.stored_tensors import StoredTensors

MEANS = ("mean", "latents_mean")
DEVIATIONS = ("std", "latents_std")
INVERSES = ("inv_std",)
# Mean and 1 / standard deviation, as the official code has them in a list.
PAIR = "scale"
STATISTICS_NAMES = (*MEANS, *DEVIATIONS, *INVERSES, PAIR)
# The largest number of values that is read to see whether it is a statistic.
MOST_VALUES = 10_000
TOLERANCE = 1e-2


def find_statistics(
    tensors: StoredTensors, prefix: str, z_dim: int
) -> tuple[Statistics | None, frozenset[str]]:
    """Returns the statistics of latents that lie beside a model, and the names that hold them.

    They may be beside the tensors of the model, or where a part of its prefix begins.

    Args:
        tensors: all tensors of the file.
        prefix: what is before the names of the tensors of the model.
        z_dim: channels of the latents.
    """
    for place in places(prefix):
        found = {
            name: tensors[f"{place}{name}"]
            for name in STATISTICS_NAMES
            if f"{place}{name}" in tensors
            and tensors.outline[f"{place}{name}"].numel() <= MOST_VALUES
        }
        statistics = read(found, z_dim)
        if statistics is not None:
            return statistics, frozenset(f"{place}{name}" for name in found)
    return None, frozenset()


def places(prefix: str) -> list[str]:
    """Returns a prefix, and all shorter prefixes that it begins with, the longest first."""
    words = prefix.split(".")[:-1]
    return ["".join(f"{word}." for word in words[:count]) for count in range(len(words), -1, -1)]


def read(found: dict[str, Tensor], z_dim: int) -> Statistics | None:
    """Returns the statistics in tensors; None if they are incomplete or contradict each other.

    Args:
        found: tensors by their last names.
        z_dim: channels of the latents.
    """
    means = [values(found[name]) for name in MEANS if name in found]
    stds = [values(found[name]) for name in DEVIATIONS if name in found]
    inverses = [values(found[name]) for name in INVERSES if name in found]
    if PAIR in found:
        pair = values(found[PAIR])
        if len(pair) == 2 * z_dim:
            means.append(pair[:z_dim])
            inverses.append(pair[z_dim:])
        else:
            inverses.append(pair)
    if any(len(v) != z_dim for v in (*means, *stds, *inverses)) or not means:
        return None
    numbers = [n for v in (*means, *stds, *inverses) for n in v]
    if not all(map(math.isfinite, numbers)) or any(n <= 0 for v in (*stds, *inverses) for n in v):
        return None
    stds += [tuple(1 / n for n in v) for v in inverses]
    if not stds or not (agree(means) and agree(stds)):
        return None
    return Statistics(means[0], stds[0], f"latent statistics: of the file ({', '.join(found)})")


def values(tensor: Tensor) -> tuple[float, ...]:
    """Returns the numbers of a tensor in their order."""
    return tuple(tensor.double().reshape(-1).tolist())


def agree(several: list[tuple[float, ...]]) -> bool:
    """Returns whether some lists of numbers are the same, up to rounding."""
    return all(
        abs(a - b) <= TOLERANCE * max(1.0, abs(a))
        for other in several[1:]
        for a, b in zip(several[0], other, strict=True)
    )
