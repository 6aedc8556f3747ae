"""Interlaced video gets whole frames on request, one for each, at the same times."""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from wanvae.video import ReadOptions, VideoReader, read_clip, read_video

WHOLE = ReadOptions(deinterlace=True)
WIDTH, HEIGHT, FRAMES = 96, 64, 24


def scene(field: int) -> np.ndarray:
    """A smooth bright bar that moves from field to field."""
    right = np.arange(WIDTH, dtype=np.float32)
    row = 30 + 180 * np.exp(-(((right - 10 - 1.5 * field) / 6) ** 2))
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).astype(np.uint8)


def frames(*, interlaced: bool) -> Iterator[av.VideoFrame]:
    for number in range(FRAMES):
        pixels = scene(2 * number).copy()
        if interlaced:
            pixels[1::2] = scene(2 * number + 1)[1::2]
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv422p")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        yield frame


def write(path: Path, *, interlaced: bool = True) -> Path:
    params = "log-level=none:qp=8:keyint=6:bframes=2" + ":interlaced=1:tff=1" * interlaced
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"x264-params": params})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv422p"
        for frame in frames(interlaced=interlaced):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def combs(video: torch.Tensor) -> float:
    """How much neighbouring lines differ, in levels."""
    return float((video[..., 1:, :] - video[..., :-1, :]).abs().mean() * 127.5)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "avi"])
def test_interlaced_frames_become_whole(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}")
    with pytest.warns(UserWarning, match="it is interlaced, .* --deinterlace"):
        woven, _ = read_video(path)
    with VideoReader(path, options=WHOLE) as reader:
        read = list(reader)
    video = torch.stack([frame.image for frame in read], dim=1)
    assert video.shape == woven.shape == (3, FRAMES, HEIGHT, WIDTH)
    assert [frame.time for frame in read] == [number / 25 for number in range(FRAMES)]
    assert combs(video) < combs(woven) / 4
    for number, image in enumerate(video.unbind(1)):
        # Each frame is the scene at the time of its first field.
        expected = torch.from_numpy(scene(2 * number).copy()).permute(2, 0, 1) / 127.5 - 1
        assert (image - expected).abs().mean() < 0.05


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_any_start_gives_the_same_frames(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}")
    video, _ = read_video(path, options=WHOLE)
    for first in (0, 1, 5, 6, 7, 12, 17, 23):
        clip = read_clip(path, first / 25, min(3, FRAMES - first), options=WHOLE)
        assert torch.equal(clip, video[:, first : first + 3])
    with VideoReader(path, options=WHOLE) as reader:
        for first in (12, 13, 15, 6, 0, 23):
            reader.seek(Fraction(first, 25))
            assert torch.equal(next(reader).image, video[:, first])


def test_frames_that_are_not_marked_stay_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", interlaced=False)
    expected, _ = read_video(path)
    with pytest.warns(UserWarning, match="none of the frames that were read is marked") as told:
        video, _ = read_video(path, options=WHOLE)
    assert torch.equal(video, expected)
    assert len(told) == 1


def test_one_frame_is_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv")
    with VideoReader(path, options=WHOLE) as reader:
        reader.seek(Fraction(FRAMES - 1, 25))
        assert len(list(reader)) == 1


def test_colours_stay(tmp_path: Path) -> None:
    """Frames keep their tags through the filter: BT.2020 in full range is read as such."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        params = "log-level=none:qp=2:interlaced=1:tff=1"
        stream = output.add_stream("libx264", rate=25, options={"x264-params": params})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 9, 2
        for _ in range(3):
            planes = [np.full((HEIGHT, WIDTH), level, np.uint8) for level in (90, 80, 170)]
            frame = av.VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")
            frame.colorspace, frame.color_range = 9, 2
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, _ = read_video(path)
        video, _ = read_video(path, options=WHOLE)
    assert (video - expected).abs().max() < 0.02
