"""Buckets: shapes of one area, the nearest one of a video, and clips of several lengths."""

from fractions import Fraction
from math import sqrt

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wanvae import WanVAEConfig
from wanvae.errors import UserError
from wanvae.folders.clips import cut_length, find_clips, fit, parse_cut
from wanvae.folders.manifest import Entry
from wanvae.folders.shapes import nearest_shape, parse_shapes, shapes_of_area

CONFIG = WanVAEConfig()
side = st.integers(1, 3000)
shapes = st.lists(st.tuples(*2 * [st.integers(1, 100).map(lambda n: 8 * n)]), min_size=1)


def entry(height: int, width: int, frames: int = 9) -> Entry:
    return Entry(path="a.mp4", size=1, mtime=1, width=width, height=height, frames=frames, fps=25.0)


# Shapes of one area


def test_shapes_are_those_that_people_expect() -> None:
    assert shapes_of_area(480, 832, 16, 9) == (
        *((912, 432), (832, 480), (752, 528), (688, 576), (624, 624)),
        *((576, 688), (528, 752), (480, 832), (432, 912)),
    )
    assert shapes_of_area(480, 832, 16, 3) == ((832, 480), (624, 624), (480, 832))
    assert shapes_of_area(832, 480, 32, 3) == ((832, 480), (608, 608), (480, 832))
    assert shapes_of_area(512, 512, 64, 1) == ((512, 512),)
    # The longest shapes are as long as the given one, if that is longer than 2:1.
    assert shapes_of_area(240, 1000, 8, 5)[-1] == (240, 1000)


@given(
    sides=st.tuples(*2 * [st.integers(4, 80)]),
    multiple=st.sampled_from([8, 16, 32, 64]),
    steps=st.integers(0, 6),
)
def test_shapes_of_one_area(sides: tuple[int, int], multiple: int, steps: int) -> None:
    height, width = (16 * side for side in sides)
    area, ratio = height * width, max(sides) / min(sides)
    # The shortest side of the longest shape.
    assume(sqrt(area / max(2.5, ratio)) >= 2 * multiple)
    found = shapes_of_area(height, width, multiple, 2 * steps + 1)
    assert found == tuple(sorted({(short, long) for long, short in found}, reverse=True))
    assert 1 <= len(found) <= 2 * steps + 1
    for shape in found:
        assert shape[0] % multiple == shape[1] % multiple == 0
        assert shape[0] * shape[1] <= area
        # Smaller by less than a multiple of each side.
        assert (shape[0] + multiple) * (shape[1] + multiple) > area
    if height % multiple == width % multiple == 0 and ratio > 1.5 and steps:
        assert (height, width) in found and (width, height) in found


@given(
    sides=st.tuples(*2 * [st.integers(24, 60)]).filter(lambda pair: max(pair) < 2 * min(pair)),
    aspects=st.sampled_from([3, 5, 7, 9]),
)
def test_musubi_tuner_has_a_bucket_for_each_shape(sides: tuple[int, int], aspects: int) -> None:
    """It puts clips of each shape into the bucket of its own whose ratio is nearest."""
    height, width = (16 * side for side in sides)
    area, root = height * width, int(sqrt(height * width))
    buckets = set()
    for short in range(root // 2 // 16 * 16, root + 16, 16):
        long = area // short // 16 * 16
        buckets |= {(short, long), (long, short)}
    found = shapes_of_area(height, width, 16, aspects)
    nearest = {min(buckets, key=lambda b: abs(b[1] / b[0] - w / h)) for h, w in found}
    assert len(nearest) == len(found)
    assert all(shape in buckets for shape in found if shape[0] != shape[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((480, 832, 0, 9), "multiple must be 1 or more, not 0"),
        ((480, 832, 16, 4), "aspects must be an odd number, like 9, not 4"),
        ((480, 832, 16, -1), "aspects must be an odd number"),
        (
            (8, 24, 16, 3),
            "area must be an area whose shapes have sides of 16 or more, not '8x24'",
        ),
    ],
)
def test_impossible_areas(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shapes_of_area(*arguments)


# The nearest shape


def loss(height: int, width: int, shape: tuple[int, int]) -> Fraction:
    """The share of the scaled frame that is cropped."""
    scale = max(Fraction(shape[0], height), Fraction(shape[1], width))
    return 1 - Fraction(shape[0] * shape[1]) / (scale * scale * height * width)


@given(height=side, width=side, shapes=shapes)
def test_no_other_shape_crops_less(height: int, width: int, shapes: list[tuple[int, int]]) -> None:
    found = nearest_shape(height, width, shapes)
    assert found == nearest_shape(height, width, shapes[::-1])
    least = min(loss(height, width, shape) for shape in shapes)
    assert loss(height, width, found) == least
    scaled, size = fit(height, width, found, 8)
    assert size == found and scaled[0] >= size[0] and scaled[1] >= size[1]


def test_shapes_that_crop_the_same() -> None:
    sizes = [(240, 416), (480, 832), (960, 1664)]
    assert nearest_shape(1080, 1920, sizes) == (960, 1664)
    assert nearest_shape(720, 1280, sizes) == (480, 832)
    assert nearest_shape(90, 160, sizes) == (240, 416)  # all of them are larger
    assert nearest_shape(500, 500, [(832, 480), (480, 832)]) == (480, 832)


def test_videos_and_images_get_the_nearest_bucket() -> None:
    cut = parse_cut(None, None, None, CONFIG, buckets=["480x832", "832x480", "624x624"])
    sizes = {(1080, 1920): (480, 832), (1920, 1080): (832, 480), (500, 510): (624, 624)}
    for (height, width), bucket in sizes.items():
        (clip,) = find_clips([entry(height, width)], cut, CONFIG).clips
        assert clip.size == bucket
        assert clip.scaled == fit(height, width, bucket, 8)[0]


@pytest.mark.parametrize("text", ["480", "480x", "0x8", "480x832x1", "480,832", "a", "", "٤x٨"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(UserError, match="buckets must be a height and a width like 480x832, not"):
        parse_shapes("buckets", ["480x832", text])


def test_a_model_encodes_all_buckets() -> None:
    with pytest.raises(UserError, match="height and width must be multiples of 8, not 481x832"):
        parse_cut(None, None, None, CONFIG, buckets=["480x832", "481x832"])


# Several lengths


@given(
    frames=st.integers(0, 500),
    lengths=st.lists(st.integers(0, 30).map(lambda n: 1 + 4 * n), min_size=1, unique=True),
)
def test_at_each_place_the_longest_clip_that_fits(frames: int, lengths: list[int]) -> None:
    lengths = sorted(lengths, reverse=True)
    clips, at = list(cut_length(frames, lengths)), 0
    for first, length in clips:
        assert first == at
        assert length == max(number for number in lengths if first + number <= frames)
        at += length
    assert 0 <= frames - at < min(lengths)


def test_lengths_are_cut() -> None:
    cut = parse_cut(81, None, None, CONFIG, shorter=[17, 49])
    clips = find_clips([entry(480, 832, frames=200)], cut, CONFIG).clips
    assert [(clip.first, clip.frames) for clip in clips] == [
        (0, 81),
        (81, 81),
        (162, 17),
        (179, 17),
    ]
    assert [clip.name for clip in clips] == [f"a.mp4.0000{n}" for n in range(4)]
    found = find_clips([entry(480, 832, frames=16)], cut, CONFIG)
    assert not found.clips and "16 frames" in found.left_out[0]
    with pytest.raises(UserError, match="must have 1 \\+ 4n frames, not 18"):
        parse_cut(81, None, None, CONFIG, shorter=[18])
