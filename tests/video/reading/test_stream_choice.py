"""Of several streams of pictures, a real video is read."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from wanvae.video import VideoError, VideoReader, probe, read_video

X264 = {"x264-params": "log-level=none"}


def write(path: Path, *streams: tuple[str, int, int, Disposition]) -> Path:
    """Streams of a codec, a width, a number of frames and a disposition; or of sound."""
    with av.open(str(path), "w") as output:
        added = []
        for codec, width, count, disposition in streams:
            stream = output.add_stream(codec, rate=8000 if codec == "aac" else 10)
            if codec != "aac":
                stream.width, stream.height = width, 48
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                stream.options = X264 if codec == "libx264" else {}
            stream.disposition = disposition
            added.append((stream, count))
        for stream, count in added:
            for number in range(count):
                if stream.type == "audio":
                    frame = av.AudioFrame.from_ndarray(
                        np.zeros((1, 1024), np.float32), "fltp", "mono"
                    )
                    frame.sample_rate, frame.pts = 8000, 1024 * number
                else:
                    pixels = np.full((48, stream.width, 3), 50, np.uint8)
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                    frame = frame.reformat(format=stream.pix_fmt)
                    frame.pts = number
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


COVER = Disposition.attached_pic


def test_a_cover_is_never_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", ("mjpeg", 640, 1, COVER), ("libx264", 64, 5, Disposition(0)))
    info = probe(path)
    assert (info.width, info.frames, info.beside) == (64, 5, ("cover picture",))
    assert read_video(path)[0].shape == (3, 5, 48, 64)


@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
def test_a_track_of_one_picture_is_not_the_video(tmp_path: Path, codec: str) -> None:
    path = write(
        tmp_path / "a.mov", (codec, 640, 1, Disposition.default), ("libx264", 64, 5, Disposition(0))
    )
    with pytest.warns(UserWarning, match="2 videos or pictures; the one of 64x48 pixels is read"):
        assert read_video(path)[0].shape == (3, 5, 48, 64)


def test_sound_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", ("mjpeg", 64, 1, COVER), ("aac", 0, 4, Disposition.default))
    with pytest.raises(VideoError, match="it has only a cover picture; give a video or image"):
        VideoReader(path)


def test_the_video_that_players_take_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.mkv",
        ("libx264", 128, 5, Disposition(0)),
        ("libx264", 64, 5, Disposition.default),
    )
    message = "it holds 2 videos or pictures; the one of 64x48 pixels is read"
    with pytest.warns(UserWarning, match=message):
        video, info = read_video(path)
    assert video.shape == (3, 5, 48, info.width) and info.width == 64
