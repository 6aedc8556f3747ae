"""Random colours of crops."""

import colorsys
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from wanvae.engine.command_line.arguments import parse_config
from wanvae.train.colour import ColourConfig, draw_colours, recolour
from wanvae.train.crops import DataConfig, VideoCrops
from wanvae.train.run import TrainConfig
from wanvae.video import write_video

EVERYTHING = ColourConfig(
    probability=0.8, brightness=0.3, contrast=0.3, saturation=1, hue=0.5, permutation=0.5
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of noise in dim colours, so that no change of them leaves the range."""
    folder = tmp_path_factory.mktemp("noise")
    noise = torch.rand(3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    write_video(folder / "noise.mkv", noise * 0.4 - 0.2, Fraction(25), crf=0)
    return folder


def crops(folder: Path, colour: ColourConfig, seed: int = 0) -> VideoCrops:
    config = DataConfig(folder=str(folder), frames=4, size=16, largest_scale=2.0, colour=colour)
    return VideoCrops(config, seed, samples_per_step=1)


def draw(seed: int, **options: float) -> np.ndarray:
    return draw_colours(ColourConfig(**options), np.random.default_rng(seed))


def changed(colour: tuple[float, ...], seed: int = 0, **options: float) -> np.ndarray:
    """What a random change does to one colour in [0, 1]."""
    pixel = torch.tensor(colour, dtype=torch.float64).reshape(-1, 1, 1, 1) * 2 - 1
    return (recolour(pixel, draw(seed, **options)).flatten().numpy() + 1) / 2


def test_without_changes_crops_are_what_they_are_without_colours(folder):
    plain, random = crops(folder, ColourConfig()), crops(folder, EVERYTHING)
    assert not ColourConfig(probability=0, hue=0.5).changes
    for number in range(8):
        # Position, scale and mirror are drawn alike; so one affine map leads from one to the other.
        ones = torch.ones(1, 4, 16, 16)
        inputs = torch.cat([plain[number], ones]).flatten(1).double().T
        outputs = random[number].flatten(1).double().T
        found = torch.linalg.lstsq(inputs, outputs).solution
        torch.testing.assert_close(inputs @ found, outputs, atol=1e-5, rtol=0)


def test_a_sample_follows_from_seed_and_number_with_any_workers(folder):
    expected = torch.stack([crops(folder, EVERYTHING)[number] for number in range(12)])
    loader = DataLoader(crops(folder, EVERYTHING), batch_size=3, sampler=range(12), num_workers=2)
    assert torch.equal(torch.cat(list(loader)), expected)
    # As a run that resumes does, from the middle on.
    samples = crops(folder, EVERYTHING)
    assert all(torch.equal(samples[number], expected[number]) for number in (7, 11, 8))
    assert not torch.equal(crops(folder, EVERYTHING, seed=1)[7], expected[7])


def test_all_frames_of_a_crop_change_alike_and_alpha_stays():
    frame = torch.rand(4, 1, 8, 8) * 2 - 1
    crop = recolour(frame.expand(-1, 5, -1, -1), draw_colours(EVERYTHING, np.random.default_rng(3)))
    assert torch.equal(crop, crop[:, :1].expand_as(crop))
    assert torch.equal(crop[3], frame[3].expand(5, -1, -1)) and not torch.equal(crop[0], frame[0])
    assert crop.abs().max() <= 1


def test_brightness_keeps_black_and_contrast_keeps_medium_gray():
    seeds = range(200)
    brightness = [changed((0.2, 0.4, 0.6), seed, brightness=0.5) for seed in seeds]
    factors = np.array(brightness) / [0.2, 0.4, 0.6]
    assert np.allclose(factors, factors[:, :1]) and 0.5 <= factors.min() < 0.52
    assert 1.48 < factors.max() <= 1.5
    assert np.allclose(changed((0, 0, 0), brightness=0.5), 0)
    contrast = np.array([changed((0.4, 0.5, 0.6), seed, contrast=0.5) for seed in seeds])
    assert np.allclose(contrast[:, 1], 0.5) and np.allclose(contrast.sum(1), 1.5)
    assert 0.05 <= (contrast[:, 2] - 0.5).min() < 0.052
    # A limit above 1 is cut at 0, below only.
    factors = np.array([changed((0.1, 0.1, 0.1), seed, brightness=2)[0] for seed in seeds]) / 0.1
    assert 0 <= factors.min() < 0.1 and 2.9 < factors.max() <= 3


def test_saturation_keeps_gray_and_the_mean_of_channels():
    drawn = np.array([changed((0.4, 0.5, 0.6), seed, saturation=1) for seed in range(200)])
    assert np.allclose(drawn.mean(1), 0.5) and np.allclose(drawn[:, 1], 0.5)
    assert (drawn[:, 2] - 0.5).min() < 0.003 and (drawn[:, 2] - 0.5).max() > 0.197
    assert np.allclose(changed((0.3, 0.3, 0.3), saturation=1, hue=0.5), 0.3)


def test_hues_turn_by_as_much_as_allowed_either_way():
    """Colours near gray, where turns around the gray axis stay in range."""
    red = (0.6, 0.5, 0.5)
    hues = [colorsys.rgb_to_hsv(*changed(red, seed, hue=0.1))[0] for seed in range(300)]
    turns = np.array([(hue + 0.5) % 1 - 0.5 for hue in hues])
    # The hue of HSV is not quite the angle: it deviates by at most 0.004 of a turn.
    assert -0.105 < turns.min() < -0.09 and 0.09 < turns.max() < 0.105
    assert abs(turns.mean()) < 0.02
    # A third of a turn is the next order of the channels, exactly.
    third = np.linalg.matrix_power(draw(0, hue=0.5)[:, :3], 3)
    assert np.allclose(np.linalg.det(third), 1) and np.allclose(third.sum(1), 1)


def test_channels_get_every_order_as_often_as_asked_for():
    drawn = [tuple(changed((0.2, 0.4, 0.6), seed, permutation=0.6)) for seed in range(1200)]
    rounded = [tuple(np.round(colour, 6)) for colour in drawn]
    counts = {order: rounded.count(order) for order in itertools.permutations((0.2, 0.4, 0.6))}
    assert sum(counts.values()) == 1200
    # Each of six gets a tenth, the first the rest besides; three deviations are 31 and 42.
    first, *others = counts.values()
    assert abs(first - 600) < 52 and all(abs(count - 120) < 32 for count in others)


def test_as_many_crops_change_as_asked_for():
    same = [
        np.array_equal(draw(seed, probability=0.3, hue=0.5), np.eye(4)[:3]) for seed in range(1000)
    ]
    assert abs(np.mean(same) - 0.7) < 0.05


def test_an_option_does_not_change_what_the_others_do():
    one, other = draw(5, hue=0.3, permutation=0.5), draw(5, hue=0.3, permutation=0.5, saturation=0)
    assert np.array_equal(one, other)
    bright = draw(5, brightness=0.4)[0, 0]
    assert np.isclose(draw(5, brightness=0.4, saturation=1, hue=0.5)[:, :3].sum(1), bright).all()


def test_colours_come_from_the_command_line_and_impossible_ones_are_refused():
    arguments = ["--data.colour.saturation=1.5", "--data.colour.permutation=0.5"]
    config = parse_config(TrainConfig, "test", "", arguments)
    assert config.data.colour == ColourConfig(saturation=1.5, permutation=0.5)
    with pytest.raises(ValueError, match=r"hue must be between 0 and 0\.5, not 0\.6"):
        ColourConfig(hue=0.6)
    with pytest.raises(ValueError, match=r"probability 0\.8 of colour changes nothing"):
        ColourConfig(probability=0.8, permutation=0.5)
    with pytest.raises(ValueError, match="permutation must be between 0 and 1, not 2"):
        ColourConfig(permutation=2)
    with pytest.raises(ValueError, match="brightness must be at least 0, not -1"):
        ColourConfig(brightness=-1)
