"""Measure reading and writing of videos on the CPU, against plain PyAV with the same threads.

Reading: frames per second of VideoReader, against decoding with `frame.to_ndarray("rgb24")`. It
is measured twice: with the scaler as PyAV sets it, which repeats chroma samples, and with the
flags of the reader, which interpolates them. Only ours gives floats.

Reconstruction: `reconstruct_file` with a model of the smallest size, its steps alone, and FFmpeg
doing the same transcode (through RGB, same encoder). Where all overlaps, ours takes the time of the
slowest step; without overlap it takes their sum. A model that gives its frames back as they are
shows what all besides the model costs. All sides alternate in one process.

    python tools/benchmark.py video-io                         # 640x360 and 1280x720
    python tools/benchmark.py video-io --frames 24 --repeats 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import cast

import av
import torch
import torch.nn.functional as F
from av.video.stream import VideoStream
from torch import Tensor

from tools.measuring import (
    add_options,
    check_options,
    describe,
    exit_status,
    format_table,
    run_jobs,
)
from wanvae import WanVAE, WanVAEConfig
from wanvae.commands.overlap import Comparison
from wanvae.commands.pipeline import reconstruct_file
from wanvae.frames import encode_frames
from wanvae.video import Frame, VideoReader, VideoWriter
from wanvae.video.common import INTERPOLATION

SIZES = (640, 360), (1280, 720)
FPS = Fraction(25)
# Frames per second of the reader, for one of plain PyAV; and of the identity, for one of FFmpeg.
READER_TARGET = 0.9
IDENTITY_TARGET = 0.4
SMALLEST = WanVAEConfig(dim=2, z_dim=1, dim_mult=(1, 1, 1, 1), num_res_blocks=1)


@dataclass(frozen=True)
class Pixels:
    """Frames ``(B, C, T, H, W)`` in the place of a posterior."""

    mean: Tensor

    def mode(self) -> Tensor:
        return self.mean


@dataclass(frozen=True)
class Span:
    """How many frames a session of the identity takes at once, in the place of a plan."""

    frames: int


@dataclass(frozen=True)
class Nothing:
    """What the identity keeps to the end of a stream."""

    posterior: None = None


class IdentityEncoder:
    """A session that gives its frames back as they are."""

    plan = Span(SMALLEST.temporal_factor)

    def push(self, frames: Tensor) -> Pixels:
        return Pixels(frames)

    def finish(self) -> Nothing:
        return Nothing()


class IdentityDecoder:
    """A session that gives frames back as they are."""

    def push(self, latents: Tensor) -> Tensor:
        return latents


class Identity:
    """A model that computes nothing, with the shapes of the smallest one."""

    config = SMALLEST

    def stream_encode(
        self, *, tile_size: object = None, max_memory: object = None, shard: object = None
    ) -> IdentityEncoder:
        return IdentityEncoder()

    def stream_decode(
        self, *, tile_size: object = None, max_memory: object = None, shard: object = None
    ) -> IdentityDecoder:
        return IdentityDecoder()


@dataclass(frozen=True)
class VideoIO:
    """A video to measure: its size in pixels, and its number of frames."""

    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class Result:
    """The seconds of each side in each round."""

    job: VideoIO
    seconds: Mapping[str, Sequence[float]]

    def summary(self) -> dict[str, float]:
        """Returns the numbers of the report, by their headings: frames per second and ratios."""
        rates = {side: self.job.frames / median(times) for side, times in self.seconds.items()}
        steps = [rates[side] for side in ("reader", "model", "compare", "writer")]
        return {
            **rates,
            "reader / PyAV": rates["reader"] / rates["PyAV"],
            "reader / PyAV, same flags": rates["reader"] / rates["PyAV, same flags"],
            "identity / transcode": rates["identity"] / rates["transcode"],
            "reconstruct / transcode": rates["reconstruct"] / rates["transcode"],
            "reconstruct / slowest step": rates["reconstruct"] / min(steps),
            "reconstruct / sum of steps": rates["reconstruct"] * sum(1 / rate for rate in steps),
        }


def moving_picture(job: VideoIO) -> Callable[[int], Tensor]:
    """Returns a function from numbers to frames ``(3, H, W)``: shapes that move, and grain."""
    generator = torch.Generator().manual_seed(0)
    height, width = job.height, job.width
    coarse = torch.rand(
        1, 3, (height + job.frames) // 8 + 2, (width + 2 * job.frames) // 8 + 2, generator=generator
    )
    shapes = F.interpolate(coarse, scale_factor=8, mode="bicubic")[0] * 2 - 1
    grain = 0.03 * torch.randn(3, height, width, generator=generator)
    return lambda n: (shapes[:, n : n + height, 2 * n : 2 * n + width] + grain.roll(n, 2)).clamp(
        -1, 1
    )


def write(path: Path, job: VideoIO, frames: Sequence[Tensor]) -> None:
    """Writes frames ``(3, H, W)``, as ``reconstruct_file`` does."""
    with VideoWriter(path, width=job.width, height=job.height, fps=FPS) as writer:
        for frame in frames:
            writer.write(frame[:, None])


def read_plainly(path: Path, interpolation: int | None) -> None:
    """Reads with PyAV alone, to arrays ``(H, W, 3)`` of 8 bits."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24", interpolation=interpolation)


