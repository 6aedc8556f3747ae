"""Clips and stills that are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.synthetic_clips import BACKGROUNDS, draw_scene, main
from wanvae.video import probe, read_clip

SIDE = 33


def scene(number: int, photographs: list[Path] | None = None) -> np.ndarray:
    random = np.random.default_rng(number)
    frames = draw_scene(random, frames=5, side=SIDE, photographs=photographs or [])
    return np.stack([*frames])


def test_the_same_seed_draws_the_same_frames() -> None:
    assert scene(0).shape == (5, SIDE, SIDE, 3)
    assert np.array_equal(scene(0), scene(0))
    assert not np.array_equal(scene(0), scene(1))


def test_scenes_have_saturated_colours_and_motion() -> None:
    scenes = np.stack([scene(number) for number in range(40)]).astype(int)
    saturation = scenes.max(-1) - scenes.min(-1)
    assert (saturation > 200).mean() > 0.15
    # Red, green, blue and their mixtures: every corner of the cube of colours.
    corners = {tuple(corner) for corner in (scenes[saturation > 200] > 127).tolist()}
    assert len(corners) == 6  # all but black and white
    moves = np.abs(np.diff(scenes, axis=1)).max((1, 2, 3, 4)) > 0
    assert 0.5 < moves.mean() < 1


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_fill_their_square(background) -> None:
    pictures = [background(np.random.default_rng(seed), 64) for seed in range(5)]
    assert {picture.size for picture in pictures} == {(64, 64)}
    assert len({picture.tobytes() for picture in pictures}) >= 4


def test_clips_move_over_photographs(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(90, 100, (50, 80, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "photograph.png")
    shown = [scene(number, [tmp_path / "photograph.png"]) for number in range(20)]
    # Its colours fill the middle of most first frames.
    inside = [np.median(frames[0]) for frames in shown]
    assert sum(90 <= value <= 100 for value in inside) >= 8


def test_the_command_writes_videos_and_images(tmp_path: Path) -> None:
    command = [str(tmp_path / "out"), "--clips", "2", "--stills", "1", "--frames", "5"]
    main([*command, "--side", str(SIDE)])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["clip-00000.mp4", "clip-00001.mp4", "still-00000.png"]
    info = probe(tmp_path / "out" / "clip-00000.mp4")
    assert (info.width, info.height, info.frames) == (SIDE, SIDE, 5)
    assert read_clip(tmp_path / "out" / "clip-00001.mp4", 0.0, 5).shape == (3, 5, SIDE, SIDE)
