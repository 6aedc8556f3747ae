"""Video files: what is written comes back, known colours and times read right, failures are one
line and leave nothing behind."""

import os
import struct
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import write_sound
from wanvae.video import (
    FilePart,
    VideoError,
    VideoReader,
    VideoWriter,
    probe,
    read_clip,
    read_video,
    write_video,
)

SHARED = Path(__file__).parents[3] / "shared" / "data" / "video"
NTSC = Fraction(30000, 1001)
LIMITED, FULL = 1, 2  # FFmpeg's colour ranges
RGB, BT709, UNTAGGED, BT601, SMPTE170M = 0, 1, 2, 5, 6  # FFmpeg's matrices
STEP = 2 / 255  # one 8 bit level on the scale from -1 to 1


def solid(*levels: int, width: int = 32, height: int = 16, count: int = 1) -> torch.Tensor:
    """(3, count, height, width) of one colour given as 8 bit RGB levels."""
    colour = torch.tensor(levels).float().view(3, 1, 1, 1) / 127.5 - 1
    return colour.expand(3, count, height, width)


def ramp(count: int, width: int = 32, height: int = 16) -> torch.Tensor:
    """(3, count, height, width) gray frames, each with its own brightness."""
    return torch.linspace(-0.8, 0.8, count).view(1, count, 1, 1).expand(3, -1, height, width)


def picture(planes: Sequence[np.ndarray], width: int, height: int, fmt: str) -> av.VideoFrame:
    """A frame of this pixel format whose planes hold these samples, cut or constant."""
    frame = av.VideoFrame(width, height, fmt)
    for plane, samples in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // samples.itemsize), samples.dtype)
        shape = plane.height, plane.width
        rows[:, : plane.width] = np.broadcast_to(samples, shape)
        plane.update(rows.tobytes())
    return frame


def encode(
    path: Path,
    frames: Sequence[av.VideoFrame],
    *,
    codec: str = "ffv1",
    matrix: int = UNTAGGED,
    colour_range: int = LIMITED,
    rotation: int | None = None,
    rate: int = 25,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames as they are, through PyAV alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = colour_range
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for frame in frames:
            frame.colorspace, frame.color_range = matrix, colour_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def textbook(yuv: Sequence[float], kr: float, kb: float, colour_range: int) -> torch.Tensor:
    """RGB in [-1, 1] of 8 bit Y, Cb, Cr by the definition of the matrix (kr, kb)."""
    y, cb, cr = (value - offset for value, offset in zip(yuv, (0, 128, 128), strict=True))
    if colour_range == LIMITED:
        y, cb, cr = (y - 16) / 219, cb / 224, cr / 224
    else:
        y, cb, cr = y / 255, cb / 255, cr / 255
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return torch.tensor([red, green, blue]).clamp(0, 1) * 2 - 1


MATRICES = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), SMPTE170M: (0.299, 0.114)}


# Colours


