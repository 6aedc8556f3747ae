"""Images of a folder, or of a glob, are one video in the order of the numbers in their names."""

import os
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wanvae.engine.files import FileError, refuse_overwriting
from wanvae.video import VideoError, VideoReader, probe, read_clip, read_video
from wanvae.video.reading.sequence import natural_order

FPS = Fraction(5)


def save(path: Path, level: int, size: tuple[int, int] = (24, 16)) -> None:
    """A gray image of a level."""
    Image.new("RGB", size, (level, level, level)).save(path)


def save_many(folder: Path, names: list[str]) -> None:
    """Images whose levels are their places in the list, times ten."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        save(folder / name, 10 * number)


def levels(video: torch.Tensor) -> list[int]:
    return [round(float((image.mean() + 1) * 127.5)) for image in video.unbind(1)]


def read(source: Path) -> tuple[list[int], list[str]]:
    """The levels of the images, and what is told, without the name of the source."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        video, info = read_video(source, fps=FPS)
    assert info == probe_quietly(source)
    assert (info.frames, info.fps, info.is_image) == (video.shape[1], FPS, False)
    return levels(video), [str(each.message).removeprefix(f"{source}: ") for each in caught]


def probe_quietly(source: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return probe(source, fps=FPS)


GAPS = ["shot 2.png", "shot 9.png", "shot 10.png", "shot 11.png", "shot 100.png"]


@pytest.mark.parametrize("pattern", ["", "*", "*.png", "shot *.png", "[s]hot ?*.png"])
def test_images_come_in_the_order_of_their_numbers(tmp_path: Path, pattern: str) -> None:
    save_many(tmp_path / "shots", GAPS)
    found, told = read(tmp_path / "shots" / pattern if pattern else tmp_path / "shots")
    assert found == [0, 10, 20, 30, 40]
    assert told == ["its 5 images are one video, from shot 2.png to shot 100.png"]


def test_a_glob_takes_some(tmp_path: Path) -> None:
    save_many(tmp_path / "shots", GAPS)
    assert read(tmp_path / "shots" / "shot 1*.png")[0] == [20, 30, 40]


def test_a_folder_with_brackets_is_no_glob(tmp_path: Path) -> None:
    save_many(tmp_path / "clip [1080p]", ["shot 1.png", "shot 2.png"])
    found, told = read(tmp_path / "clip [1080p]" / "shot [1-2].png")
    assert found == [0, 10]
    assert told == ["its 2 images are one video, from shot 1.png to shot 2.png"]


def test_a_glob_goes_into_folders(tmp_path: Path) -> None:
    for number, folder in enumerate(("take2", "take10")):
        (tmp_path / folder).mkdir()
        for place in range(2):
            save(tmp_path / folder / f"{place}.png", 100 * number + 50 * place)
    assert read(tmp_path / "**" / "*.png")[0] == [0, 50, 100, 150]


def test_what_else_a_folder_holds_is_told(tmp_path: Path) -> None:
    save_many(tmp_path, ["1.png", "2.PNG"])
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden.png").write_text("a")
    found, told = read(tmp_path)
    assert found == [0, 10]
    assert told == [
        "its 2 images are one video, from 1.png to 2.PNG; what else it holds is left out (2)"
    ]


def test_several_kinds_are_refused(tmp_path: Path) -> None:
    save_many(tmp_path, ["1.png", "2.jpg", "3.jpeg"])
    message = r"several kinds \(2 \.jpg and 1 \.png\); name one kind, like .*\*\.jpg"
    for source in (tmp_path, tmp_path / "*"):
        with pytest.raises(VideoError, match=message):
            VideoReader(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "it is a folder without images"),
        ("*.png", "no file has such a name"),
        ("empty/*", "no file has such a name"),
        ("*.txt", "is no image; a pattern names the images of one video"),
    ],
)
def test_nothing_to_read_is_said(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(VideoError, match=message):
        VideoReader(tmp_path / name)


def test_one_image_stays_a_still_image(tmp_path: Path) -> None:
    save_many(tmp_path, ["7.png"])
    for source in (tmp_path, tmp_path / "*.png"):
        with pytest.warns(UserWarning, match=r"7\.png is its only image"):
            video, info = read_video(source)
        assert info.is_image and video.shape == (3, 1, 16, 24)


def test_a_name_that_exists_is_no_glob(tmp_path: Path) -> None:
    save_many(tmp_path, ["a[1].png", "a1.png"])
    video, info = read_video(tmp_path / "a[1].png")
    assert info.is_image and levels(video) == [0]


def test_any_start_gives_the_same_images(tmp_path: Path) -> None:
    save_many(tmp_path / "shots", GAPS)
    source = tmp_path / "shots"
    with pytest.warns(UserWarning), VideoReader(source, fps=FPS) as reader:
        for first in (3, 0, 4, 2):
            reader.seek(Fraction(first) / FPS)
            assert levels(next(reader).image[:, None]) == [10 * first]
    with pytest.warns(UserWarning):
        assert levels(read_clip(source, 1 / 5, 2, 3, fps=FPS)) == [10, 40]


def test_an_image_that_goes_away_is_named(tmp_path: Path) -> None:
    save_many(tmp_path / "shots", GAPS)
    with pytest.warns(UserWarning), VideoReader(tmp_path / "shots", fps=FPS) as reader:
        (tmp_path / "shots" / GAPS[3]).unlink()
        with pytest.raises(VideoError, match=r"cannot read .*shot 11\.png: No such file"):
            list(reader)


def test_a_damaged_image_ends_the_video(tmp_path: Path) -> None:
    save_many(tmp_path / "shots", GAPS)
    (tmp_path / "shots" / GAPS[2]).write_bytes(b"no image")
    found, told = None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = levels(read_video(tmp_path / "shots", fps=FPS)[0])
        told = [str(each.message) for each in caught]
    assert found == [0, 10]
    assert "frames after 0.20 s are missing" in told[-1]


def test_each_image_is_turned_as_its_own_metadata_say(tmp_path: Path) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 250
    for number, (turned, orientation) in enumerate(
        [(upright, 1), (upright[::-1, ::-1], 3), (np.rot90(upright), 6)]
    ):
        image = Image.fromarray(np.ascontiguousarray(turned))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"{number}.jpg", exif=exif, quality=100, subsampling=0)
    video, _ = read_video_quietly(tmp_path)
    assert video.shape == (3, 3, 16, 24)
    for image in video.unbind(1):
        assert (image - video[:, 0]).abs().max() < 0.1


