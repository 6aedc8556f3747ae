"""Animated GIF, PNG and WebP show what Pillow shows, at their own times."""

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from tests.video.test_pipes import piped
from wanvae.engine.storage.remote_path import RemotePath
from wanvae.folders.manifest import load_entries
from wanvae.video import FilePart, VideoError, VideoReader, probe, read_clip, read_video

DURATIONS = [100, 250, 40, 60, 500, 30]
STARTS = [0.0, 0.1, 0.35, 0.39, 0.45, 0.95]


def sprites(*, soft: bool = False, opaque: bool = False) -> list[Image.Image]:
    """A disc that moves over stripes, with transparent places, or half transparent ones."""
    down, right = np.mgrid[:40, :61]
    images = []
    for number in range(len(DURATIONS)):
        inside = np.hypot(down - 20, right - 10 - 8 * number) < 9
        stripes = (right // 8 + number // 3) % 2 == 0
        pixels = np.zeros((40, 61, 4), np.uint8)
        pixels[stripes] = (30, 90, 200, 255)
        pixels[inside] = (240, 40 * number, 20, 120 if soft else 255)
        if opaque:
            pixels[..., 3] = 255
        images.append(Image.fromarray(pixels))
    return images


def save(path: Path, images: list[Image.Image], **how: Any) -> Path:
    images[0].save(path, save_all=True, append_images=images[1:], duration=DURATIONS, **how)
    return path


def shown(path: Path) -> torch.Tensor:
    """What Pillow shows, RGBA, (4, T, H, W) from 0 to 255."""
    with Image.open(path) as image:
        frames = [np.array(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float()


def difference(video: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference in levels, of alpha and of colours that are seen."""
    levels = (video + 1) * 127.5
    seen = expected[3:] / 255
    colours = ((levels[:3] - expected[:3]) * seen).abs().max()
    return float(max(colours, (levels[3] - expected[3]).abs().max()))


CASES = [
    ("gif", {"disposal": 0}, 0.01),
    ("gif", {"disposal": 1}, 0.01),
    ("gif", {"disposal": 2}, 0.01),
    ("gif", {"disposal": [2, 1, 2, 1, 2, 1]}, 0.01),
    ("png", {"disposal": 0, "blend": 0}, 0.01),
    ("png", {"disposal": 1, "blend": 0}, 0.01),
    ("png", {"disposal": 2, "blend": 0}, 0.01),
    ("webp", {"lossless": True}, 0.01),
    ("webp", {"lossless": True, "minimize_size": True}, 1.01),
    ("webp", {"lossless": True, "kmin": 0, "kmax": 0}, 1.01),
    ("webp", {"allow_mixed": True, "quality": 90}, 9.0),
]


@pytest.mark.parametrize(("suffix", "how", "tolerance"), CASES)
@pytest.mark.parametrize("kind", ["hard", "soft", "opaque"])
def test_frames_are_those_that_pillow_shows(
    tmp_path: Path, suffix: str, how: dict[str, Any], tolerance: float, kind: str
) -> None:
    if suffix == "gif" and kind == "soft":
        pytest.skip("GIF has no half transparent pixels")
    images = sprites(soft=kind == "soft", opaque=kind == "opaque")
    path = save(tmp_path / f"a.{suffix}", images, **how)
    expected = shown(path)
    with VideoReader(path, strict=True, alpha=True) as reader:
        frames = list(reader)
        info = reader.info
    assert [frame.time for frame in frames] == STARTS
    video = torch.stack([frame.image for frame in frames], dim=1)
    assert difference(video, expected) < tolerance
    assert (info.width, info.height, info.is_image) == (61, 40, False)
    assert probe(path).frames == len(STARTS)
    for first in (3, 5, 1):
        assert torch.equal(read_clip(path, STARTS[first], 1, alpha=True)[:, 0], video[:, first])
    (entry,) = load_entries(tmp_path)
    assert (entry.error, entry.frames, entry.is_image) == (None, 6, False)


@pytest.mark.parametrize("kind", ["hard", "soft", "opaque"])
def test_lossy_webp_of_gray_pictures(tmp_path: Path, kind: str) -> None:
    """Colours would differ at edges, because libwebp interpolates chroma in another way."""
    images = sprites(soft=kind == "soft", opaque=kind == "opaque")
    images = [image.convert("LA").convert("RGBA") for image in images]
    path = save(tmp_path / "a.webp", images, quality=95)
    assert difference(read_video(path, alpha=True)[0], shown(path)) < 2.01


@pytest.fixture
def webp(tmp_path: Path) -> Path:
    return save(tmp_path / "a.webp", sprites(), lossless=True)


def test_the_rate_of_webp_is_its_average(webp: Path) -> None:
    info = probe(webp)
    assert info.fps == Fraction(6000, sum(DURATIONS))
    with pytest.raises(VideoError, match="is a video file, and cannot be read at 5 frames"):
        VideoReader(webp, fps=Fraction(5))


def test_webp_may_lie_in_a_larger_file(webp: Path, tmp_path: Path) -> None:
    content = webp.read_bytes()
    (tmp_path / "all").write_bytes(b"before" + content + b"after")
    part = FilePart(tmp_path / "all", "a.webp", 6, len(content))
    expected, _ = read_video(webp, alpha=True)
    assert torch.equal(read_video(part, alpha=True)[0], expected)


def test_webp_may_come_through_a_pipe(webp: Path, tmp_path: Path) -> None:
    expected, _ = read_video(webp, alpha=True)
    with piped(webp, tmp_path) as pipe, VideoReader(pipe, alpha=True) as reader:
        assert reader.info.fps == Fraction(6000, sum(DURATIONS)) and not reader.info.is_image
        frames = list(reader)
    assert [frame.time for frame in frames] == STARTS
    assert torch.equal(torch.stack([frame.image for frame in frames], dim=1), expected)


def test_still_webp_in_a_pipe_stays_an_image_of_a_row(webp: Path, tmp_path: Path) -> None:
    with Image.open(webp) as image:
        image.save(tmp_path / "still.webp", lossless=True)
    with (
        piped(tmp_path / "still.webp", tmp_path) as pipe,
        pytest.warns(UserWarning, match="several images have no frame rate"),
    ):
        still, _ = read_video(pipe, alpha=True)
    assert torch.equal(still, read_video(webp, alpha=True)[0][:, :1])


def test_webp_may_lie_at_an_address(webp: Path) -> None:
    expected, _ = read_video(webp, alpha=True)
    content = webp.read_bytes()
    address = RemotePath("memory://animations")
    (address / "a.webp").write_bytes(content)
    (address / "all.tar").write_bytes(b"before" + content + b"after")
    part = FilePart(address / "all.tar", "a.webp", 6, len(content))
    for source in (str(address / "a.webp"), part):
        assert torch.equal(read_video(source, alpha=True)[0], expected)


def test_webp_that_is_cut_short_is_told(webp: Path) -> None:
    expected, _ = read_video(webp, alpha=True)
    content = webp.read_bytes()
    webp.write_bytes(content[: content.rfind(b"ANMF") + 30])
    with pytest.warns(UserWarning, match="damaged or cut short"):
        video, _ = read_video(webp, alpha=True)
    assert torch.equal(video, expected[:, :5])
    with (
        pytest.raises(VideoError, match="cut short"),
        VideoReader(webp, strict=True, alpha=True) as reader,
    ):
        list(reader)


def test_random_bytes_in_webp_are_no_crash(webp: Path) -> None:
    content = webp.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for place in generator.integers(12, len(content), 4):
            damaged[place] = generator.integers(256)
        webp.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_video(webp)
            except VideoError:
                continue


def test_parts_too_short_to_see_last_as_in_browsers(tmp_path: Path) -> None:
    images = sprites()
    path = tmp_path / "a.webp"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[0, 5, 10, 11, 20, 30])
    with VideoReader(path, alpha=True) as reader:
        times = [frame.time for frame in reader]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.311, 0.331])