@pytest.mark.parametrize("yuv", [(120, 90, 180), (60, 160, 110), (235, 128, 128), (16, 128, 128)])
@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", list(MATRICES))
@pytest.mark.parametrize("fmt", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p12le"])
def test_tagged_colours_follow_the_textbook(tmp_path, fmt, matrix, colour_range, yuv):
    deep = not fmt.endswith("p")
    bits = int(fmt.removesuffix("le")[-2:]) if deep else 8
    dtype = np.uint16 if deep else np.uint8
    scale = 2 ** (bits - 8) if colour_range == LIMITED else (2**bits - 1) / 255
    samples = [np.array(round(value * scale), dtype) for value in yuv]
    if colour_range == FULL:  # chroma is centred on the middle level at every depth
        samples[1:] = [
            np.array(2 ** (bits - 1) + round((value - 128) * scale), dtype) for value in yuv[1:]
        ]
    frame = picture(samples, 33, 17, fmt)
    path = encode(tmp_path / "a.mkv", [frame], matrix=matrix, colour_range=colour_range)
    video, info = read_video(path)
    assert video.shape == (3, 1, 17, 33)
    assert (info.width, info.height) == (33, 17)
    expected = textbook(yuv, *MATRICES[matrix], colour_range).view(3, 1, 1, 1)
    tolerance = 0.25 * STEP if deep else 1.01 * STEP
    assert (video - expected).abs().max() <= tolerance


@pytest.mark.parametrize(("height", "matrix"), [(480, BT601), (718, BT601), (720, BT709)])
def test_untagged_video_is_bt709_from_720_lines_on(tmp_path, height, matrix):
    yuv = 120, 90, 180
    frame = picture([np.array(value, np.uint8) for value in yuv], 32, height, "yuv420p")
    video, _ = read_video(encode(tmp_path / "a.mkv", [frame]))
    expected = textbook(yuv, *MATRICES[matrix], LIMITED).view(3, 1, 1, 1)
    assert (video - expected).abs().max() <= 1.01 * STEP


def test_yuvj_video_is_full_range(tmp_path):
    yuv = 120, 90, 180
    frame = picture([np.array(value, np.uint8) for value in yuv], 32, 16, "yuvj420p")
    path = encode(tmp_path / "a.mkv", [frame], codec="mjpeg", colour_range=FULL)
    expected = textbook(yuv, *MATRICES[BT601], FULL).view(3, 1, 1, 1)
    assert (read_video(path)[0] - expected).abs().max() <= 2.01 * STEP


@pytest.mark.parametrize(
    ("fmt", "colour_range", "sample", "level"),
    [
        ("gray", FULL, 200, 200 / 255),
        ("gray", LIMITED, 200, 184 / 219),
        ("gray10le", FULL, 700, 700 / 1023),
        ("gray10le", LIMITED, 700, (700 - 64) / 876),
        ("gray16le", FULL, 40000, 40000 / 65535),
        ("gbrp10le", FULL, 700, 700 / 1023),
        ("gbrp16le", FULL, 65535, 1.0),
    ],
)
def test_gray_and_deep_rgb_levels(tmp_path, fmt, colour_range, sample, level):
    dtype = np.uint8 if fmt == "gray" else np.uint16
    planes = [np.array(sample, dtype)] * (3 if fmt.startswith("gbr") else 1)
    frame = picture(planes, 33, 17, fmt)
    matrix = RGB if fmt.startswith("gbr") else UNTAGGED
    path = encode(tmp_path / "a.mkv", [frame], matrix=matrix, colour_range=colour_range)
    video, _ = read_video(path)
    assert video.shape == (3, 1, 17, 33)
    assert (video - (2 * level - 1)).abs().max() <= 0.2 * STEP


def test_ten_bit_video_keeps_more_than_eight_bits(tmp_path):
    luma = np.arange(64, 940, 2, dtype=np.uint16)
    middle = np.array(512, np.uint16)
    frame = picture([luma, middle, middle], luma.size, 16, "yuv444p10le")
    video, _ = read_video(encode(tmp_path / "a.mkv", [frame], matrix=BT709))
    row = video[0, 0, 0]
    assert row.unique().numel() == luma.size
    expected = torch.from_numpy((luma - 64.0) / 876 * 2 - 1)
    assert (row - expected).abs().max() <= 0.1 * STEP


# Writing and reading back


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("size", [(32, 16), (33, 17)])
def test_solid_colours_come_back_and_are_tagged(tmp_path, suffix, size):
    width, height = size
    path = tmp_path / f"a{suffix}"
    colours = [(0, 0, 0), (255, 255, 255), (200, 50, 90), (20, 180, 60), (30, 40, 220)]
    video = torch.cat([solid(*colour, width=width, height=height) for colour in colours], dim=1)
    write_video(path, video, NTSC, crf=1)
    back, info = read_video(path)
    assert back.shape == video.shape
    assert (back - video).abs().max() <= 3.01 * STEP
    assert (info.width, info.height, info.fps, info.is_image) == (width, height, NTSC, False)
    assert info.frames == len(colours)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == ("yuv420p" if size == (32, 16) else "yuv444p")
    assert (frame.colorspace, frame.color_range) == (BT709, LIMITED)
    assert (frame.color_primaries, frame.color_trc) == (BT709, BT709)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(1, 40), height=st.integers(1, 40), count=st.integers(1, 4))
def test_any_size_comes_back(tmp_path, width, height, count):
    path = tmp_path / "a.mp4"
    video = ramp(count, width, height)
    write_video(path, video, Fraction(24))
    back, info = read_video(path)
    assert back.shape == (3, count, height, width)
    assert (back - video).abs().max() <= 4 * STEP
    assert info.fps == 24


