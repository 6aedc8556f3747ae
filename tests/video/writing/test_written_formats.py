"""Every kind of file that is written: what it holds, when it is refused, and what comes back."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from wanvae.video import (
    Encoding,
    VideoError,
    VideoReader,
    VideoWriter,
    probe,
    read_video,
    write_video,
)
from wanvae.video.writing.formats import Format, formats
from wanvae.video.writing.output import check_output

RATE = Fraction(24)
WIDTH, HEIGHT, FRAMES = 96, 64, 5
LEVEL = 2 / 255  # one 8 bit level on the scale from -1 to 1
BT709, RGB, LIMITED, FULL = 1, 0, 1, 2  # FFmpeg's numbers
LOSSLESS = ("ffv1", "apng", "png", "tiff", "webp")
ALL = [*formats(), *formats(numbered=True)]


def named(format: Format) -> str:
    return f"{format.suffix[1:]}-{format.codec.name}-{format.pixels.bits}"


def waves(
    frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH, channels: int = 3
) -> Tensor:
    """(channels, frames, height, width): smooth colours that move, of many more than 256 levels."""
    time, down, right = torch.meshgrid(
        torch.arange(frames) / 8,
        torch.linspace(0, 1, height),
        torch.linspace(0, 1, width),
        indexing="ij",
    )
    phases = [right + time, down - time, right + down, 1.5 * right - down + time]
    return torch.stack([0.95 * torch.sin(3 * phase) for phase in phases[:channels]])


def rounded(video: Tensor, bits: int) -> Tensor:
    """The nearest of the values that samples of this many bits have."""
    most = 2**bits - 1
    return ((video + 1) / 2 * most).round() / most * 2 - 1


def options(format: Format) -> dict[str, object]:
    """What names a format beside the suffix."""
    several = len(format.container.codecs) > 1
    return {"codec": format.codec.name if several else None, "bits": format.pixels.bits}


def videos(numbered: bool = False) -> list[Format]:
    """Formats that hold several frames in one file, and that FFmpeg reads."""
    unread = {".npy"}
    return [
        one
        for one in formats(numbered=numbered)
        if numbered or not (one.container.is_image or one.suffix in unread)
    ]


def first_frame(path: Path) -> tuple[str, av.VideoFrame]:
    """The codec of a file and its first frame as it is stored."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return container.streams.video[0].codec_context.codec.canonical_name, frame


def tolerance(format: Format) -> tuple[float, float]:
    """How far a written picture of waves may be from the original: mean and most, in levels of 8
    bit."""
    bits = format.pixels.bits
    if format.codec.palette:
        return 6, 60
    step = 255 / (2**bits - 1)
    if format.codec.name in LOSSLESS:
        return 0.26 * step, 0.52 * step
    if format.codec.name == "raw":  # luma and chroma of limited range are rounded
        return 0.56 * step, 2.6 if bits == 8 else 1.65 * step
    return (1.2, 8) if bits == 8 else (0.6, 6)


# What comes back


@pytest.mark.parametrize("format", videos(), ids=named)
def test_a_video_comes_back_as_it_was(tmp_path: Path, format: Format) -> None:
    path, video = tmp_path / f"a{format.suffix}", waves()
    write_video(path, video, RATE, crf=1, **options(format))  # type: ignore[arg-type]
    back, info = read_video(path)
    assert back.shape == video.shape
    assert (probe(path).frames, info.is_image) == (FRAMES, False)
    if format.container.tick is None:
        assert info.fps == RATE
    error = (back - video).abs() / LEVEL
    mean, most = tolerance(format)
    assert error.mean() <= mean
    assert error.max() <= most
    if format.codec.name in LOSSLESS:
        assert torch.allclose(back, rounded(video, format.pixels.bits), atol=3e-5)


@pytest.mark.filterwarnings("ignore:.*images have no frame rate")
@pytest.mark.parametrize("format", videos(numbered=True), ids=named)
def test_numbered_images_come_back_as_they_were(tmp_path: Path, format: Format) -> None:
    path, video = tmp_path / "frames" / f"%03d{format.suffix}", waves()
    write_video(path, video, RATE, **options(format))  # type: ignore[arg-type]
    assert len(os.listdir(tmp_path / "frames")) == FRAMES
    back, _ = read_video(path)
    if format.codec.name == "jpeg":
        assert (back - video).abs().max() <= 6 * LEVEL
    else:
        assert torch.allclose(back, rounded(video, format.pixels.bits), atol=3e-5)


