"""Count what the video VAE and diffusers' do on a GPU, without a GPU: kernels, bytes, memory.

Both run eager CUDA code on fake tensors, which have no values. counting.py says what is counted.

    python tools/benchmark.py --count                          # all jobs, 81 frames of 480x832
    python tools/benchmark.py --count --jobs decode-clip --by both --roofline h200
    python tools/benchmark.py --count --frames 81 --height 720 --width 1280 --json count.json
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tools.counting import (
    DEVICE,
    OUTSIDE,
    Kernel,
    Kind,
    Work,
    count_work,
    move_to_fake_cuda,
)
from tools.measuring import (
    VIDEO_MODELS,
    BenchmarkError,
    check_outputs,
    describe,
    exit_status,
    format_table,
    measure_all,
    require,
    write_json,
)
from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints.diffusers_layout import wan_config
from wanvae.config import check_length, check_size
from wanvae.nn import use_channels_last

Side = Literal["ours", "diffusers"]
By = Literal["operator", "layer", "both"]

PEER = "diffusers"
SIDES: tuple[Side, ...] = get_args(Side)
RATIO = "ratio"
# What each part of a breakdown shares.
KEYS: dict[By, tuple[str, ...]] = {
    "operator": ("operator",),
    "layer": ("layer",),
    "both": ("operator", "layer"),
}
JOBS = ("decode-clip", "encode-clip", "decode-image", "encode-image")
DTYPES = ("bfloat16", "float16", "float32")
GB = 1e9


@dataclass(frozen=True)
class Machine:
    """A GPU by its data sheet.

    Attributes:
        bandwidth: of its memory, in bytes per second.
        rates: dense floating point operations per second of its tensor cores, by dtype.
            Convolutions in float32 take TF32, as PyTorch allows by default.
    """

    bandwidth: float
    rates: Mapping[str, float]

    @classmethod
    def of(cls, bandwidth: float, half: float, tf32: float) -> Machine:
        """Returns a machine, from TB/s and from TFLOP/s in half types and in TF32."""
        rates = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": tf32 * 1e12}
        return cls(bandwidth * 1e12, rates)


# From NVIDIA's data sheets of H200 SXM, H100 SXM and A100 80GB SXM, and its white paper on the Ada
# architecture (RTX 4090; half types with sums in float32).
MACHINES = {
    "h200": Machine.of(4.8, 989, 494),
    "h100": Machine.of(3.35, 989, 494),
    "a100": Machine.of(2.039, 312, 156),
    "4090": Machine.of(1.008, 165.2, 82.6),
}
# The share of the bandwidth that large pointwise kernels reach, and the share of the rate that
# large convolutions reach.
BANDWIDTH_REACHED = 0.9
RATE_REACHED = 0.7
# Seconds of the host for each kernel that eager PyTorch launches.
LAUNCH = 5e-6


@dataclass(frozen=True)
class Job:
    """A direction, and the size of the video in pixels."""

    name: str
    frames: int
    height: int
    width: int
    dtype: str

    @property
    def decodes(self) -> bool:
        return self.name.startswith("decode")

    @property
    def size(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Expected:
    """The expected seconds of a call, by ``Work``: of the device, and of the host for launches."""

    device: float
    host: float

    @property
    def seconds(self) -> float:
        """The host launches kernels while the device computes, so the slower of the two decides."""
        return max(self.device, self.host)


@dataclass(frozen=True)
class Result:
    """The work of each side at a job."""

    job: Job
    work: Mapping[Side, Work]


def make_ours(config: WanVAEConfig, dtype: torch.dtype) -> WanVAE:
    """Returns our model as ``from_pretrained`` does, on the meta device."""
    with torch.device("meta"):
        vae = WanVAE(config)
    use_channels_last(vae)
    return vae.to(dtype).eval()


def make_peer(config: WanVAEConfig, dtype: torch.dtype) -> nn.Module:
    """Returns diffusers' model of the same architecture, on the meta device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers says on import is not ours
        from diffusers import AutoencoderKLWan
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(wan_config(config))
    # The method of diffusers' own class warns of parameters to keep in float32, even of none.
    return nn.Module.to(vae, dtype).eval()