def test_chroma_is_not_shifted(tmp_path):
    red = torch.linspace(-0.5, 0.5, 64).view(1, 1, 1, 64).expand(1, 2, 48, -1)
    video = torch.cat([red, torch.full_like(red, -0.2), torch.full_like(red, -0.2)])
    write_video(tmp_path / "a.mp4", video, Fraction(25), crf=0)
    shift = (read_video(tmp_path / "a.mp4")[0] - video)[0, ..., 8:-8, 8:-8].mean()
    slope = 1 / 63  # a quarter of a pixel at most; siting mistakes shift by half of one
    assert abs(shift) < 0.25 * slope


def test_out_of_range_values_are_clamped(tmp_path):
    write_video(tmp_path / "a.png", solid(0, 128, 255) * 3, Fraction(1))
    back, _ = read_video(tmp_path / "a.png")
    assert (back.amin(), back.amax()) == (-1, 1)


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(25), NTSC, Fraction(24000, 1001)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rate_and_times_are_exact(tmp_path, fps, suffix):
    path = tmp_path / f"a{suffix}"
    write_video(path, ramp(5), fps)
    tolerance = 1e-9 if suffix == ".mp4" else 1e-3  # Matroska counts milliseconds
    with VideoReader(path) as reader:
        assert reader.info.fps == fps
        times = [frame.time for frame in reader]
    assert times == pytest.approx([float(index / fps) for index in range(5)], abs=tolerance)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 2e-5), (".mkv", 1.1e-3)])
def test_variable_times_come_back(tmp_path, suffix, tolerance):
    path, times = tmp_path / f"a{suffix}", [0.0, 0.031, 0.2, 0.2345, 0.9, 2.5]
    video = ramp(6)
    with VideoWriter(path, width=32, height=16, fps=Fraction(25)) as writer:
        writer.write(video[:, :2], times[:2])
        writer.write(video[:, 2:], times[2:])
    with VideoReader(path) as reader:
        frames = list(reader)
    assert [frame.time for frame in frames] == pytest.approx(times, abs=tolerance)
    for frame, original in zip(frames, video.unbind(1), strict=True):
        assert (frame.image - original).abs().max() <= 4 * STEP


def test_times_closer_than_a_tick_stay_apart(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width=32, height=16, fps=Fraction(25)) as writer:
        writer.write(ramp(3), [0.0, 1e-7, 2e-7])
    with VideoReader(path) as reader:
        times = [frame.time for frame in reader]
    assert times[0] < times[1] < times[2] < 1e-3


@pytest.mark.parametrize("fps", [Fraction(0), Fraction(1, 10**9), Fraction(2**31)])
def test_an_impossible_rate_is_refused(tmp_path, fps):
    with pytest.raises(VideoError, match="fps 1/1000 to 10000"):
        VideoWriter(tmp_path / "a.mp4", width=32, height=32, fps=fps)


def test_raw_stream_times_follow_the_rate(tmp_path):
    frames = [picture([np.array(128, np.uint8)] * 3, 32, 16, "yuv420p") for _ in range(4)]
    path = encode(tmp_path / "a.h264", frames, codec="libx264", rate=50)
    with VideoReader(path) as reader:
        assert (reader.info.fps, reader.info.frames) == (50, None)
        assert [frame.time for frame in reader] == pytest.approx([0, 0.02, 0.04, 0.06])
    assert read_clip(path, 0.04, 2).shape == (3, 2, 16, 32)


# Still images


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".png", 0.51), (".webp", 0.51), (".jpg", 3.01), (".jpeg", 3.01)]
)
def test_images_come_back(tmp_path, suffix, tolerance):
    path = tmp_path / f"a{suffix}"
    image = solid(200, 50, 90, width=33, height=17)
    write_video(path, image, Fraction(25))
    back, info = read_video(path)
    assert (back - image).abs().max() <= tolerance * STEP
    assert (info.width, info.height, info.fps, info.frames) == (33, 17, 1, 1)
    assert info.is_image


def test_tall_jpeg_is_read_with_the_matrix_of_jpeg(tmp_path):
    image = solid(200, 50, 90, width=16, height=720)
    write_video(tmp_path / "a.jpg", image, Fraction(1))
    assert (read_video(tmp_path / "a.jpg")[0] - image).abs().max() <= 3.01 * STEP