def transcode(path: Path, target: Path) -> None:
    """Decodes, converts to RGB and back, and encodes, with FFmpeg alone."""
    with av.open(str(path)) as source, av.open(str(target), "w") as output:
        source.streams.video[0].thread_type = "AUTO"
        stream = output.add_stream("libx264", rate=FPS, options={"crf": "18"})
        assert isinstance(stream, VideoStream)
        video = source.streams.video[0]
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        for frame in source.decode(video=0):
            output.mux(stream.encode(frame.reformat(format="rgb24").reformat(format="yuv420p")))
        output.mux(stream.encode(None))


def read(path: Path) -> list[Tensor]:
    with VideoReader(path) as reader:
        return [frame.image for frame in reader]


def read_through(path: Path) -> None:
    """Reads without keeping frames."""
    with VideoReader(path) as reader:
        for _ in reader:
            pass


def compute(vae: WanVAE, images: Sequence[Tensor]) -> None:
    """Encodes and decodes frames that are there."""
    encoder, decoder = vae.stream_encode(), vae.stream_decode()
    frames = (Frame(image, float(n)) for n, image in enumerate(images))
    for posterior in encode_frames(vae.config, encoder, frames, lambda frame: None):
        decoder.push(posterior.mode())


def compare(images: Sequence[Tensor]) -> None:
    """Finds the figures that ``reconstruct_file`` reports."""
    compared = Comparison()
    for image in images:
        compared.add((image, image))


def measure(job: VideoIO, repeats: int) -> Result:
    """Returns the measurements of one size."""
    torch.manual_seed(0)
    vae, identity = WanVAE(SMALLEST).eval(), cast(WanVAE, Identity())
    with TemporaryDirectory(prefix="wanvae-benchmark-") as folder:
        path, target = Path(folder, "source.mp4"), Path(folder, "target.mp4")
        picture = moving_picture(job)
        write(path, job, [picture(n) for n in range(job.frames)])
        images = read(path)
        calls: dict[str, Callable[[], object]] = {
            "PyAV": partial(read_plainly, path, None),
            "PyAV, same flags": partial(read_plainly, path, INTERPOLATION),
            "reader": partial(read_through, path),
            "model": partial(compute, vae, images),
            "compare": partial(compare, images),
            "writer": partial(write, target, job, images),
            "identity": partial(reconstruct_file, identity, path, target),
            "reconstruct": partial(reconstruct_file, vae, path, target),
            "transcode": partial(transcode, path, target),
        }
        seconds: dict[str, list[float]] = {side: [] for side in calls}
        for _ in range(repeats):
            for side, call in calls.items():
                began = perf_counter()
                call()
                seconds[side].append(perf_counter() - began)
    return Result(job, seconds)


def report(results: Sequence[Result]) -> str:
    """Returns a Markdown table with a column for each size, and the targets."""
    rows = [["frames per second", *(f"{r.job.width}x{r.job.height}" for r in results)]]
    summaries = [result.summary() for result in results]
    rows += [[name, *(f"{each[name]:.3g}" for each in summaries)] for name in summaries[0]]
    return (
        f"{format_table(rows, labels=1)}\n\nTargets: reader / PyAV at least {READER_TARGET}, "
        f"identity / transcode at least {IDENTITY_TARGET}."
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="benchmark video-io", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--frames", type=int, default=49, help="length of videos (default: 49)")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    if options.frames < 1:
        parser.error(f"--frames must be positive, not {options.frames}")
    return options


def run(options: argparse.Namespace) -> None:
    """Measures all sizes and prints a report."""
    jobs = []
    for size in SIZES:
        width, height = (max(16, round(side * options.size_scale / 8) * 8) for side in size)
        jobs.append(VideoIO(width, height, options.frames))
    header = describe("reading and writing videos on cpu", "av")
    run_jobs(jobs, lambda job: measure(job, options.repeats), report, header, options.json)


def main(arguments: Sequence[str]) -> int:
    return exit_status(partial(run, parse(arguments)))