def count(job: Job, side: Side, config: WanVAEConfig) -> Work:
    """Returns the work of one side at a job."""
    dtype = getattr(torch, job.dtype)
    vae = make_ours(config, dtype) if side == "ours" else make_peer(config, dtype)
    with FakeTensorMode():
        move_to_fake_cuda(vae)
        x = torch.empty(input_shape(job, config), dtype=dtype, device=DEVICE)
        return count_work(partial(run_vae, vae, x, job), [x, *vae.parameters(), *vae.buffers()])


def input_shape(job: Job, config: WanVAEConfig) -> tuple[int, ...]:
    """Returns the shape of the latents to decode, or of the video to encode."""
    if not job.decodes:
        return 1, config.in_channels, job.frames, job.height, job.width
    latents = 1 + (job.frames - 1) // config.temporal_factor
    factor = config.spatial_factor
    return 1, config.z_dim, latents, job.height // factor, job.width // factor


def run_vae(vae: Any, x: Tensor, job: Job) -> None:
    """Decodes or encodes, as people call either model."""
    if job.decodes:
        vae.decode(x)
    else:
        vae.encode(x)


def expect(work: Work, machine: Machine, dtype: str) -> Expected:
    """Returns the expected time of a call: each kernel waits for its memory or for its products."""

    def seconds(kernel: Kernel) -> float:
        return max(
            kernel.traffic / (machine.bandwidth * BANDWIDTH_REACHED),
            2 * kernel.multiply_adds / (machine.rates[dtype] * RATE_REACHED),
        )

    return Expected(work.sum(seconds), work.kernels() * LAUNCH)


def summarize(work: Work) -> dict[str, float]:
    """Returns the figures of the report, by their headings."""
    return {
        "kernels": work.kernels(),
        "of biases": work.kernels([Kind.BIAS]),
        "hidden copies": work.kernels([Kind.HIDDEN_COPY]),
        "GB outside": work.traffic(OUTSIDE) / GB,
        "of biases GB": work.traffic([Kind.BIAS]) / GB,
        "hidden GB": work.traffic([Kind.HIDDEN_COPY]) / GB,
        "GB inside": work.traffic([Kind.PRODUCT]) / GB,
        "T multiply-adds": work.multiply_adds / 1e12,
        "peak GB": work.peak / GB,
        "waits": work.waits,
    }


def summarize_expected(expected: Expected) -> dict[str, float]:
    """Returns the expected seconds, by their headings."""
    return {
        "expected s": expected.seconds,
        "device s": expected.device,
        "host s": expected.host,
    }


def figures(result: Result, machine: Machine | None) -> dict[str, dict[str, float]]:
    """Returns the figures of each side, and of ours relative to the other."""
    rows = {
        side: summarize(work)
        | ({} if machine is None else summarize_expected(expect(work, machine, result.job.dtype)))
        for side, work in result.work.items()
    }
    if len(rows) == 2:
        ours, peer = rows["ours"], rows["diffusers"]
        rows[RATIO] = {name: ours[name] / peer[name] for name in ours if peer[name]}
    return rows


def report(results: Sequence[Result], machine: Machine | None) -> str:
    """Returns a Markdown table: a row for each side, and a row for their ratios."""
    rows: list[list[str]] = []
    for result in results:
        for side, values in figures(result, machine).items():
            if not rows:
                rows.append(["job", "size", "dtype", "", *values])
            cells = [show(values.get(name), ratio=side == RATIO) for name in rows[0][4:]]
            rows.append([result.job.name, result.job.size, result.job.dtype, side, *cells])
    return format_table(rows, labels=4)