@pytest.mark.filterwarnings("ignore:.*images have no frame rate")
@pytest.mark.parametrize(
    "format",
    [one for one in ALL if one.pixels.alpha is not None and one.suffix != ".npy"],
    ids=named,
)
def test_alpha_comes_back_from_every_format_that_holds_it(tmp_path: Path, format: Format) -> None:
    image = format.container.is_image
    path = tmp_path / "frames" / f"%03d{format.suffix}" if image else tmp_path / f"a{format.suffix}"
    video = waves(channels=4)
    write_video(path, video, RATE, crf=1, **options(format))  # type: ignore[arg-type]
    if format.suffix == ".webp" and not image:
        with Image.open(path) as file:
            pictures = [np.asarray(each.convert("RGBA")) for each in ImageSequence.Iterator(file)]
        back = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2) / 127.5 - 1
    else:
        back, _ = read_video(path, alpha=True)
    error = (back - video).abs()[3] / LEVEL
    assert error.max() <= (4.01 if format.codec.name == "vp9" else 0.51)


@pytest.mark.parametrize("size", [(65, 67), (66, 67), (65, 64)])
@pytest.mark.parametrize("format", videos(), ids=named)
def test_odd_sides_come_back(tmp_path: Path, format: Format, size: tuple[int, int]) -> None:
    path, video = tmp_path / f"a{format.suffix}", waves(3, *size)
    write_video(path, video, RATE, crf=4, **options(format))  # type: ignore[arg-type]
    back, _ = read_video(path)
    assert back.shape == video.shape
    assert (back - video).abs().mean() <= 8 * LEVEL


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("format", videos(), ids=named)
def test_few_frames_come_back(tmp_path: Path, format: Format, count: int) -> None:
    path = tmp_path / f"a{format.suffix}"
    write_video(path, waves(count), RATE, **options(format))  # type: ignore[arg-type]
    with VideoReader(path) as reader:
        times = [frame.time for frame in reader]
    assert times == pytest.approx([index / 24 for index in range(count)], abs=0.0051)


@pytest.mark.parametrize(
    "format", [one for one in videos() if one.container.keeps_times], ids=named
)
def test_irregular_times_come_back(tmp_path: Path, format: Format) -> None:
    path, times = tmp_path / f"a{format.suffix}", [0.0, 0.031, 0.2, 0.2345, 0.9, 2.5]
    size = {"width": WIDTH, "height": HEIGHT, "fps": RATE}
    with VideoWriter(path, **size, **options(format)) as writer:  # type: ignore[arg-type]
        writer.write(waves(6), times)
    with VideoReader(path) as reader:
        found = [frame.time for frame in reader]
    tick = format.container.tick or Fraction(1, 1000)
    assert found == pytest.approx(times, abs=float(tick) / 2 + 6e-4)


# What a file says it is


@pytest.mark.parametrize(
    "format", [one for one in videos() if one.container.tags_colour], ids=named
)
def test_the_file_says_what_it_is(tmp_path: Path, format: Format) -> None:
    path = tmp_path / f"a{format.suffix}"
    write_video(path, waves(), RATE, **options(format))  # type: ignore[arg-type]
    codec, frame = first_frame(path)
    names = {"h265": "hevc"}
    assert codec == names.get(format.codec.name, format.codec.name)
    yuv = format.codec.name != "ffv1"
    assert frame.colorspace == (BT709 if yuv else RGB)
    assert frame.color_range == (LIMITED if yuv else FULL)
    assert (frame.color_primaries, frame.color_trc) == (BT709, BT709)
    if format.codec.name == "prores":  # its decoder always gives 12 bits
        assert frame.format.name == "yuv444p12le"
    else:
        assert frame.format.name == format.pixels.colour
        assert frame.format.components[0].bits == format.pixels.bits


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_apple_players_know_h265(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"a{suffix}", waves(), RATE, codec="h265")
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


def test_ten_bits_are_not_rounded_to_eight_first(tmp_path: Path) -> None:
    gray = (torch.arange(256) * 4 + 1) / 1023 * 2 - 1  # each between two levels of 8 bits
    video = gray.view(1, 1, 1, -1).expand(3, 2, 64, -1)
    write_video(tmp_path / "a.mkv", video, RATE, codec="ffv1", bits=10)
    assert torch.allclose(read_video(tmp_path / "a.mkv")[0], video, atol=4e-5)
    write_video(tmp_path / "b.mp4", video, RATE, crf=0, bits=10)
    luma = first_frame(tmp_path / "b.mp4")[1].to_ndarray()[:64]
    expected = (64 + 876 * (gray + 1) / 2).round().numpy()
    assert np.abs(luma - expected).max() <= 2


