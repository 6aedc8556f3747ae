"""Frames of real files: sought, joined, damaged, mirrored, without a duration."""

import gc
import struct
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wanvae.cli import main
from wanvae.folders.manifest import load_entries
from wanvae.video import VideoError, VideoReader, probe, read_clip, read_video, write_video
from wanvae.video.clock import increasing, on_grid
from wanvae.video.reading.codec import decoder_of
from wanvae.video.reading.decoder import Withheld

BITS, BAR, HEIGHT = 8, 16, 64
RATE = 25
X264 = {"x264-params": "log-level=none"}


def picture(number: int, size: tuple[int, int] = (BITS * BAR, HEIGHT)) -> av.VideoFrame:
    """A frame that shows its number as black and white bars."""
    bars = [235 if number >> bit & 1 else 20 for bit in range(BITS)]
    row = np.repeat(np.array(bars, np.uint8), BAR)
    pixels = np.broadcast_to(row[None, :, None], (HEIGHT, row.size, 3))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(width=size[0], height=size[1])


def number_of(image: torch.Tensor) -> int:
    """The number that an image (3, H, W) shows."""
    levels = image.mean(dim=(0, 1)).view(BITS, BAR)[:, 4:-4].mean(1)
    return sum(1 << bit for bit, level in enumerate(levels) if level > 0)


def encode(
    path: Path,
    codec: str,
    times: Sequence[int] = range(60),
    *,
    options: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    rate: int = RATE,
    scale: int = 1,
    trc: int | None = None,
) -> Path:
    """Writes numbered frames at `times`, in units of 1 / (rate * scale) seconds."""
    with av.open(str(path), "w", options=flags or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = BITS * BAR, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate * scale)
        if trc is not None:
            stream.codec_context.color_trc = trc
        for number, time in enumerate(times):
            frame = picture(number).reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, rate * scale)
            if trc is not None:
                frame.color_trc = trc
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path: Path, strict: bool = False) -> list[tuple[int, float]]:
    """The numbers and times of the frames of a file."""
    with VideoReader(path, strict=strict) as reader:
        return [(number_of(frame.image), frame.time) for frame in reader]


# Any seek gives the frame that reading through gives

KINDS = [
    ("mp4", "libx264", {"bf": "2"}),
    ("mp4", "libx264", {"bf": "3", "x264-params": "log-level=none:open-gop=1:b-pyramid=normal"}),
    ("mkv", "libx264", {"bf": "2"}),
    ("mkv", "mpeg4", {"bf": "2"}),
    ("mkv", "mpeg2video", {"bf": "2"}),
    ("avi", "libx264", {"bf": "2"}),
    ("avi", "mpeg4", {"bf": "2"}),
    ("avi", "mpeg4", {"bf": "0"}),
    ("mpg", "mpeg2video", {"bf": "2", "b": "40000"}),
    ("mpg", "mpeg1video", {"bf": "2", "b": "60000"}),
    ("ts", "libx264", {"bf": "3"}),
    ("ts", "mpeg2video", {"bf": "2"}),
    ("flv", "libx264", {"bf": "2"}),
    ("webm", "libvpx", {}),
    ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
]


@pytest.mark.parametrize(("suffix", "codec", "options"), KINDS)
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    distance=st.sampled_from([1, 10, 12, 250]),
    late=st.sampled_from([0, 7]),
    starts=st.lists(st.integers(0, 55), min_size=4, max_size=8),
)
def test_a_seek_gives_what_reading_through_gives(
    tmp_path: Path,
    suffix: str,
    codec: str,
    options: dict[str, str],
    distance: int,
    late: int,
    starts: list[int],
) -> None:
    late = 0 if suffix == "avi" else late  # AVI has no times
    path, options = tmp_path / f"a.{suffix}", {**options, "g": str(distance)}
    if codec == "libx264":
        options = {**X264, **options}
    encode(path, codec, range(late, late + 60), options=options)
    through = frames_of(path)
    assert [number for number, _ in through] == list(range(60))
    # FFmpeg guesses the times of frames that share a packet of an MPEG program stream.
    rounding = 1.001 / RATE if suffix == "mpg" else 1e-9
    expected = [n / RATE for n in range(60)]
    assert [time for _, time in through] == pytest.approx(expected, abs=rounding)
    assert probe(path).frames == 60
    with VideoReader(path) as reader:
        for start in starts:
            clip = read_clip(path, through[start][1], 3)
            assert [number_of(image) for image in clip.unbind(1)] == [start, start + 1, start + 2]
            reader.seek(through[start][1] if suffix == "mpg" else Fraction(start, RATE))
            frame = next(reader)
            assert (number_of(frame.image), frame.time) == through[start]