@pytest.mark.parametrize(("fmt", "samples"), [("rgba", (200, 50, 90, 51)), ("gray", (90,))])
def test_alpha_is_laid_on_black_and_gray_becomes_rgb(tmp_path, fmt, samples):
    shape = (17, 33, 4) if fmt == "rgba" else (17, 33)
    array = np.broadcast_to(np.array(samples, np.uint8), shape)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=fmt)
    path = encode(tmp_path / "a.png", [frame], codec="png", matrix=RGB, colour_range=FULL)
    # The alpha is a fifth.
    colour = [level / 5 for level in samples[:3]] if fmt == "rgba" else samples * 3
    told = pytest.warns(UserWarning, match="laid on black") if fmt == "rgba" else nullcontext()
    with told:
        found = read_video(path)[0]
    assert torch.allclose(found, solid(*colour, width=33, height=17), atol=1e-6)


def test_an_image_holds_one_frame(tmp_path):
    with pytest.raises(VideoError, match="one frame"):
        write_video(tmp_path / "a.png", ramp(2), Fraction(1))
    with (
        pytest.raises(VideoError, match="one frame"),
        VideoWriter(tmp_path / "a.png", width=32, height=16, fps=Fraction(1)) as writer,
    ):
        writer.write(ramp(1))
        writer.write(ramp(1))
    assert not os.listdir(tmp_path)


# Rotation


def corners() -> np.ndarray:
    """A black (16, 32) picture with a white top left quarter and a gray bottom left one."""
    luma = np.full((16, 32), 16, np.uint8)
    luma[:8, :16], luma[8:, :16] = 235, 126
    return luma


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_display_matrix_turns_the_picture(tmp_path, rotation):
    middle = np.array(128, np.uint8)
    frame = picture([corners(), middle, middle], 32, 16, "yuv444p")
    options = {"crf": "0"}
    path = encode(tmp_path / "a.mp4", [frame], codec="libx264", rotation=rotation, options=options)
    turned = np.rot90((corners() - 16.0) / 219 * 2 - 1, rotation // 90)  # counter-clockwise
    video, info = read_video(path)
    assert (info.height, info.width) == turned.shape
    assert (video[:, 0] - torch.from_numpy(turned.copy())).abs().max() <= 1.01 * STEP


def test_exif_orientation_turns_the_picture(tmp_path):
    image = torch.from_numpy((corners() - 16.0) / 219 * 2 - 1).float().expand(3, 1, 16, 32)
    write_video(tmp_path / "a.jpg", image, Fraction(1))
    jpeg = (tmp_path / "a.jpg").read_bytes()
    # One TIFF entry: tag 0x112 (orientation), a short, 6: turn a quarter clockwise to display.
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, 6, 0, 0)
    segment = b"Exif\0\0" + tiff
    header = b"\xff\xe1" + struct.pack(">H", len(segment) + 2)
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + header + segment + jpeg[2:])
    upright, _ = read_video(tmp_path / "a.jpg")
    turned, info = read_video(tmp_path / "turned.jpg")
    assert (info.width, info.height) == (16, 32)
    assert torch.equal(turned, torch.rot90(upright, -1, dims=(2, 3)))