@pytest.mark.parametrize("encoder", ["h264", "h265", "av1"])
@pytest.mark.parametrize("axis", [2, 3])
def test_deep_chroma_is_not_shifted(tmp_path: Path, encoder: str, axis: int) -> None:
    red = torch.linspace(-0.5, 0.5, 96).view(1, 1, 1, 96).expand(1, 3, 96, -1)
    ramp = torch.cat([red, torch.full_like(red, -0.2), torch.full_like(red, -0.2)])
    video = ramp if axis == 3 else ramp.transpose(2, 3)
    write_video(tmp_path / "a.mp4", video, RATE, crf=1, codec=encoder, bits=10)
    shift = (read_video(tmp_path / "a.mp4")[0] - video)[0, ..., 8:-8, 8:-8].mean()
    assert abs(shift) < 0.1 / 95  # of a pixel; siting mistakes shift by half of one


# GIF, WebP


def test_gif_keeps_times_in_hundredths_and_never_drifts(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    write_video(path, waves(31, 16, 16), Fraction(30000, 1001))
    with Image.open(path) as file:
        delays = [each.info["duration"] for each in ImageSequence.Iterator(file)]
        assert file.info["loop"] == 0  # for ever
    ends = np.cumsum(delays)[:-1]
    exact = np.arange(1, 31) * 1001 / 30
    assert np.abs(ends - exact).max() <= 5.001
    assert delays[-1] == 30


def test_gif_tells_that_it_is_slower_than_a_fast_video(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="at most 50 frames per second") as caught:
        write_video(tmp_path / "a.gif", waves(20, 16, 16), Fraction(100))
    assert len(caught) == 1
    with Image.open(tmp_path / "a.gif") as file:
        delays = [each.info["duration"] for each in ImageSequence.Iterator(file)]
    assert delays == [20] * 20


def test_frames_of_a_gif_have_palettes_of_their_own(tmp_path: Path) -> None:
    """Each frame has 256 colours that no other frame has, and all come back."""
    levels = torch.arange(256).view(16, 16)
    video = torch.stack(
        [torch.stack([levels, 0 * levels + 40 * index, 255 - levels]) for index in range(5)], dim=1
    )
    write_video(tmp_path / "a.gif", video / 127.5 - 1, RATE)
    with Image.open(tmp_path / "a.gif") as file:
        pictures = [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(file)]
    found = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).int()
    assert (found - video).abs().max() <= 4


def test_equal_frames_of_animations_stay_apart(tmp_path: Path) -> None:
    video = waves(1).expand(-1, 4, -1, -1)
    for name in ("a.gif", "a.apng"):
        write_video(tmp_path / name, video, RATE)
        assert probe(tmp_path / name).frames == 4


def test_an_animated_webp_has_pictures_and_times(tmp_path: Path) -> None:
    path, times = tmp_path / "a.webp", [0.0, 0.04, 0.1, 0.5, 0.6]
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=Fraction(25)) as writer:
        writer.write(waves(), times)
    with Image.open(path) as file:
        assert (file.n_frames, file.info["loop"]) == (FRAMES, 0)
        delays, pictures = [], []
        for each in ImageSequence.Iterator(file):
            pictures.append(np.asarray(each.convert("RGB")))
            delays.append(each.info["duration"])
    assert delays[:-1] == [40, 60, 400, 100]
    expected = ((waves() + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    assert np.array_equal(np.stack(pictures), expected)


def test_a_webp_of_one_frame_is_a_still_image(tmp_path: Path) -> None:
    write_video(tmp_path / "a.webp", waves(1), RATE)
    assert probe(tmp_path / "a.webp").is_image
    assert b"ANIM" not in (tmp_path / "a.webp").read_bytes()[:64]


# Arrays


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("bits", "kind"), [(None, np.uint8), (8, np.uint8), (16, np.uint16)])
def test_an_array_has_the_levels(
    tmp_path: Path, bits: int | None, kind: type, channels: int
) -> None:
    video = waves(height=17, width=33, channels=channels)
    write_video(tmp_path / "a.npy", video, RATE, bits=bits)
    array = np.load(tmp_path / "a.npy")
    assert (array.dtype, array.shape) == (kind, (FRAMES, 17, 33, channels))
    most = np.iinfo(kind).max
    expected = ((video + 1) / 2 * most).round().permute(1, 2, 3, 0).numpy().astype(kind)
    assert np.abs(array.astype(int) - expected.astype(int)).max() <= (bits == 16)
    assert np.load(tmp_path / "a.npy", mmap_mode="r").flags.c_contiguous
    assert os.listdir(tmp_path) == ["a.npy"]


def test_an_array_without_frames_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(VideoError, match="no frames"),
        VideoWriter(tmp_path / "a.npy", width=16, height=16, fps=RATE),
    ):
        pass
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["a.npy", "a.y4m", "frames/%05d.png"])
def test_lost_times_are_told(tmp_path: Path, name: str) -> None:
    with (
        pytest.warns(UserWarning, match="holds no times") as caught,
        VideoWriter(tmp_path / name, width=WIDTH, height=HEIGHT, fps=RATE) as writer,
    ):
        writer.write(waves(), [0, 0.05, 0.09, 0.9, 1.5])
    assert len(caught) == 1