def show(value: float | None, *, ratio: bool) -> str:
    """Returns a cell of the report."""
    if value is None:
        return "-"
    if ratio:
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def break_down(work: Work, by: By) -> dict[tuple[str, ...], tuple[int, int]]:
    """Returns the kernels and the bytes of each operator, layer or both; most bytes first."""
    sums: dict[tuple[str, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for kernel, times in work.launches.items():
        key = tuple(getattr(kernel, name) for name in KEYS[by])
        kernels, traffic = sums[key]
        sums[key] = kernels + times, traffic + times * kernel.traffic
    return dict(sorted(sums.items(), key=lambda entry: -entry[1][1]))


def report_parts(result: Result, by: By, rows: int) -> Iterable[str]:
    """Yields a Markdown table for each side: the parts that move most bytes."""
    for side, work in result.work.items():
        total = work.traffic()
        table = [[*KEYS[by], "kernels", "GB", "of all GB"]]
        for key, (kernels, traffic) in [*break_down(work, by).items()][:rows]:
            table.append([*key, f"{kernels:,}", f"{traffic / GB:,.2f}", f"{traffic / total:.1%}"])
        lines = format_table(table, labels=len(KEYS[by]))
        yield f"{result.job.name}, {side}:\n\n{lines}"


def describe_machine(name: str) -> str:
    """Returns what an expected time assumes."""
    machine = MACHINES[name]
    return (
        f"expected on {name}: each kernel takes the longer of its bytes at "
        f"{BANDWIDTH_REACHED:.0%} of {machine.bandwidth / 1e12:g} TB/s and its products at "
        f"{RATE_REACHED:.0%} of {machine.rates['bfloat16'] / 1e12:g} TFLOP/s (half types) or "
        f"{machine.rates['float32'] / 1e12:g} (TF32); the host takes {LAUNCH * 1e6:g} us a kernel, "
        "at the same time; no caches, no transfers"
    )


def to_json(result: Result, machine: Machine | None) -> dict[str, Any]:
    """Returns everything that was counted at a job."""
    launches = {
        side: [
            asdict(kernel) | {"kind": kernel.kind.value, "launches": times}
            for kernel, times in work.launches.items()
        ]
        for side, work in result.work.items()
    }
    return {
        "job": asdict(result.job),
        "summary": figures(result, machine),
        "transferred": {side: work.transferred for side, work in result.work.items()},
        "kernels": launches,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="benchmark --count", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--jobs",
        nargs="+",
        choices=JOBS,
        default=JOBS,
        metavar="JOB",
        help=f"what to count (default: all): {', '.join(JOBS)}",
    )
    parser.add_argument("--frames", type=int, default=81, help="of a clip (default: 81)")
    parser.add_argument("--height", type=int, default=480, help="pixels (default: 480)")
    parser.add_argument("--width", type=int, default=832, help="pixels (default: 832)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES[:1])
    parser.add_argument("--model", choices=VIDEO_MODELS, default="full")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--by", choices=KEYS, help="also show which parts move most bytes")
    parser.add_argument("--rows", type=int, default=10, help="of --by (default: 10)")
    parser.add_argument("--roofline", choices=MACHINES, help="also show the time to expect")
    parser.add_argument("--json", type=Path, help="file for everything that was counted")
    options = parser.parse_args(arguments)
    if options.rows < 1:
        parser.error(f"--rows must be positive, not {options.rows}")
    check_outputs(parser, [options.json])
    return options


def run(options: argparse.Namespace) -> None:
    """Counts all jobs and prints a report."""
    if torch.version.cuda is None:
        raise BenchmarkError("this needs PyTorch for CUDA, which knows what a GPU would run")
    config = VIDEO_MODELS[options.model]
    check_size(config, options.height, options.width)
    check_length(config, options.frames)
    sides = [side for side in SIDES if side in options.sides]
    peer = PEER if PEER in sides else None
    require(*filter(None, [peer]))
    header = describe(f"{options.model} model in eager mode on fake tensors of cuda", peer)
    jobs = [
        Job(
            name,
            1 if name.endswith("image") else options.frames,
            options.height,
            options.width,
            dtype,
        )
        for dtype in options.dtypes
        for name in JOBS
        if name in options.jobs
    ]
    machine = MACHINES.get(options.roofline)

    def show_all(results: Sequence[Result]) -> str:
        paragraphs = [header, report(results, machine)]
        if options.roofline:
            paragraphs.append(describe_machine(options.roofline))
        if options.by:
            for result in results:
                paragraphs += report_parts(result, options.by, options.rows)
        return "\n\n".join(paragraphs)

    results = measure_all(
        jobs, lambda job: Result(job, {side: count(job, side, config) for side in sides}), show_all
    )
    if options.json:
        write_json(options.json, header, [to_json(result, machine) for result in results])


def main(arguments: Sequence[str]) -> int:
    return exit_status(partial(run, parse(arguments)))