# Clips


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> tuple[Path, torch.Tensor, list[float]]:
    """100 frames with a keyframe every 10 and B frames between, and all of them as read."""
    path = tmp_path_factory.mktemp("long") / "a.mkv"
    video = ramp(100)
    pixels = ((video.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().contiguous().numpy()
    frames = [
        av.VideoFrame.from_ndarray(each, format="rgb24").reformat(format="yuv420p")
        for each in pixels
    ]
    encode(path, frames, codec="libx264", options={"g": "10", "bf": "3", "crf": "10"})
    with VideoReader(path) as reader:
        decoded = list(reader)
    return path, torch.stack([f.image for f in decoded], 1), [f.time for f in decoded]


@pytest.mark.parametrize("first", [0, 1, 9, 10, 11, 57, 97])
@pytest.mark.parametrize("stride", [1, 2])
def test_clip_equals_that_part_of_the_whole(long_video, first, stride):
    path, video, times = long_video
    count = min(5, len(range(first, 100, stride)))
    expected = video[:, first : first + count * stride : stride]
    for start in (times[first], first / 25):
        assert torch.equal(read_clip(path, start, count, stride), expected)


def test_clip_does_not_decode_from_the_beginning(long_video, monkeypatch):
    path, _, times = long_video
    decoded = []
    timed = VideoReader._timed

    def counted(self, decoder, frames):
        for time, frame in timed(self, decoder, frames):
            decoded.append(time)
            yield time, frame

    monkeypatch.setattr(VideoReader, "_timed", counted)
    read_clip(path, times[95], 2)
    assert len(decoded) <= 12


def test_clip_past_the_end_says_how_many_there_are(long_video):
    path, _, times = long_video
    with pytest.raises(VideoError, match=r"5 frames asked .* only 3 are there"):
        read_clip(path, times[97], 5)
    with pytest.raises(VideoError, match="only 0 are there"):
        read_clip(path, 1e4, 1)
    with pytest.raises(VideoError, match="start -1"):
        read_clip(path, -1, 1)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_the_frame_count_does_not_depend_on_when_the_first_is_shown(tmp_path, suffix):
    path = tmp_path / f"late{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for index in range(20):
            frame = av.VideoFrame(32, 16, "yuv420p")
            frame.pts, frame.time_base = 10 + index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe(path).frames == read_video(path)[0].shape[1] == 20


@pytest.mark.parametrize("suffix", [".ts", ".avi", ".mp4"])
def test_clip_from_other_containers(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    blocks = [np.array(16 + 4 * index, np.uint8) for index in range(50)]
    middle = np.array(128, np.uint8)
    frames = [picture([block, middle, middle], 32, 16, "yuv420p") for block in blocks]
    bframes = "0" if suffix == ".avi" else "2"
    encode(path, frames, codec="libx264", options={"g": "12", "bf": bframes})
    video, _ = read_video(path)
    for first in (5, 24, 35):
        assert torch.equal(read_clip(path, first / 25, 3), video[:, first : first + 3])


def test_part_of_a_file_reads_as_a_file_does(long_video, tmp_path):
    path, video, times = long_video
    content = path.read_bytes()
    image = tmp_path / "a.png"
    write_video(image, solid(9, 90, 250), Fraction(1))
    picture = image.read_bytes()
    # A name that would mean something to FFmpeg if it were not quoted.
    container = tmp_path / "a:b,,:c%03d.tar"
    container.write_bytes(bytes(700) + content + picture + bytes(99))
    part = FilePart(container, "clip.mkv", 700, len(content))
    assert probe(part) == probe(path)
    assert torch.equal(read_video(part)[0], video)
    assert torch.equal(read_clip(part, times[57], 5, 2), video[:, 57:67:2])
    still = FilePart(container, "still.png", 700 + len(content), len(picture))
    assert probe(still) == probe(image)
    assert torch.equal(read_video(still)[0], read_video(image)[0])


# Damaged and unsuitable input


def noisy_video(path: Path, count: int = 50) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (count, 48, 48, 3), dtype=np.uint8)
    frames = [
        av.VideoFrame.from_ndarray(each, format="rgb24").reformat(format="yuv420p")
        for each in noise
    ]
    return encode(path, frames, codec="libx264", options={"preset": "ultrafast"})


BAD_FILES = {
    "missing.mp4": lambda path: None,
    "directory.mp4": lambda path: path.mkdir(),
    "empty.mp4": lambda path: path.write_bytes(b""),
    "empty.png": lambda path: path.write_bytes(b""),
    "text.mp4": lambda path: path.write_text("not a video\n" * 99),
    "sound.wav": write_sound,
    # The index is at the end of an mp4: cut, there is nothing to find the frames by.
    "headless.mp4": lambda path: path.write_bytes(noisy_video(path).read_bytes()[:20000]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_clear_line(tmp_path, capfd, name):
    path = tmp_path / name
    BAD_FILES[name](path)
    capfd.readouterr()
    for read in (probe, read_video):
        with pytest.raises(VideoError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"cannot read {path}: ") and "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("suffix", "options"), [(".mkv", ""), (".mp4", "+faststart")])
def test_cut_file_gives_its_good_frames_and_a_warning(tmp_path, suffix, options):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    noisy_video(tmp_path / "source.mkv")
    with av.open(str(tmp_path / "source.mkv")) as source:
        flags = {"movflags": options} if options else {}
        with av.open(str(whole), "w", options=flags) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="damaged or cut short") as caught:
        video, _ = read_video(path)
    assert len(caught) == 1
    assert 15 <= video.shape[1] <= 30
    original, _ = read_video(whole)
    good = video.shape[1] - 4  # frames next to the damage may be patched up
    assert torch.equal(video[:, :good], original[:, :good])


def test_part_past_the_end_of_its_file_is_one_clear_line(tmp_path):
    container = tmp_path / "a.tar"
    container.write_bytes(bytes(700))
    with pytest.raises(VideoError, match=r"^cannot read .*a\.tar/clip\.mp4: ") as caught:
        probe(FilePart(container, "clip.mp4", 900, 100))
    assert "\n" not in str(caught.value)


def test_stopping_early_is_no_damage(long_video):
    with warnings.catch_warnings(), VideoReader(long_video[0]) as reader:
        warnings.simplefilter("error")
        next(reader)
    assert list(reader) == []


# Failures while writing


def write_some(path: Path) -> None:
    write_video(path, ramp(3), Fraction(25))


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, b"precious"])
def test_an_exception_leaves_what_was_there(tmp_path, failure, before):
    path = tmp_path / "a.mp4"
    if before is not None:
        path.write_bytes(before)
    with (
        pytest.raises(failure),
        VideoWriter(path, width=32, height=16, fps=Fraction(25)) as writer,
    ):
        writer.write(ramp(3))
        assert len(os.listdir(tmp_path)) == 1 + (before is not None)
        raise failure
    assert os.listdir(tmp_path) == ([] if before is None else ["a.mp4"])
    assert before is None or path.read_bytes() == before


def test_the_name_appears_only_when_complete(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width=32, height=16, fps=Fraction(25)) as writer:
        writer.write(ramp(3))
        assert not path.exists()
    assert os.listdir(tmp_path) == ["a.mp4"]
    with pytest.raises(VideoError, match="already closed"):
        writer.write(ramp(1))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/a.mp4", "does not exist; create it first"),
        ("directory.mp4", "is a directory"),
        ("a.xyz", r"suffix is '\.xyz'; use one of \.mp4"),
        ("a", "suffix is ''"),
        ("n" * 300 + ".mp4", "name too long"),
    ],
)
def test_unwritable_targets(tmp_path, name, reason):
    (tmp_path / "directory.mp4").mkdir()
    with pytest.raises(VideoError, match=f"(?i)cannot write .*{reason}"):
        write_some(tmp_path / name)
    assert os.listdir(tmp_path) == ["directory.mp4"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder nobody can write to")
def test_folder_that_takes_no_files():
    with pytest.raises(VideoError, match=r"cannot write /proc/self/a\.mp4: "):
        write_some(Path("/proc/self/a.mp4"))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".png", ".gif", ".npy", ".y4m"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.99])
