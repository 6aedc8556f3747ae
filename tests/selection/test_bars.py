"""Black bars: where they end, and what is none."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.scenes import texture
from wanvae.selection.bars import BarDetector, Box

Frame = NDArray[np.uint8]


def picture(seed: int, height: int = 90, width: int = 160) -> NDArray[np.float64]:
    return ((texture(seed, height, width)[0].numpy() + 1) * 110 + 30).astype(float)


def framed(
    inner: NDArray, top: int, left: int, bottom: int, right: int, level: int = 16
) -> NDArray:
    return np.pad(inner, ((top, bottom), (left, right)), constant_values=level)


def found(*frames: NDArray) -> Box | None:
    detector = BarDetector()
    for frame in frames:
        detector.add(frame.clip(0, 255).astype(np.uint8))
    return detector.finish()


def test_a_picture_without_bars_stays() -> None:
    assert found(picture(1), picture(2)) is None
    assert found() is None


@pytest.mark.parametrize("level", [0, 16])
@pytest.mark.parametrize("bars", [(12, 0, 12, 0), (0, 20, 0, 20), (13, 7, 10, 30), (4, 4, 4, 4)])
def test_the_picture_inside_bars_is_found(bars: tuple[int, ...], level: int) -> None:
    box = found(*(framed(picture(seed), *bars, level=level) for seed in (1, 2)))
    assert box is not None
    top, left, *_ = bars
    insets = [
        box.top - top,
        box.left - left,
        top + 90 - box.top - box.height,
        left + 160 - box.left - box.width,
    ]
    assert all(0 <= inset <= 3 for inset in insets)
    assert {box.top % 2, box.left % 2, box.height % 2, box.width % 2} == {0}


def test_noise_does_not_hide_bars() -> None:
    random = np.random.default_rng(0)
    frames = (framed(picture(seed), 12, 0, 12, 0) for seed in (1, 2, 3))
    box = found(*(frame + random.normal(0, 5, frame.shape) for frame in frames))
    assert box is not None and (box.left, box.width) == (0, 160) and 12 <= box.top <= 15


def test_a_dark_picture_is_no_bar() -> None:
    night = picture(1) * np.linspace(0, 1, 90)[:, None] ** 2
    assert found(night) is None
    assert found(picture(1) * 0.1) is None


def test_a_dark_frame_does_not_hide_the_picture() -> None:
    dark = picture(1).copy()
    dark[:40] = 16
    assert found(dark, picture(2)) is None


def test_a_bar_stays_up_to_the_text_in_it() -> None:
    with_text = framed(picture(1), 12, 0, 12, 0)
    with_text[104:110, 60:100] = 230
    box = found(with_text, framed(picture(2), 12, 0, 12, 0))
    assert box is not None and box.top >= 12 and box.top + box.height >= 108


def test_bars_that_leave_almost_nothing_stay() -> None:
    assert found(framed(picture(1, 20, 160), 60, 0, 60, 0)) is None


def test_a_box_is_scaled_to_frames_of_another_size() -> None:
    box = Box(12, 0, 66, 160)
    assert box.scaled((90, 160), (180, 320)) == Box(24, 0, 132, 320)
    assert box.scaled((90, 160), (45, 80)) == Box(6, 0, 33, 80)
    assert box.scaled((90, 160), (1, 2)) == Box(0, 0, 1, 2)
