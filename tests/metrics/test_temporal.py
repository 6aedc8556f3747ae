"""The error of the changes between frames follows its definition."""

import numpy as np
import pytest
import torch
from torch import Tensor

from wanvae.metrics.temporal import TemporalError

GROUP = 4


def images(seed: int) -> tuple[Tensor, Tensor]:
    """A picture and one that is like it."""
    generator = torch.Generator().manual_seed(seed)
    picture, noise = torch.rand(2, 3, 24, 32, generator=generator) * 2 - 1
    return picture, (picture * 0.9 + 0.2 * noise).clamp(-1, 1)


def errors_of(*pairs: tuple[Tensor, Tensor]) -> TemporalError:
    errors = TemporalError(GROUP)
    for original, image in pairs:
        errors.add(original, image)
    return errors


def test_the_temporal_error_is_that_of_differences() -> None:
    originals = [images(seed)[0] * (1 - 0.1 * seed) for seed in range(6)]
    # An error that stays is none of what changes.
    assert errors_of(*((x, x * 0.5 + x * 0.5 - 0.1) for x in originals)).value < 1e-4
    outputs = [images(seed)[1] for seed in range(6)]
    errors = errors_of(*zip(originals, outputs, strict=True))
    changes = torch.stack(outputs).diff(dim=0) - torch.stack(originals).diff(dim=0)
    assert errors.value == pytest.approx(changes.abs().mean().item() * 127.5, rel=1e-4)


def test_flicker_is_seen_where_groups_begin() -> None:
    original = torch.zeros(3, 16, 16)
    # Each group of frames is brighter or darker as a whole, and frames in it differ less.
    levels = [0.0] + [0.1 * (group % 2) + 0.01 * frame for group in range(4) for frame in range(4)]
    errors = errors_of(*((original, original + level) for level in levels))
    changes = np.abs(np.diff(levels))
    borders = np.arange(len(changes)) % GROUP == 0
    assert errors.flicker == pytest.approx(changes[borders].mean() / changes[~borders].mean())
    assert errors.flicker > 5
    even = errors_of(*((original, original + 0.01 * number) for number in range(9)))
    assert even.flicker == pytest.approx(1, rel=1e-3)
    # Too short, or without a change, there is nothing to tell.
    assert errors_of((original, original)).flicker is None
    assert errors_of(*((original, original) for _ in range(9))).flicker is None