def test_full_disk(tmp_path, suffix, share):
    resource = pytest.importorskip("resource")  # a file size limit stands in for a full disk
    count = 1 if suffix == ".png" else 20
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, count, 64, 64, generator=generator) * 2 - 1
    write_video(tmp_path / f"whole{suffix}", noise, Fraction(25))
    size = (tmp_path / f"whole{suffix}").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), hard))
    try:
        with pytest.raises(VideoError, match=r"cannot write .*a\.[a-z0-9]+: File too large"):
            write_video(tmp_path / f"a{suffix}", noise, Fraction(25))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == [f"whole{suffix}"]


def test_wrong_arguments_say_what_is_right(tmp_path):
    path = tmp_path / "a.mp4"
    with (
        pytest.raises(VideoError, match="no frames"),
        VideoWriter(path, width=32, height=16, fps=Fraction(25)),
    ):
        pass
    for wrong in (solid(0, 0, 0)[:, 0], solid(0, 0, 0, width=30), solid(0, 0, 0)[:2]):
        with (
            pytest.raises(VideoError, match=r"must be \(3, T, 16, 32\)"),
            VideoWriter(path, width=32, height=16, fps=Fraction(25)) as writer,
        ):
            writer.write(wrong)
    for times, reason in (([0.0], "give one each"), ([0.5, 0.5], "must increase")):
        with (
            pytest.raises(VideoError, match=reason),
            VideoWriter(path, width=32, height=16, fps=Fraction(25)) as writer,
        ):
            writer.write(ramp(2), times)
    for fps, crf in ((Fraction(0), 18), (Fraction(25), 52)):
        with pytest.raises(VideoError, match="must be positive"):
            write_video(path, ramp(1), fps, crf)
    assert not os.listdir(tmp_path)


# Real recordings


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared recordings here")
def test_real_recordings_read():
    path = sorted(SHARED.glob("asl-*.mkv"))[0]
    with VideoReader(path) as reader:
        frame = next(reader)
        info = reader.info
    assert frame.image.shape == (3, info.height, info.width)
    assert frame.time == 0 and frame.image.std() > 0.05
    assert torch.equal(read_clip(path, 0.2, 2)[:, 0], read_clip(path, 0.2, 1)[:, 0])