def read_video_quietly(source: Path) -> tuple[torch.Tensor, object]:
    """Reads images, and fails if anything is told besides which are taken."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*images are one video")
        return read_video(source, fps=FPS)


def test_an_image_of_another_size_is_told(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 0)
    save(tmp_path / "2.png", 10, (12, 8))
    found, told = read(tmp_path)
    assert found == [0, 10]
    assert told[1:] == [
        "its size changes from 24x16 to 12x8 at 0.20 s; these frames are scaled to 24x16"
    ]


def test_images_that_are_read_are_not_overwritten(tmp_path: Path) -> None:
    for folder in (tmp_path / "shots", tmp_path / "clip [1080p]"):
        save_many(folder, ["1.png", "2.png"])
        for output in ("1.png", "2.png"):
            with pytest.raises(FileError, match="is to be read"):
                refuse_overwriting(folder / output, [str(folder / "*.png")])
        refuse_overwriting(folder / "3.png", [str(folder / "*.png")])


def test_natural_order() -> None:
    names = ["a", "a1", "a2b", "a2b1", "a02", "a10", "b", "1", "01", "", "²"]
    expected = ["", "01", "1", "a", "a1", "a02", "a2b", "a2b1", "a10", "b", "²"]
    ordered = sorted(names, key=natural_order)
    assert [os.path.basename(name) for name in ordered] == expected
