"""Pixels become square, and pictures look as a player shows them."""

import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from wanvae.folders.manifest import load_entries
from wanvae.video import probe, read_clip, read_video
from wanvae.video.reading.aspect import square_size

X264 = {"x264-params": "log-level=none:qp=4"}


def write(
    path: Path, width: int, height: int, ratio: Fraction | None, rotation: int = 0
) -> np.ndarray:
    """Three frames of a disc that is round in square pixels; returns what is stored."""
    shown = float(ratio or 1)
    down, right = np.mgrid[:height, :width].astype(np.float32) + 0.5
    distance = np.hypot((right - width / 2) * shown, down - height / 2)
    pixels = np.where(distance < min(width * shown, height) / 3, 220, 30).astype(np.uint8)
    pixels = np.repeat(pixels[..., None], 3, axis=2)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10, options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        if ratio is not None:
            stream.codec_context.sample_aspect_ratio = ratio
        if rotation:
            stream.set_display_rotation(rotation)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            output.mux(stream.encode(frame.reformat(format="yuv444p")))
        output.mux(stream.encode(None))
    return pixels


def read(path: Path) -> tuple[torch.Tensor, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        video, info = read_video(path)
        assert info == probe(path)
    assert video.shape == (3, 3, info.height, info.width)
    return video, [str(each.message).removeprefix(f"{path}: ") for each in caught]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts", "avi"])
@pytest.mark.parametrize(
    ("size", "ratio", "square"),
    [((144, 116), Fraction(64, 45), (144, 82)), ((96, 128), Fraction(1, 2), (48, 128))],
)
def test_a_disc_is_round(
    tmp_path: Path,
    suffix: str,
    size: tuple[int, int],
    ratio: Fraction,
    square: tuple[int, int],
) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, *size, ratio)
    video, told = read(path)
    assert video.shape[:1:-1] == square
    disc = video.mean(dim=(0, 1)) > 0
    wide, high = (int(disc.any(dim=side).sum()) for side in (0, 1))
    assert abs(wide - high) <= 2 < wide / 8
    text = f"{ratio.numerator}:{ratio.denominator}"
    assert told == [
        f"its pixels are not square ({text}); its pictures of {size[0]}x{size[1]} are scaled to "
        f"{square[0]}x{square[1]}, as players show them"
    ]
    with pytest.warns(UserWarning, match="not square"):
        assert torch.equal(read_clip(path, 0.1, 2), video[:, 1:])


@pytest.mark.parametrize("ratio", [None, Fraction(1), Fraction(1280, 1281)])
def test_square_pixels_stay_as_they_are(tmp_path: Path, ratio: Fraction | None) -> None:
    pixels = write(tmp_path / "a.mp4", 64, 48, ratio)
    video, told = read(tmp_path / "a.mp4")
    assert told == []
    assert video.shape == (3, 3, 48, 64)
    levels = (video[:, 0].permute(1, 2, 0) + 1) * 127.5
    assert (levels - torch.from_numpy(pixels)).abs().max() < 6


def test_pixels_are_those_of_the_stored_picture_of_a_turned_video(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 64, 48, Fraction(2), rotation=90)
    video, _ = read(tmp_path / "a.mp4")
    assert video.shape == (3, 3, 64, 24)


def test_pictures_are_scaled_as_ffmpeg_scales_them(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 72, 58, Fraction(64, 45))
    video, _ = read(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        frame.colorspace = 5  # BT.601, as is the custom for small pictures without tags
        picture = frame.reformat(width=72, height=40, format="rgb24", interpolation="BICUBIC")
        expected = picture.to_ndarray()
    levels = (video[:, 0].permute(1, 2, 0) + 1) * 127.5
    assert (levels - torch.from_numpy(expected.astype(np.float32))).abs().max() <= 2


def test_a_change_of_the_shape_of_pixels_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.ts", 144, 116, Fraction(16, 15))
    write(tmp_path / "b.ts", 144, 116, Fraction(64, 45))
    path = tmp_path / "c.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_video(path)[0].shape == (3, 6, 108, 144)
    told = [str(each.message).removeprefix(f"{path}: ") for each in caught]
    assert [each for each in told if "shape" in each] == [
        "the shape of its pixels changes from 16:15 to 64:45; all frames are scaled as the first"
    ]


def test_data_sets_get_square_pixels(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 72, 58, Fraction(64, 45))
    (entry,) = load_entries(tmp_path)
    assert (entry.width, entry.height, entry.error) == (72, 40, None)


def test_images_stay_as_viewers_show_them(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", dpi=(300, 150))
    Image.new("RGB", (30, 20)).save(tmp_path / "b.jpg", dpi=(150, 300))
    assert (probe(tmp_path / "a.jpg").width, probe(tmp_path / "a.jpg").height) == (30, 20)
    with pytest.warns(UserWarning) as told:
        assert read_video(tmp_path, fps=Fraction(5))[0].shape == (3, 2, 20, 30)
    assert len(told) == 1  # which images are taken


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((720, 576), "16/15", (720, 540)),  # PAL
        ((720, 576), "64/45", (720, 404)),
        ((720, 480), "8/9", (720, 540)),  # NTSC
        ((1440, 1080), "4/3", (1440, 810)),  # HDV
        ((480, 480), "2", (480, 240)),  # the longer side on the screen stays
        ((480, 480), "1/2", (240, 480)),
        ((31, 21), "3/2", (31, 14)),
        ((31, 21), "1", (31, 21)),
        ((720, 576), "100", (720, 576)),  # cannot be meant
        ((720, 576), "0", (720, 576)),
        ((2, 2), "4", (2, 2)),
    ],
)
def test_sizes(size: tuple[int, int], ratio: str, expected: tuple[int, int]) -> None:
    assert square_size(*size, Fraction(ratio)) == expected
