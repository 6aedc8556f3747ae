"""What of a file is not in its frames is told once, and what it looks like stays as it was."""

import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image

import wanvae.video.reading.codec
from wanvae.folders.manifest import load_entries
from wanvae.video import probe, read_video

X264 = {"x264-params": "log-level=none"}
WIDTH, HEIGHT = 64, 48


def told(path: Path) -> list[str]:
    """What reading a file tells, without its name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe(path)
        assert not caught
        read_video(path)
    return [str(warning.message).removeprefix(f"{path}: ") for warning in caught]


def rgba(opacity: int) -> np.ndarray:
    """A red picture with a green square of an opacity, of 255."""
    pixels = np.full((HEIGHT, WIDTH, 4), (200, 40, 60, 255), np.uint8)
    pixels[10:30, 10:30] = (0, 255, 0, opacity)
    return pixels


def write(path: Path, codec: str, pixel_format: str, opacity: int = 255, **options: str) -> Path:
    """Writes a video of five frames of a codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(rgba(opacity), format="rgba")
            container.mux(stream.encode(frame.reformat(format=pixel_format)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [
        ("webm", "libvpx-vp9", "yuva420p"),
        ("webm", "libvpx", "yuva420p"),
        ("mov", "prores_ks", "yuva444p10le"),
        ("mov", "png", "rgba"),
        ("mkv", "ffv1", "bgra"),
    ],
)
def test_transparency_of_videos_is_told(
    tmp_path: Path, suffix: str, codec: str, pixel_format: str
) -> None:
    options = {"auto-alt-ref": "0"} if "vpx" in codec else {}
    path = write(tmp_path / f"a.{suffix}", codec, pixel_format, 128, **options)
    (sentence,) = told(path)
    assert "it is transparent in places, and is laid on black" in sentence
    # Half of the green of the file.
    red, green, blue = read_video_quietly(path)[:, 2, 20, 20]
    assert red < -0.8 and -0.2 < green < 0.1 and blue < -0.8


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparency_that_no_decoder_gives_is_told(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in ("OWN_DECODERS", "_STRICTER"):
        names = dict.fromkeys(getattr(wanvae.video.reading.codec, table), "of another build")
        monkeypatch.setattr(wanvae.video.reading.codec, table, names)
    path = write(tmp_path / "a.webm", codec, "yuva420p", 128, **{"auto-alt-ref": "0"})
    (sentence,) = told(path)
    assert "its transparency is left out, because this FFmpeg has no decoder for it" in sentence


def read_video_quietly(path: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_video(path)[0]


def save_gif(path: Path, opacity: int) -> None:
    frames = [Image.fromarray(rgba(opacity)) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, disposal=2)


def save_palette(path: Path, opacity: int) -> None:
    picture = Image.fromarray(rgba(255)[..., :3]).quantize(8)
    picture.save(path, **({} if opacity == 255 else {"transparency": 1}))


def save(path: Path, opacity: int) -> None:
    Image.fromarray(rgba(opacity)).save(path)


def save_animated(path: Path, opacity: int) -> None:
    frames = [Image.fromarray(rgba(opacity)) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, disposal=1)


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("a.gif", save_gif),
        ("palette.png", save_palette),
        ("a.png", save),
        ("animated.png", save_animated),
        ("a.tiff", save),
    ],
)
@pytest.mark.parametrize("opacity", [0, 255])
def test_transparency_of_images_is_told_where_there_is_some(
    tmp_path: Path, name: str, writer: Callable[[Path, int], None], opacity: int
) -> None:
    writer(tmp_path / name, opacity)
    sentences = told(tmp_path / name)
    assert ["laid on black" in sentence for sentence in sentences] == (
        [] if opacity == 255 else [True]
    )


def test_opaque_videos_tell_nothing(tmp_path: Path) -> None:
    assert told(write(tmp_path / "a.mov", "png", "rgba")) == []
    assert told(write(tmp_path / "a.webm", "libvpx-vp9", "yuv420p")) == []


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_one_of_several_videos_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((WIDTH, HEIGHT), (32, 32)):
            stream = container.add_stream("libx264", rate=10, options=X264)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for _ in range(3):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(rgba(255), format="rgba")
                size = {"width": stream.width, "height": stream.height}
                container.mux(stream.encode(frame.reformat(format="yuv420p", **size)))
        for stream in streams:
            container.mux(stream.encode(None))
    (sentence,) = told(path)
    info = probe(path)
    assert f"it holds 2 videos or pictures; the one of {info.width}x{info.height}" in sentence


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 320, 240, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        video = container.add_stream("libx264", rate=10, options=X264)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for stream, count in ((cover, 1), (video, 5)):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(rgba(255), format="rgba").reformat(
                    width=stream.width, height=stream.height, format=stream.pix_fmt
                )
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    assert told(path) == []
    info = probe(path)
    assert (info.width, info.height, info.frames) == (WIDTH, HEIGHT, 5)
    assert info.beside == ("cover picture",)


def test_avif_is_a_still_image(tmp_path: Path) -> None:
    if not av.codec.Codec("libdav1d", "r"):
        pytest.skip("this FFmpeg has no decoder for AV1")
    Image.fromarray(rgba(255)[..., :3]).save(tmp_path / "a.avif")
    Image.fromarray(rgba(128)).save(tmp_path / "b.avif")
    assert told(tmp_path / "a.avif") == []
    (sentence,) = told(tmp_path / "b.avif")
    assert "the one of 64x48 pixels is read, and the others (such as transparency)" in sentence
    entries = load_entries(tmp_path)
    assert [(entry.is_image, entry.frames) for entry in entries] == [(True, 1), (True, 1)]