# Times


@given(
    times=st.lists(
        st.one_of(st.none(), st.integers(0, 50).map(lambda n: Fraction(n, 25))), max_size=20
    )
)
def test_times_always_increase_and_good_times_stay(times: list[Fraction | None]) -> None:
    found = list(increasing(((time, n) for n, time in enumerate(times)), Fraction(1, 25)))
    assert [number for _, number in found] == list(range(len(times)))
    assert all(a < b for (a, _), (b, _) in pairwise(found))
    good = [time for time in times if time is not None]
    if len(good) == len(times) and all(a < b for a, b in pairwise(good)):
        assert [time for time, _ in found] == good


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30), Fraction(24000, 1001), Fraction(60)])
def test_times_in_milliseconds_become_those_of_the_rate(tmp_path: Path, rate: Fraction) -> None:
    path = tmp_path / "a.mkv"
    write_video(path, torch.zeros(3, 70, 16, 16), rate)
    with VideoReader(path) as reader:
        assert reader.info.fps == rate
        assert [frame.time for frame in reader] == [float(n / rate) for n in range(70)]


def test_times_that_are_not_of_the_rate_stay() -> None:
    tick = Fraction(1, 1000)
    assert on_grid(Fraction(40, 1000), Fraction(30), tick) == Fraction(40, 1000)
    assert on_grid(Fraction(33, 1000), Fraction(30), tick) == Fraction(1, 30)
    assert on_grid(Fraction(33, 1000), Fraction(500), tick) == Fraction(33, 1000)


