"""Pictures of errors, and videos of panels side by side."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from skimage.color import rgb2lab

from wanvae.evaluate import media
from wanvae.evaluate.media import ComparisonWriter, colour_map, map_of_errors, write_worst
from wanvae.evaluate.scores import WorstFrame
from wanvae.video import read_video


def test_equal_steps_of_the_colour_map_look_equal() -> None:
    colours = (colour_map() + 1) / 2
    assert colours.min() >= 0 and colours.max() <= 1
    lightness = rgb2lab(colours.double().numpy())[:, 0]
    steps = lightness[1:] - lightness[:-1]
    assert lightness[0] == pytest.approx(0, abs=1) and lightness[-1] > 95
    # Measured in CIELAB, not in OKLab. The two differ near black.
    assert steps.min() > 0
    assert steps[64:].max() < 2 * steps[64:].min()


def test_the_map_is_of_the_largest_error_of_each_pixel() -> None:
    original = torch.zeros(3, 20, 25)
    image = original.clone()
    image[1, 10, 20], image[0, 10, 21], image[2, 12, 4] = 0.4, 0.4, -0.8
    colours, top = map_of_errors(original, image)
    assert top == pytest.approx(0.4 * 127.5)  # more than that is of too few pixels
    palette = colour_map()
    assert torch.equal(colours[:, 0, 0], palette[0])
    assert torch.equal(colours[:, 10, 20], palette[-1])
    assert torch.equal(colours[:, 12, 4], palette[-1])
    # Without an error it is black, not noise.
    colours, top = map_of_errors(original, original + 1e-4)
    assert top == 1 and torch.equal(colours[:, 5, 5], palette[round(1e-4 * 127.5 * 255)])


def levels(*values: float, height: int, width: int) -> list[torch.Tensor]:
    return [torch.full((3, height, width), value) for value in values]


@pytest.mark.parametrize("name", ["a.mp4", "a.webp"])
def test_panels_are_side_by_side_with_even_sides(tmp_path: Path, name: str) -> None:
    frames = 1 if name == "a.webp" else 3
    with ComparisonWriter(tmp_path / name, 3, (17, 31), Fraction(25), frames) as writer:
        for _ in range(5):
            writer.add(levels(-0.5, 0.0, 0.5, height=17, width=31))
    video, _ = read_video(tmp_path / name)
    assert video.shape == (3, frames, 18, 96)
    for number, value in enumerate((-0.5, 0.0, 0.5)):
        panel = video[..., 32 * number : 32 * number + 32]
        assert (panel[..., 4:-4] - value).abs().max() < 0.05


def test_panels_that_are_too_wide_together_are_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "WIDEST", 100)
    with ComparisonWriter(tmp_path / "a.mp4", 2, (40, 80), Fraction(25), 1) as writer:
        writer.add(levels(-0.5, 0.5, height=40, width=80))
    assert read_video(tmp_path / "a.mp4")[0].shape == (3, 1, 26, 100)


def test_the_worst_frames_are_three_pictures_each(tmp_path: Path) -> None:
    original, image = levels(0.0, 0.5, height=20, width=31)
    (record,) = write_worst(tmp_path, "worst-0", [WorstFrame(7, 12.0, original, image)])
    assert (record.number, record.psnr) == (7, 12.0)
    assert record.levels == pytest.approx(0.5 * 127.5)
    pictures = [record.original, record.image, record.difference]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(pictures)
    for name, value in zip(pictures, (0.0, 0.5, None), strict=True):
        picture, _ = read_video(tmp_path / name)
        assert picture.shape == (3, 1, 20, 31)
        if value is not None:
            assert (picture - value).abs().max() < 0.03
