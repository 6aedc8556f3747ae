"""As many frames come out as go in, with their times, and the last is shown as long as it was.

Files of all containers are written by PyAV, read, and written again. Frames show their number.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wanvae.video import VideoError, VideoReader, VideoWriter, probe

BITS, BAR, HEIGHT = 6, 8, 16
WIDTH = BITS * BAR
QUICK = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
X264 = {"x264-params": "log-level=none"}


def picture(number: int) -> np.ndarray:
    """A picture (H, W, 3) that shows its number as black and white bars."""
    bars = [235 if number >> bit & 1 else 20 for bit in range(BITS)]
    row = np.repeat(np.array(bars, np.uint8), BAR)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)))


def number_of(image: torch.Tensor) -> int:
    """The number that an image (3, H, W) shows."""
    levels = image.mean(dim=(0, 1)).view(BITS, BAR)[:, 2:-2].mean(1)
    return sum(1 << bit for bit, level in enumerate(levels) if level > 0)


@dataclass(frozen=True)
class Kind:
    """How files of a container are written for a test.

    Attributes:
        codec, pixels: encoder and pixel format.
        tick: seconds of a unit of its times.
        varies: whether its times may vary.
        starts: whether it may begin at another time than 0.
        options: options of the encoder.
    """

    codec: str
    pixels: str = "yuv420p"
    tick: Fraction = Fraction(1, 90_000)
    varies: bool = True
    starts: bool = True
    options: tuple[tuple[str, str], ...] = ()


B_FRAMES = (("bf", "2"), *X264.items())
KINDS = {
    "mp4": Kind("libx264", options=B_FRAMES),
    "mov": Kind("libx264", options=B_FRAMES),
    "mkv": Kind("libx264", tick=Fraction(1, 1000), options=B_FRAMES),
    "webm": Kind("libvpx-vp9", tick=Fraction(1, 1000), options=(("deadline", "realtime"),)),
    "avi": Kind("mpeg4", varies=False, starts=False, options=(("bf", "2"), ("b", "4M"))),
    "ts": Kind("libx264", options=B_FRAMES),
    "y4m": Kind("wrapped_avframe", varies=False, starts=False),
    "gif": Kind("gif", "rgb8", tick=Fraction(1, 100), starts=False),
}
OUTPUTS = {suffix: KINDS[suffix].tick for suffix in ("mp4", "mov", "mkv", "webm")}


def encode(path: Path, times: Sequence[Fraction], period: Fraction) -> None:
    """Writes numbered frames at ``times``, in seconds. A frame lasts ``period`` on average."""
    kind = KINDS[path.suffix[1:]]
    container_format = "yuv4mpegpipe" if path.suffix == ".y4m" else None
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(kind.codec, rate=1 / period, options=dict(kind.options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, kind.pixels
        base = kind.tick if kind.varies else period
        stream.codec_context.time_base = base
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame = frame.reformat(format=kind.pixels)
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read(path: Path) -> tuple[list[int], list[float], float]:
    """Numbers and times of the frames of a file, and its end."""
    with VideoReader(path, strict=True) as reader:
        frames = [(number_of(frame.image), frame.time) for frame in reader]
        return [n for n, _ in frames], [time for _, time in frames], float(reader.end)


def rewrite(source: Path, target: Path) -> None:
    """Reads and writes a file, as commands do."""
    with VideoReader(source, strict=True) as reader:
        info = reader.info
        with VideoWriter(target, width=info.width, height=info.height, fps=info.fps) as writer:
            for frame in reader:
                writer.write(frame.image[:, None], [frame.time])
            writer.end_at(float(reader.end))


def length_of(path: Path) -> float:
    """Seconds that a file says to last, as players show them."""
    with av.open(str(path)) as container:
        assert container.duration is not None
        return container.duration / av.time_base


# In hundredths of seconds. FFmpeg does not take fewer packets for an MPEG-TS.
steps = st.lists(st.integers(1, 40), min_size=4, max_size=40)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("suffix", KINDS)
@QUICK
@given(steps=steps, late=st.sampled_from([0, 3, 250]), rate=st.sampled_from([10, 25, 30]))
def test_frames_and_times_come_out_as_they_go_in(
    tmp_path: Path, suffix: str, output: str, steps: list[int], late: int, rate: int
) -> None:
    kind = KINDS[suffix]
    period = Fraction(1, rate)
    times = [Fraction(0), *accumulate(Fraction(step, 100) for step in steps)]
    if not kind.varies:
        times = [n * period for n in range(len(times))]
    start = Fraction(late, 100) if kind.starts else 0
    path, target = tmp_path / f"a.{suffix}", tmp_path / f"b.{output}"
    encode(path, [start + time for time in times], period)
    numbers, read_times, end = read(path)
    assert numbers == list(range(len(times)))
    assert read_times == pytest.approx([float(time) for time in times], abs=float(kind.tick))
    assert probe(path).frames == len(times)
    assert end > read_times[-1]
    rewrite(path, target)
    again, written, written_end = read(target)
    tick = float(OUTPUTS[output]) * 1.01
    assert again == numbers
    assert written == pytest.approx(read_times, abs=tick)
    assert written_end == pytest.approx(end, abs=tick)
    assert length_of(target) == pytest.approx(end, abs=tick)
    assert probe(target).frames == len(times)


@pytest.mark.parametrize("output", OUTPUTS)
@QUICK
@given(
    steps=st.lists(st.integers(1, 4000), min_size=0, max_size=50),  # in milliseconds
    last=st.integers(1, 9000),
)
def test_the_last_frame_lasts_as_long_as_it_should(
    tmp_path: Path, output: str, steps: list[int], last: int
) -> None:
    path = tmp_path / f"a.{output}"
    times = list(accumulate(steps, initial=0))
    end = (times[-1] + last) / 1000
    frames = torch.from_numpy(np.stack([picture(n) for n in range(len(times))]))
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=Fraction(25)) as writer:
        writer.write(frames.permute(3, 0, 1, 2) / 127.5 - 1, [time / 1000 for time in times])
        writer.end_at(end)
    numbers, read_times, read_end = read(path)
    assert numbers == list(range(len(times)))
    tick = float(OUTPUTS[output]) * 1.01
    assert read_times == pytest.approx([time / 1000 for time in times], abs=tick)
    assert length_of(path) == pytest.approx(end, abs=tick)
    assert read_end == pytest.approx(end, abs=2 * tick)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("seed", range(10))
def test_frames_that_need_the_last_frame_do_not_move_the_end(
    tmp_path: Path, suffix: str, seed: int
) -> None:
    path, generator = tmp_path / f"a.{suffix}", torch.Generator().manual_seed(seed)
    # The first frames are long, which delays the decoding of all others.
    times = [0, 0.6655, 0.8345, 0.869, 1.038, 1.058, 1.158, 1.1925, 1.3615]
    t, y, x = torch.meshgrid(*map(torch.arange, (len(times), 64, 64)), indexing="ij")
    waves = torch.sin(0.2 * x + 0.3 * t) * torch.cos(0.15 * y)
    noisy = torch.rand(1, len(times), 1, 1, generator=generator) > 0.5
    noise = 0.3 * noisy * torch.randn(3, len(times), 64, 64, generator=generator)
    with VideoWriter(path, width=64, height=64, fps=Fraction(25)) as writer:
        writer.write((0.5 * waves + noise).clamp(-1, 1), times)
        writer.end_at(1.8615)
    with VideoReader(path, strict=True) as reader:
        assert [frame.time for frame in reader] == pytest.approx(times, abs=2e-5)
        assert float(reader.end) == pytest.approx(1.8615, abs=2e-5)
    assert length_of(path) == pytest.approx(1.8615, abs=2e-5)


def test_the_end_is_after_the_last_frame(tmp_path: Path) -> None:
    with (
        pytest.raises(VideoError, match=r"last frame is at 1\.0 s, and cannot end"),
        VideoWriter(tmp_path / "a.mp4", width=WIDTH, height=HEIGHT, fps=Fraction(25)) as writer,
    ):
        writer.write(torch.zeros(3, 2, HEIGHT, WIDTH), [0.0, 1.0])
        writer.end_at(1.0)


# Times that are missing, or the same for several frames


def packets_at(path: Path, times: Sequence[int]) -> Path:
    """Copies packets of numbered frames to other times, in milliseconds, the same ones too."""
    source = path.with_name("source.mkv")
    options = X264 | {"bf": "0"}
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(len(times)):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    with av.open(str(source)) as container, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for number, (packet, time) in enumerate(zip(packets, times, strict=True)):
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.dts, packet.pts = number, len(times) + time
            target.mux(packet)
    return path


@pytest.mark.parametrize("output", OUTPUTS)
@QUICK
@given(steps=st.lists(st.sampled_from([0, 0, 1, 40, 40, 500]), min_size=1, max_size=30))
def test_frames_of_one_time_are_all_there(tmp_path: Path, output: str, steps: list[int]) -> None:
    times = list(accumulate(steps, initial=0))
    path, target = packets_at(tmp_path / "a.mp4", times), tmp_path / f"b.{output}"
    numbers, read_times, _ = read(path)
    assert numbers == list(range(len(times)))
    assert all(a < b for a, b in pairwise(read_times))
    rewrite(path, target)
    again, written, _ = read(target)
    assert again == numbers
    assert all(a < b for a, b in pairwise(written))


@pytest.mark.parametrize("output", OUTPUTS)
def test_frames_without_times_follow_the_rate(tmp_path: Path, output: str) -> None:
    path = tmp_path / "a.h264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=50, options=X264)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    rewrite(path, tmp_path / f"b.{output}")
    numbers, times, end = read(tmp_path / f"b.{output}")
    assert numbers == list(range(20))
    assert times == pytest.approx([n / 50 for n in range(20)], abs=1.01e-3)
    assert end == pytest.approx(0.4, abs=1.01e-3)


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_a_rate_that_a_container_cannot_count_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(VideoError, match=r"too coarse for 1001 frames per second; write \.mp4"):
        VideoWriter(tmp_path / f"a.{suffix}", width=WIDTH, height=HEIGHT, fps=Fraction(1001))


def test_gif_lasts_as_long_as_its_last_frame(tmp_path: Path) -> None:
    from PIL import Image

    images = [Image.fromarray(picture(n)) for n in range(3)]
    path = tmp_path / "a.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 300, 1500])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers, times, end = read(path)
    assert (numbers, times) == ([0, 1, 2], pytest.approx([0, 0.1, 0.4]))
    assert end == pytest.approx(1.9)