@pytest.mark.parametrize("name", ["a.npy", "a.y4m", "frames/%05d.png"])
def test_regular_times_are_not_lost(tmp_path: Path, name: str) -> None:
    with VideoWriter(tmp_path / name, width=WIDTH, height=HEIGHT, fps=RATE) as writer:
        writer.write(waves(), [7 + index / 24 for index in range(FRAMES)])


# Pipes


class Pipe(io.RawIOBase):
    """What cannot go back, and keeps what it gets."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        added = bytes(data)  # type: ignore[call-overload]
        self.content += added
        return len(added)


@pytest.mark.parametrize(
    ("container", "codec", "bits"),
    [
        (None, None, None),
        ("y4m", None, 10),
        ("mkv", None, None),
        ("mkv", "ffv1", 16),
        ("mkv", "av1", 10),
    ],
)
def test_a_pipe_gets_a_video(container: str | None, codec: str | None, bits: int | None) -> None:
    pipe = Pipe()
    write_video(pipe, waves(), RATE, crf=1, codec=codec, bits=bits, container=container)  # type: ignore[arg-type]
    assert not pipe.closed
    with av.open(io.BytesIO(pipe.content)) as file:
        assert file.format.name == ("matroska,webm" if container == "mkv" else "yuv4mpegpipe")
        assert file.streams.video[0].average_rate == RATE
        frames = list(file.decode(video=0))
    assert len(frames) == FRAMES
    assert frames[0].format.components[0].bits == (bits or 8)


@pytest.mark.parametrize("height", [480, 720])
def test_a_piped_video_looks_as_players_take_it(tmp_path: Path, height: int) -> None:
    video, path = waves(2, height, 32), tmp_path / "a.y4m"
    with path.open("wb") as file:
        write_video(file, video, RATE, container="y4m", bits=10)
    assert (read_video(path)[0] - video).abs().max() <= 0.5 * LEVEL


def test_a_pipe_takes_no_file_that_must_be_completed() -> None:
    for container in ("mp4", "npy", "png"):
        with pytest.raises(VideoError, match=f"a pipe cannot take {container}; use y4m or mkv"):
            write_video(Pipe(), waves(), RATE, container=container)  # type: ignore[arg-type]
    with pytest.raises(VideoError, match=r"y4m holds no h264; it holds raw; use one of \.mkv"):
        write_video(Pipe(), waves(), RATE, codec="h264")  # type: ignore[arg-type]


# What is refused, before anything is written


@pytest.mark.parametrize(
    ("name", "asked", "answer"),
    [
        ("a.avi", {}, r"its suffix is '.avi'; use one of \.mp4 \.mov"),
        (
            "a.webm",
            {"codec": "h264"},
            r"\.webm holds no h264; it holds vp9 or av1; use one of \.mp4",
        ),
        ("a.mp4", {"codec": "ffv1"}, r"\.mp4 holds no ffv1; .*use one of \.mkv \(ffv1\)"),
        ("a.mp4", {"bits": 16}, r"\.mp4 holds no 16 bits; it holds 8 or 10; use .* \.mkv \(ffv1\)"),
        ("a.mkv", {"codec": "h265", "bits": 16}, r"\.mkv with h265 holds no 16 bits"),
        ("a.mov", {"codec": "prores", "bits": 8}, r"with prores holds no 8 bits; it holds 10"),
        ("a.gif", {"bits": 10}, r"\.gif holds no 10 bits; it holds 8; use one of \.mp4"),
        ("%05d.jpg", {"bits": 16}, r"\.jpg holds no 16 bits; .* \.png \.tiff \.tif$"),
        ("%05d.png", {"bits": 10}, r"\.png holds no 10 bits; it holds 8 or 16"),
        ("a.mp4", {"container": "mkv"}, "its suffix says what it is; mkv is for pipes"),
        ("no/a.mp4", {}, "the folder .*no does not exist"),
        ("", {}, "it is a directory"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, name: str, asked: dict[str, object], answer: str
) -> None:
    encoding = Encoding(**asked)  # type: ignore[arg-type]
    with pytest.raises(VideoError, match=answer) as early:
        check_output(tmp_path / name, encoding)
    with pytest.raises(VideoError) as late:
        write_video(tmp_path / name, waves(1), RATE, **asked)  # type: ignore[arg-type]
    assert str(late.value) == str(early.value)
    assert not os.listdir(tmp_path)


def test_h264_with_alpha_names_what_has_alpha(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"with h264 holds no alpha; use one of \.mov \(prores\)"):
        write_video(tmp_path / "a.mkv", waves(channels=4), RATE, codec="h264")


@pytest.mark.parametrize(("codec", "size"), [("h265", (48, 96)), ("av1", (3, 64))])
def test_frames_that_are_too_small_for_a_codec(
    tmp_path: Path, codec: str, size: tuple[int, int]
) -> None:
    with pytest.raises(VideoError, match=f"{codec} needs sides of .* pixels or more"):
        write_video(tmp_path / "a.mp4", waves(1, *size), RATE, codec=codec)
    assert not os.listdir(tmp_path)


def test_an_encoder_that_this_ffmpeg_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = av.Codec

    def lacking(name: str, mode: str) -> av.Codec:
        return known("libx999" if name == "libx265" else name, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(av, "Codec", lacking)
    check_output(tmp_path / "a.mp4", Encoding())
    with pytest.raises(VideoError, match=r"has no encoder libx265 for 8 bits, which h265 needs"):
        check_output(tmp_path / "a.mp4", Encoding(codec="h265"))


def test_a_percent_sign_in_the_name_of_a_video_is_no_number(tmp_path: Path) -> None:
    write_video(tmp_path / "50%d.mp4", waves(3), RATE)
    assert os.listdir(tmp_path) == ["50%d.mp4"]


# Nothing unfinished stays


@pytest.mark.parametrize("format", ALL, ids=named)
def test_an_error_leaves_nothing_and_keeps_an_earlier_file(tmp_path: Path, format: Format) -> None:
    path = tmp_path / f"a{format.suffix}"
    path.write_bytes(b"earlier")

    def fail() -> None:
        size = {"width": WIDTH, "height": HEIGHT, "fps": RATE}
        with VideoWriter(path, **size, **options(format)) as writer:  # type: ignore[arg-type]
            writer.write(waves(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "format", [one for one in videos() if one.codec.name in ("h265", "av1")], ids=named
)
def test_encoders_print_nothing(
    tmp_path: Path, format: Format, capfd: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / f"a{format.suffix}", waves(), RATE, **options(format))  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")
    assert "SVT_LOG" not in os.environ


# The table in the guide


def table() -> Iterator[tuple[str, str, str, str]]:
    """The rows of the table of files that are written: suffixes, codec, bits, alpha."""
    guide = (Path(__file__).parents[3] / "wanvae" / "README.md").read_text(encoding="utf-8")
    lines = guide[guide.index("| file | codecs | bits | alpha |") :].splitlines()[2:]
    for line in lines:
        if not line.startswith("|"):
            return
        suffixes, codec, bits, alpha = (cell.strip() for cell in line.strip("|").split("|"))
        yield suffixes, codec, bits, alpha


def test_the_guide_has_the_table_of_formats() -> None:
    expected = {}
    for format in formats():
        key = format.suffix, format.codec.name
        bits, alpha = expected.get(key, ([], False))
        expected[key] = [*bits, f"{format.pixels.bits}"], format.pixels.alpha is not None
    told = {}
    suffix_of_last = ""
    for suffixes, codec, bits, alpha in table():
        suffix_of_last = suffixes or suffix_of_last
        for suffix in re.findall(r"`(\.\w+)`", suffix_of_last):
            told[suffix, codec.strip("`")] = re.findall(r"\d+", bits), alpha == "yes"
    assert told == expected
