"""Where scenes end: at cuts, fades and dissolves, and not at flashes or in fast motion."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.scenes import lumas, scene
from wanvae.selection.cuts import AHEAD, BEHIND, CutDetector, Transition, change_between


def transitions(*parts: Tensor) -> list[Transition]:
    detector = CutDetector()
    for luma in lumas(torch.cat(parts, dim=1)):
        detector.add(luma)
    return detector.finish()


def test_cuts_are_found_at_their_frame() -> None:
    found = transitions(scene(1, 30), scene(2, 20), scene(3, 7), scene(4, 40))
    assert found == [Transition(30, 30), Transition(50, 50), Transition(57, 57)]


def test_a_scene_without_cuts_has_none() -> None:
    assert transitions(scene(1, 80)) == []
    assert transitions(scene(1, 1)) == []


@pytest.mark.parametrize("speed", [3, 6, 9])
def test_fast_motion_is_no_cut(speed: int) -> None:
    assert transitions(scene(1, 20), scene(1, 40, speed=speed)) in ([], [Transition(20, 20)])
    assert transitions(scene(5, 60, speed=speed)) == []


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_flash_is_no_cut(length: int) -> None:
    video = scene(1, 60).clone()
    video[:, 30 : 30 + length] = 0.4 * video[:, 30 : 30 + length] + 0.6
    assert transitions(video) == []
    video[:, 30 : 30 + length] = 1
    assert transitions(video) == []


def test_changes_of_brightness_are_no_cuts() -> None:
    gains = 1 + 0.3 * torch.sin(torch.arange(80) / 4)
    assert transitions(scene(1, 80) * gains[:, None, None]) == []


def test_noise_is_no_cut() -> None:
    noise = torch.randn(3, 80, 64, 64, generator=torch.Generator().manual_seed(0))
    assert transitions(scene(1, 80) + 0.05 * noise) == []


def test_a_dark_scene_ends_too() -> None:
    (found,) = transitions(scene(1, 30) * 0.15 - 0.8, scene(2, 30) * 0.15 - 0.8)
    assert found == Transition(30, 30)


@pytest.mark.parametrize("length", [8, 14, 20])
def test_a_dissolve_is_left_out(length: int) -> None:
    before, after = (scene(seed, 40 + length, speed=0) for seed in (1, 2))
    shares = (torch.arange(length) + 1) / (length + 1)
    mixed = before[:, 40:] * (1 - shares[:, None, None]) + after[:, :length] * shares[:, None, None]
    (found,) = transitions(before[:, :40], mixed, after[:, length:])
    assert abs(found.first - 40) <= 2 and abs(found.end - 40 - length) <= 2


@pytest.mark.parametrize("black", [1, 6])
def test_a_fade_is_left_out(black: int) -> None:
    gains = torch.linspace(1, 0.1, 8)[:, None, None]
    out, dark = (scene(1, 8) + 1) * gains - 1, -torch.ones(3, black, 64, 64)
    back = (scene(2, 8) + 1) * gains.flip(0) - 1
    (found,) = transitions(scene(1, 40), out, dark, back, scene(2, 40))
    assert abs(found.first - 41) <= 2 and abs(found.end - 55 - black) <= 2


def test_memory_does_not_grow() -> None:
    detector = CutDetector()
    video = torch.cat([scene(seed, 50) for seed in range(6)], dim=1)
    for number, luma in enumerate(lumas(video)):
        detector.add(luma)
        assert len(detector._pictures) <= BEHIND + AHEAD
        # What is decided is not decided again in another way.
        assert detector.decided <= max(0, number + 1 - AHEAD)
    assert [each.first for each in detector.finish()] == [50, 100, 150, 200, 250]


def test_moved_blocks_are_alike() -> None:
    one, other = lumas(scene(1, 2, speed=6))
    assert change_between(one, other) < 0.3 * np.abs(one - other).mean()
