"""A pipe is read once, without going back, and gives what the file gives."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from wanvae.video import VideoError, VideoReader, probe, read_clip, read_video

X264 = {"x264-params": "log-level=none"}
Y4M = {"container": "yuv4mpegpipe", "codec": "wrapped_avframe"}


def write(path: Path, codec: str = "libx264", container: str | None = None, **flags: str) -> Path:
    """Thirty frames at 10 per second, each brighter than the last."""
    with av.open(str(path), "w", format=container, options=flags) as output:
        stream = output.add_stream(codec, rate=10, options=X264 if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            pixels = np.full((48, 64, 3), 8 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            output.mux(stream.encode(frame.reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    return path


@contextmanager
def piped(path: Path, folder: Path) -> Iterator[Path]:
    """A named pipe that a file is written to."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)

    def feed() -> None:
        with suppress(BrokenPipeError):  # not all of it is read
            pipe.write_bytes(path.read_bytes())

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield pipe
    finally:
        thread.join()
        pipe.unlink()


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
FILES = [
    ("a.mkv", {}),
    ("a.y4m", Y4M),
    ("a.ts", {}),
    ("a.mp4", FRAGMENTS),
    ("a.mp4", {"movflags": "faststart"}),
    ("a.nut", {"codec": "ffv1"}),
]


@pytest.mark.parametrize(("name", "how"), FILES)
def test_a_pipe_gives_what_the_file_gives(tmp_path: Path, name: str, how: dict[str, str]) -> None:
    path = write(tmp_path / name, **how)
    expected, info = read_video(path)
    assert expected.shape == (3, 30, 48, 64)
    with piped(path, tmp_path) as pipe, VideoReader(pipe) as reader:
        assert (reader.info.width, reader.info.height) == (64, 48)
        assert reader.info.fps == info.fps == 10
        frames = list(reader)
    assert torch.equal(torch.stack([frame.image for frame in frames], dim=1), expected)
    assert [frame.time for frame in frames] == [number / 10 for number in range(30)]
    with piped(path, tmp_path) as pipe:
        assert torch.equal(read_clip(pipe, 1.2, 3, 2), expected[:, 12:17:2])


def test_a_pipe_goes_on_and_never_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv")
    with piped(path, tmp_path) as pipe, VideoReader(pipe) as reader:
        assert next(reader).time == 0
        reader.seek(1.5)
        assert next(reader).time == 1.5
        with pytest.raises(VideoError, match="a pipe does not go back"):
            reader.seek(0.5)
        assert next(reader).time == 1.6


def test_a_rate_is_taken_from_a_pipe(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv")
    with VideoReader(path) as reader:
        expected = [frame.time for frame in reader.at_rate(Fraction(5), 4)]
    with piped(path, tmp_path) as pipe, VideoReader(pipe) as reader:
        assert [frame.time for frame in reader.at_rate(Fraction(5), 4)] == expected


def test_a_pipe_is_not_probed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", "-"):
        with pytest.raises(VideoError, match="a pipe can be read only once; open a VideoReader"):
            probe(source)


def test_images_in_a_pipe_are_a_video(tmp_path: Path) -> None:
    with open(tmp_path / "many", "wb") as file:
        for number in range(4):
            Image.new("RGB", (24, 16), (60 * number,) * 3).save(tmp_path / "one.png")
            file.write((tmp_path / "one.png").read_bytes())
    with (
        piped(tmp_path / "many", tmp_path) as pipe,
        VideoReader(pipe, fps=Fraction(5)) as reader,
    ):
        assert (reader.info.fps, reader.info.is_image) == (5, False)
        frames = list(reader)
    assert [round(float(frame.image.mean() + 1) * 127.5) for frame in frames] == [0, 60, 120, 180]
    assert [frame.time for frame in frames] == [0.0, 0.2, 0.4, 0.6]


def test_a_header_at_the_end_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    # More than what FFmpeg has in its buffers, which it could go back in.
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10, options={"qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
            output.mux(stream.encode(frame.reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    with (
        piped(path, tmp_path) as pipe,
        pytest.raises(VideoError, match=r"a pipe is read without going back, .*Matroska"),
    ):
        VideoReader(pipe)


PROGRAM = """
from wanvae.video import read_video
video, info = read_video("-")
print(tuple(video.shape), info.fps)
"""


@pytest.mark.slow
def test_the_standard_input_is_a_dash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv")
    with open(path, "rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdin=file, capture_output=True, text=True, check=True
        )
    assert done.stdout.strip() == "(3, 30, 48, 64) 10"


def test_a_file_may_have_the_name_of_the_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "-", container="matroska")
    monkeypatch.chdir(tmp_path)
    assert read_video("./-")[0].shape == (3, 30, 48, 64)
