"""Transparent video: what is written comes back with alpha, and nothing loses it silently."""

import os
from fractions import Fraction

import pytest
import torch

from wanvae.video import (
    ReadOptions,
    VideoError,
    VideoReader,
    VideoWriter,
    read_clip,
    read_video,
    write_video,
)
from wanvae.video.reading.background import parse_colour

RATE = Fraction(24)
BACKGROUNDS = [
    ("black", ReadOptions()),
    ("white", ReadOptions(background=parse_colour("White"))),
    ("#10ff80", ReadOptions(background=parse_colour("#10FF80"))),
]
LEVEL = 2 / 255  # one 8 bit level on the scale from -1 to 1


def glass(frames: int, height: int = 33, width: int = 50) -> torch.Tensor:
    """(4, frames, height, width): ramps of colour, and a ramp of alpha that moves."""
    down, right = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    images = [
        torch.stack([right, down, 0 * right + i / frames, (right + i / 3 - 0.5).clamp(-1, 1)])
        for i in range(frames)
    ]
    return torch.stack(images, dim=1)


@pytest.mark.filterwarnings("ignore:.*several images have no frame rate")
@pytest.mark.parametrize(
    ("name", "colour", "alpha"),
    [
        ("a.webm", 1.5, 4.01),
        ("a.mov", 1.0, 1.01),
        ("a.apng", 0.51, 0.51),
        ("frames/%05d.png", 0.51, 0.51),
    ],
)
def test_alpha_comes_back(tmp_path, name, colour, alpha):
    path, video = tmp_path / name, glass(6)
    write_video(path, video, RATE)
    back, info = read_video(path, alpha=True)
    assert back.shape == video.shape
    assert info.has_alpha
    assert info.fps == (25 if "%" in name else RATE)
    assert (back - video)[:3].abs().mean() < colour * LEVEL
    assert (back - video)[3].abs().max() < alpha * LEVEL
    assert back[3].min() == -1
    assert back[3].max() == 1
    for colour, options in BACKGROUNDS:
        with pytest.warns(UserWarning, match="it is transparent in places, and is laid on") as told:
            flat, _ = read_video(path, options=options)
        assert f"laid on {colour};" in str(told[-1].message)
        behind = torch.tensor(options.background or (0, 0, 0)).view(3, 1, 1, 1) / 127.5 - 1
        opacity = (back[3:] + 1) / 2
        assert torch.allclose(flat, opacity * back[:3] + (1 - opacity) * behind, atol=1e-6)
    assert torch.equal(read_clip(path, 3 / info.fps, 2, alpha=True), back[:, 3:5])


@pytest.mark.parametrize(("name", "colour"), [("a.png", 0.51), ("a.webp", None)])
def test_alpha_of_an_image_comes_back(tmp_path, name, colour):
    image = glass(1)
    write_video(tmp_path / name, image, Fraction(1))
    back, info = read_video(tmp_path / name, alpha=True)
    assert info.has_alpha
    assert (back - image)[3].abs().max() <= 0.51 * LEVEL
    # WebP does not keep the colours of transparent pixels.
    seen = (back[3:] > -1) if colour is None else torch.ones_like(back[3:], dtype=torch.bool)
    assert (back - image)[:3][seen.expand(3, -1, -1, -1)].abs().max() <= 0.51 * LEVEL


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.webm", "a.apng"])
def test_a_file_without_alpha_is_opaque(tmp_path, name):
    path = tmp_path / name
    write_video(path, glass(1)[:3], RATE)
    back, info = read_video(path, alpha=True)
    assert not info.has_alpha
    assert torch.equal(back[3], torch.ones_like(back[3]))
    assert torch.equal(back[:3], read_video(path)[0])


def test_after_a_jump_alpha_is_of_the_same_frame(tmp_path):
    video = glass(40, 32, 32)
    write_video(tmp_path / "a.webm", video, RATE)
    whole, _ = read_video(tmp_path / "a.webm", alpha=True)
    with VideoReader(tmp_path / "a.webm", alpha=True) as reader:
        for index in (30, 3, 17):
            reader.seek(index / RATE)
            assert torch.equal(next(reader).image, whole[:, index])


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.jpg"])
def test_what_holds_no_alpha_names_what_does(tmp_path, name):
    able = r"\.mov \(prores\) \.mkv \(ffv1\) \.webm"
    with pytest.raises(VideoError, match=rf"{name[1:]} holds no alpha; use one of {able}"):
        write_video(tmp_path / name, glass(1), RATE)
    assert os.listdir(tmp_path) == []


def test_frames_without_alpha_are_refused_where_alpha_is_written(tmp_path):
    with (
        pytest.raises(VideoError, match=r"\(3, 1, 33, 50\); they must be \(4, T, 33, 50\)"),
        VideoWriter(tmp_path / "a.webm", width=50, height=33, fps=RATE, alpha=True) as writer,
    ):
        writer.write(glass(1)[:3])


@pytest.mark.parametrize("text", ["", "#fff", "#1234567", "ff8000", "rgb(1,2,3)", "#gg0000"])
def test_what_is_no_colour_is_said(text):
    with pytest.raises(VideoError, match="must be a colour like #ff8000, or one of black gray"):
        parse_colour(text)


# Numbered images


def test_a_folder_holds_numbered_images(tmp_path):
    write_video(f"{tmp_path}/new/", glass(3), RATE)
    assert sorted(os.listdir(tmp_path / "new")) == ["00001.png", "00002.png", "00003.png"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("kept")
    write_video(tmp_path / "notes" / "shot-%03d.png", glass(2)[:3], RATE)
    assert sorted(os.listdir(tmp_path / "notes")) == ["a.txt", "shot-001.png", "shot-002.png"]
    assert sorted(os.listdir(tmp_path)) == ["new", "notes"]


def test_numbered_images_are_never_mixed_with_older_ones(tmp_path):
    write_video(tmp_path / "%05d.png", glass(3), RATE)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(VideoError, match="already holds images with such names"):
        write_video(tmp_path / "%05d.png", glass(2), RATE)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_unfinished_numbered_images_leave_nothing(tmp_path):
    def fail() -> None:
        path = tmp_path / "frames" / "%05d.png"
        with VideoWriter(path, width=50, height=33, fps=RATE, alpha=True) as writer:
            writer.write(glass(2))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


def test_numbered_images_need_a_folder_around_theirs(tmp_path):
    with pytest.raises(VideoError, match="does not exist; create it first"):
        write_video(tmp_path / "no" / "frames" / "%05d.png", glass(1), RATE)