@pytest.mark.parametrize("suffix", ["mpg", "ts"])
def test_joined_recordings_go_on(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg2video" if suffix == "mpg" else "libx264"
    path = encode(tmp_path / f"a.{suffix}", codec, range(24), options={"bf": "2", "g": "10"})
    path.write_bytes(2 * path.read_bytes())
    with pytest.warns(UserWarning, match="clock restarts or jumps") as caught:
        found = frames_of(path, strict=True)
    assert len(caught) == 1
    assert [number for number, _ in found] == [*range(24), *range(24)]
    assert [time for _, time in found] == pytest.approx([n / RATE for n in range(48)])
    assert probe(path).frames == 48
    with pytest.warns(UserWarning, match="clock"), VideoReader(path) as reader:
        assert len(list(reader.at_rate(Fraction(RATE)))) == 48
    with pytest.warns(UserWarning, match="clock"):
        clip = read_clip(path, 40 / RATE, 3)
    assert [number_of(image) for image in clip.unbind(1)] == [16, 17, 18]


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_one_time_that_is_far_off_moves_one_frame(tmp_path: Path, bframes: str) -> None:
    encode(tmp_path / "a.mkv", "libx264", options={**X264, "bf": bframes})
    path = tmp_path / "spike.mkv"
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.dts = stream, number
            if packet.pts == 1200:
                packet.pts = 21_000
            target.mux(packet)
    found = frames_of(path)
    assert [number for number, _ in found] == list(range(60))
    assert [time for _, time in found] == pytest.approx([n / RATE for n in range(60)], abs=1e-9)


def test_a_pause_stays(tmp_path: Path) -> None:
    times = [*range(10), *range(500, 510)]
    found = frames_of(encode(tmp_path / "a.mkv", "libx264", times, options=X264))
    assert [time for _, time in found] == pytest.approx([n / RATE for n in times])


def test_a_change_of_size_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mjpeg"
    with path.open("wb") as file:
        for number in range(6):
            frame = picture(number, (BITS * BAR, HEIGHT) if number < 3 else (64, 32))
            with av.open(str(tmp_path / "one.jpg"), "w", format="image2") as container:
                stream = container.add_stream("mjpeg")
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuvj444p"
                container.mux(stream.encode(frame.reformat(format="yuvj444p")))
                container.mux(stream.encode(None))
            file.write((tmp_path / "one.jpg").read_bytes())
    with pytest.warns(UserWarning, match="size changes from 128x64 to 64x32 at 0.1") as caught:
        found = frames_of(path)
    assert len(caught) == 1
    assert [number for number, _ in found] == list(range(6))


# Length


@pytest.mark.parametrize("codec", ["libvpx", "libx264"])
def test_frames_are_counted_where_the_header_does_not(tmp_path: Path, codec: str) -> None:
    suffix = "webm" if codec == "libvpx" else "mkv"
    path = encode(tmp_path / f"a.{suffix}", codec, flags={"live": "1"})
    with VideoReader(path) as reader:
        assert reader.info.frames is None
    assert probe(path).frames == 60


def test_the_average_rate_is_of_all_frames(tmp_path: Path) -> None:
    times = [*range(30), *(30 + 10 * n for n in range(30))]
    info = probe(encode(tmp_path / "a.mkv", "libx264", times, options=X264))
    assert info.frames == 60
    assert float(info.fps) == pytest.approx(59 / (times[-1] / RATE), rel=1e-3)


# Damage


def noisy(path: Path, codec: str, options: dict[str, str], pixel_format: str = "yuv420p") -> Path:
    """60 frames of noise, so that each takes many bytes."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixel_format
        for _ in range(60):
            pixels = random.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pixel_format)))
        container.mux(stream.encode(None))
    return path


def zero_the_middle(content: bytes) -> bytes:
    begin, end = len(content) * 2 // 5, len(content) * 3 // 5
    return content[:begin] + bytes(end - begin) + content[end:]


def first_part(content: bytes) -> bytes:
    return content[: len(content) * 3 // 5]


@pytest.mark.parametrize("damage", [zero_the_middle, first_part])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mkv", "libx264"), ("mp4", "libx264"), ("avi", "mpeg4"), ("ts", "libx264")],
)
def test_broken_frames_are_no_frames(tmp_path: Path, suffix: str, codec: str, damage) -> None:
    if (suffix, damage) in (("mp4", first_part), ("ts", first_part)):
        pytest.skip("an MP4 without its index is no video; a TS that ends is a whole TS")
    options = {"g": "250", "bf": "0", **(X264 if codec == "libx264" else {})}
    whole = noisy(tmp_path / f"whole.{suffix}", codec, options)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(damage(whole.read_bytes()))
    with pytest.warns(UserWarning, match="damaged or cut short") as caught:
        found = read_video(path)[0]
    assert len(caught) == 1
    original = read_video(whole)[0]
    assert 15 <= found.shape[1] <= 40
    assert torch.equal(found, original[:, : found.shape[1]])
    with pytest.raises(VideoError, match="damaged or cut short"), warnings.catch_warnings():
        warnings.simplefilter("error")
        frames_of_strict(path)


def frames_of_strict(path: Path) -> Iterator[torch.Tensor]:
    with VideoReader(path, strict=True) as reader:
        return [frame.image for frame in reader]


def damaged_copies(whole: Path, count: int) -> Iterator[Path]:
    """Copies of a video of which one byte, or some, are others."""
    random = np.random.default_rng(0)
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    content = np.frombuffer(whole.read_bytes(), np.uint8)
    for _ in range(count):
        packet = packets[random.integers(2, len(packets) - 1)]
        assert packet.pos is not None
        copy, at = content.copy(), packet.pos + packet.size // 2
        damage = copy[at : at + random.integers(1, 100)]
        damage ^= random.integers(1, 256, damage.size, dtype=np.uint8)
        path = whole.with_name(f"damaged{whole.suffix}")
        path.write_bytes(copy.tobytes())
        yield path


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [
        ("webm", "libvpx-vp9", "yuv420p"),
        ("wmv", "wmv2", "yuv420p"),
        ("avi", "msmpeg4", "yuv420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("mov", "png", "rgb24"),
    ],
)
def test_damage_inside_a_frame_is_told(
    tmp_path: Path, suffix: str, codec: str, pixel_format: str
) -> None:
    """Each codec tells of most damage, and no frame from behind the damage is given."""
    options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {}
    whole = noisy(tmp_path / f"whole.{suffix}", codec, options, pixel_format)
    with VideoReader(whole, strict=True) as reader:
        original = [(frame.time, frame.image) for frame in reader]
    seen = 0
    for path in damaged_copies(whole, 8):
        with warnings.catch_warnings(record=True) as caught, VideoReader(path) as reader:
            warnings.simplefilter("always")
            found = [(frame.time, frame.image) for frame in reader]
        if not caught:
            continue
        seen += 1
        assert "damaged or cut short" in str(caught[0].message)
        assert len(found) < len(original)
        assert [time for time, _ in found] == [time for time, _ in original[: len(found)]]
        same = [torch.equal(a, b) for (_, a), (_, b) in zip(found, original, strict=False)]
        assert all(same[:-1])
        with pytest.raises(VideoError, match="damaged or cut short"):
            frames_of_strict(path)
    assert seen >= 6


@pytest.mark.parametrize(
    ("pixel_format", "name"),
    [("yuv420p", "libvpx-vp9"), ("yuv444p", "libvpx-vp9"), ("yuv420p10le", "vp9")],
)
def test_deep_vp9_keeps_the_decoder_that_every_build_has(pixel_format: str, name: str) -> None:
    context = av.CodecContext.create("vp9", "r")
    context.width, context.height, context.pix_fmt = 16, 16, pixel_format
    assert decoder_of(SimpleNamespace(codec_context=context, metadata={})).name == name


@pytest.mark.parametrize(("lost", "found"), [(0, None), (1, None), (2, 23), (9, 29)])
def test_frames_that_the_decoder_passes_over_are_damage(
    tmp_path: Path, lost: int, found: int | None
) -> None:
    """A second field has no frame, so one packet without a frame is no sign."""
    path = encode(tmp_path / "a.mkv", "libx264", options={**X264, "bf": "2", "g": "24"})
    withheld, missing = Withheld(), []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            withheld.expect(packet)
            for frame in packet.decode():
                number = round(frame.time * RATE)
                if not 20 <= number < 20 + lost and withheld.come_before(frame):
                    missing.append(number)
    assert missing == ([] if found is None else [found])
    assert withheld.is_known and not withheld.come_last()


def test_a_file_that_is_cut_short_promises_what_its_header_does(tmp_path: Path) -> None:
    path = noisy(tmp_path / "a.mkv", "libx264", X264)
    path.write_bytes(first_part(path.read_bytes()))
    assert probe(path).frames == 60


def test_a_recording_that_begins_between_keyframes(tmp_path: Path) -> None:
    gop = {"bf": "0", "g": "20", "sc_threshold": "0"}
    path = encode(tmp_path / "a.ts", "libx264", options={**X264, **gop})
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 5:
                packet.stream = stream
                target.mux(packet)
    with pytest.warns(UserWarning, match="begins between keyframes"):
        found = frames_of(tmp_path / "b.ts", strict=True)
    assert [number for number, _ in found] == list(range(20, 60))
    assert found[0][1] == 0


# Orientation and colours

UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image.flip(-1),
    3: lambda image: image.flip(-1, -2),
    4: lambda image: image.flip(-2),
    5: lambda image: image.mT,
    6: lambda image: image.mT.flip(-1),
    7: lambda image: image.mT.flip(-1, -2),
    8: lambda image: image.mT.flip(-2),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_all_orientations_of_exif(tmp_path: Path, orientation: int) -> None:
    image = torch.rand(3, 1, 2, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = image.repeat_interleave(16, 2).repeat_interleave(16, 3)
    write_video(tmp_path / "a.jpg", image, Fraction(1))
    jpeg = (tmp_path / "a.jpg").read_bytes()
    # One TIFF entry: tag 0x112 (orientation), a short.
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    header = b"\xff\xe1" + struct.pack(">H", len(segment) + 2)
    (tmp_path / "b.jpg").write_bytes(jpeg[:2] + header + segment + jpeg[2:])
    expected = UPRIGHT[orientation](read_video(tmp_path / "a.jpg")[0])
    found, info = read_video(tmp_path / "b.jpg")
    assert (info.height, info.width) == expected.shape[2:]
    assert torch.equal(found, expected)


READ_AND_COLLECT = """
import gc, sys
from wanvae.video import read_video
for _ in range(5):
    print(*read_video(sys.argv[1])[0][:, 0, 0, 0].tolist())
    gc.collect()
"""


def test_pictures_with_a_colour_profile_are_read(tmp_path: Path) -> None:
    """PyAV frees the name of the profile twice, which would end the process: hence another one."""
    image = pytest.importorskip("PIL.Image").new("RGB", (16, 16), (255, 0, 255))
    image.save(tmp_path / "a.png", icc_profile=bytes(400))
    command = [sys.executable, "-c", READ_AND_COLLECT, str(tmp_path / "a.png")]
    read = subprocess.run(command, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    assert read.stdout == 5 * "1.0 -1.0 1.0\n"


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_display_matrices_that_mirror(
    tmp_path: Path, degrees: int, mirrored: bool, codec: str
) -> None:
    path = tmp_path / "a.mp4"
    image = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = image.repeat_interleave(16, 1).repeat_interleave(16, 2)
    image = image[:, :31, :61]  # an odd size, too
    pixels = ((image.permute(1, 2, 0) + 1) * 127.5).byte().contiguous().numpy()
    options = X264 if codec == "libx264" else {"lossless": "1"}
    for name, turned in (("plain.mp4", False), ("a.mp4", True)):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=RATE, options=options)
            stream.width, stream.height, stream.pix_fmt = 61, 31, "yuv444p"
            if turned:
                stream.set_display_rotation(degrees, hflip=mirrored)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv444p")))
            container.mux(stream.encode(None))
    expected = torch.rot90(read_video(tmp_path / "plain.mp4")[0], degrees // 90, dims=(2, 3))
    found = read_video(path)[0]
    assert torch.equal(found, expected.flip(-1) if mirrored else expected)


@pytest.mark.parametrize(("trc", "name"), [(16, "PQ"), (18, "HLG"), (1, None)])
@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_hdr_is_told_once(
    tmp_path: Path,
    suffix: str,
    codec: str,
    trc: int,
    name: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = X264 if codec == "libx264" else {}
    path = encode(tmp_path / f"a.{suffix}", codec, range(5), options=options, trc=trc)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert probe(path).hdr == name
        assert [entry.hdr for entry in load_entries(tmp_path)] == [name]
        assert main(["index", str(tmp_path)]) == 0
        assert ("1 are HDR or have wide colours" in capsys.readouterr().out) == bool(name)
        assert not caught
        frames_of(path)
    assert [name in str(warning.message) for warning in caught] == ([True] if name else [])


@pytest.mark.parametrize("at_rate", [False, True])
def test_a_closed_reader_is_freed_at_once(tmp_path: Path, at_rate: bool) -> None:
    """Threads of a decoder that the garbage collector frees in a forked process hang there."""
    path = encode(tmp_path / "a.mp4", "libx264", range(5), options=X264)
    gc.collect()
    gc.disable()
    try:
        reader = VideoReader(path)
        next(reader.at_rate(Fraction(10)) if at_rate else reader)
        source = weakref.ref(reader._source)
        reader.close()
        del reader
        assert source() is None
    finally:
        gc.enable()


# Numbered images


def write_numbered(folder: Path, count: int, suffix: str = ".png", first: int = 0) -> str:
    """Writes so many pictures that show their number, and returns their pattern."""
    for number in range(first, first + count):
        image = torch.from_numpy(picture(number).to_ndarray(format="rgb24")).permute(2, 0, 1)
        write_video(folder / f"{number:05}{suffix}", image[:, None] / 127.5 - 1, Fraction(1))
    return str(folder / f"%05d{suffix}")


@pytest.mark.parametrize("rate", ["12", "24000/1001", "0.5"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_numbered_images_are_a_video_of_the_rate_that_is_given(
    tmp_path: Path, rate: str, suffix: str
) -> None:
    fps = Fraction(rate)
    with VideoReader(write_numbered(tmp_path, 7, suffix), strict=True, fps=fps) as reader:
        assert (reader.info.fps, reader.info.frames, reader.info.is_image) == (fps, 7, False)
        frames = list(reader)
        assert [number_of(frame.image) for frame in frames] == list(range(7))
        assert [frame.time for frame in frames] == [float(number / fps) for number in range(7)]
        reader.seek(4 / fps)
        assert number_of(next(reader).image) == 4


def test_numbered_images_without_a_rate_are_said_to_have_25(tmp_path: Path) -> None:
    pattern = write_numbered(tmp_path, 3)
    with pytest.warns(UserWarning) as caught:
        video, info = read_video(pattern)
    (warning,) = caught
    assert "no frame rate; 25 frames per second are assumed" in str(warning.message)
    assert (info.fps, info.frames, video.shape[1], info.is_image) == (25, 3, 3, False)


def test_a_single_image_stays_a_still_image(tmp_path: Path) -> None:
    pattern = write_numbered(tmp_path, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (pattern, tmp_path / "00000.png"):
            assert probe(path).is_image and probe(path).frames == 1
    write_numbered(tmp_path, 3)
    assert probe(tmp_path / "00001.png").is_image


def test_colours_of_large_numbered_images_are_those_of_one_image(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(3, 1, 90, 4, generator=generator) * 2 - 1).repeat_interleave(8, dim=2)
    for number in range(2):
        write_video(tmp_path / f"{number}.jpg", image, Fraction(1))
    video, _ = read_video(tmp_path / "%d.jpg", fps=Fraction(5))
    still, _ = read_video(tmp_path / "0.jpg")
    assert torch.equal(video[:, :1], still)


@pytest.mark.parametrize("name", ["00000.png", "%05d.png", "video.mkv"])
def test_only_numbered_images_take_a_rate(tmp_path: Path, name: str) -> None:
    write_numbered(tmp_path, 1)
    encode(tmp_path / "video.mkv", "libx264", range(5), options=X264)
    with pytest.raises(VideoError, match=r"cannot be read at 12 frames per second: leave out fps"):
        VideoReader(tmp_path / name, fps=Fraction(12))


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("gap", [1, 3])
def test_numbered_images_after_a_gap_are_told(tmp_path: Path, first: int, gap: int) -> None:
    pattern = write_numbered(tmp_path, 6, first=first)
    (tmp_path / f"{first + gap:05}.png").unlink()
    fps = None if gap == 1 else Fraction(5)
    message = f"number {first + gap} of its images is missing, so {gap} of its 5 images are read"
    with (
        pytest.warns(UserWarning, match=message) as caught,
        VideoReader(pattern, fps=fps) as reader,
    ):
        assert [number_of(frame.image) for frame in reader] == list(range(first, first + gap))
        assert reader.info.frames == gap
    assert len(caught) == 1
    with pytest.raises(VideoError, match=message):
        VideoReader(pattern, fps=fps, strict=True)


@pytest.mark.parametrize("first", [5, 86399])
def test_numbered_images_begin_at_any_number(tmp_path: Path, first: int) -> None:
    pattern, fps = write_numbered(tmp_path, 4, first=first), Fraction(12)
    numbers = [number % 256 for number in range(first, first + 4)]
    video, info = read_video(pattern, fps=fps)
    assert [number_of(image) for image in video.unbind(1)] == numbers
    assert info == probe(pattern, fps=fps)
    assert (info.fps, info.frames) == (12, 4)
    clip = read_clip(pattern, 1 / 12, 2, fps=fps)
    assert [number_of(image) for image in clip.unbind(1)] == numbers[1:3]


def test_numbers_of_another_width_are_of_another_sequence(tmp_path: Path) -> None:
    for name in ("1", "2", "003", "004", "0005", "12"):
        write_video(tmp_path / f"{name}.png", torch.zeros(3, 1, 16, 16), Fraction(1))
    with pytest.warns(UserWarning, match="number 3 of its images is missing, so 2 of its 3"):
        assert probe(tmp_path / "%d.png", fps=Fraction(5)).frames == 2
    assert probe(tmp_path / "%03d.png", fps=Fraction(5)).frames == 2


def test_a_percent_sign_in_a_name_is_no_pattern(tmp_path: Path) -> None:
    write_video(tmp_path / "50%done.png", torch.zeros(3, 1, 16, 16), Fraction(1))
    assert probe(tmp_path / "50%done.png").is_image
    assert [entry.error for entry in load_entries(tmp_path)] == [None]
