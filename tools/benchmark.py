"""Compare WanVAE with its peer, diffusers' AutoencoderKLWan: time, memory and error.

Both have the same random weights and get the same input. Times alternate between the two in one
process; the peak memory of each call is measured in a process of its own, over the loaded model.

    python tools/benchmark.py                                  # all jobs at full size
    python tools/benchmark.py --jobs decode-clip --repeats 5 --json clip.json
    python tools/benchmark.py --sweep --dtypes float32 --plot sweep.png
    python tools/benchmark.py --count                          # see benchmark_count.py
    python tools/benchmark.py motion                           # see benchmark_motion.py
    python tools/benchmark.py video-step                       # see benchmark_video_step.py
    python tools/benchmark.py video-io                         # see benchmark_video_io.py
    python tools/benchmark.py motion-step                      # see benchmark_motion_step.py

Several processes at one video are measured by benchmark_processes.py.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

# Python finds only the folder of a script, so the root is added.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# The command line says how the threads of PyTorch wait, before PyTorch is loaded.
import wanvae.cli  # noqa: F401  # isort: skip

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tools import (
    benchmark_count,
    benchmark_motion,
    benchmark_motion_step,
    benchmark_video_io,
    benchmark_video_step,
)
from tools.measuring import (
    VIDEO_MODELS,
    BenchmarkError,
    add_options,
    check_options,
    check_outputs,
    describe,
    exit_status,
    format_table,
    measure_difference,
    measure_peak_memory,
    require,
    run_jobs,
    time_call,
)
from wanvae import WanVAE
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert
from wanvae.engine.files import atomic_path
from wanvae.execution import cost
from wanvae.execution.budget import choose_plan
from wanvae.execution.limits import Limits

Side = Literal["ours", "peer"]


@dataclass(frozen=True)
class Workload:
    """A job to measure.

    Attributes:
        name: the name on the command line and in the report.
        direction: "stream" decodes one latent at a time, only by our model.
        frames, height, width: size of the video.
        tile_size: pixels, for both models; None decodes whole frames.
        max_memory: for our model alone; None is no limit.
        compiled: whether our model runs after ``vae.compile()``.
    """

    name: str
    direction: Literal["decode", "encode", "stream"]
    frames: int
    height: int
    width: int
    dtype: str = "float32"
    tile_size: int | None = None
    max_memory: str | None = None
    compiled: bool = False

    def plain(self) -> Workload:
        """Returns the same job without options that trade time for memory."""
        return replace(self, tile_size=None, max_memory=None)

    def scaled(self, scale: float) -> Workload:
        """Returns the same job on smaller or larger frames; sizes stay multiples of 8."""
        names = ["height", "width", *(["tile_size"] if self.tile_size else [])]
        return replace(self, **{n: max(8, round(getattr(self, n) * scale / 8) * 8) for n in names})


JOBS = (
    Workload("decode-image", "decode", 1, 512, 512),
    Workload("encode-image", "encode", 1, 512, 512),
    Workload("decode-clip", "decode", 5, 256, 256),
    Workload("encode-clip", "encode", 5, 256, 256),
    Workload("decode-long", "decode", 17, 256, 256),
    Workload("encode-long", "encode", 17, 256, 256),
    Workload("decode-large", "decode", 5, 512, 512),
    Workload("decode-large-tiled", "decode", 5, 512, 512, tile_size=256),
    Workload("decode-large-700MB", "decode", 5, 512, 512, max_memory="700MB"),
    Workload("stream-short", "stream", 9, 128, 128),
    Workload("stream-long", "stream", 81, 128, 128),
)
SWEEP_SIDE, SWEEP_FRAMES = 128, 5
SWEEP = (
    *(
        Workload("sweep", "decode", SWEEP_FRAMES, side, side)
        for side in (SWEEP_SIDE, 192, 256, 384)
    ),
    *(Workload("sweep", "decode", frames, SWEEP_SIDE, SWEEP_SIDE) for frames in (1, 9, 17)),
)


@dataclass(frozen=True)
class Setup:
    """The setup of a run: a model of VIDEO_MODELS, a folder with its weights, the device."""

    model: str
    folder: str
    device: str

    @property
    def native(self) -> Path:
        return Path(self.folder, "vae.safetensors")

    @property
    def diffusers(self) -> Path:
        return Path(self.folder, "diffusers")


@dataclass(frozen=True)
class Result:
    """The measurements of a job, for "ours" and "peer"; a stream has only "ours".

    Attributes:
        seconds: seconds in each round; for a stream, seconds per frame after the first frame.
            "convolution" is the largest convolution of the model alone.
        peak_bytes: memory of a call at its peak, over the loaded model.
        flops: floating point operations of a call: "ours" as computed, "planned" as the layers of
            our plan define them (fast algorithms take fewer), and "convolution".
        errors: the largest difference relative to the largest value: "between" the two models, and
            between each model and its own result without tiles and memory limit.
    """

    job: Workload
    seconds: Mapping[str, Sequence[float]]
    peak_bytes: Mapping[str, int]
    flops: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, float | None]:
        """Returns the numbers of the report, by their headings."""
        ours = median(self.seconds["ours"])
        megabytes = {side: peak / 1e6 for side, peak in self.peak_bytes.items()}
        if self.job.direction == "stream":
            return {"s per frame": ours, "ours MB": megabytes["ours"]}
        peer = median(self.seconds["peer"])
        roofline = self.flops["convolution"] / min(self.seconds["convolution"])
        speeds = {name: self.flops[name] / ours for name in ("ours", "planned")}
        return {
            "ours s": ours,
            "peer s": peer,
            "time ratio": ours / peer,
            "ours MB": megabytes["ours"],
            "peer MB": megabytes["peer"],
            "memory ratio": megabytes["ours"] / megabytes["peer"] if megabytes["peer"] else None,
            "error": self.errors["between"],
            "ours vs plain": self.errors.get("ours"),
            "peer vs plain": self.errors.get("peer"),
            "GFLOP/s": speeds["ours"] / 1e9,
            "of roofline": speeds["ours"] / roofline,
            "as planned": speeds["planned"] / roofline,
        }


# Formats of numbers in the report that are neither times nor ratios.
FORMATS = {
    **dict.fromkeys(("ours MB", "peer MB", "GFLOP/s"), ".1f"),
    **dict.fromkeys(("error", "ours vs plain", "peer vs plain"), ".1e"),
    "s per frame": ".4f",
    **dict.fromkeys(("of roofline", "as planned"), ".0%"),
}


def write_weights(setup: Setup) -> None:
    """Writes the same random weights for both models."""
    torch.manual_seed(0)
    vae = WanVAE(VIDEO_MODELS[setup.model])
    with torch.no_grad():
        for parameter in vae.parameters():
            # Attention starts with a zero projection, which would hide errors of attention.
            parameter += 0.02 * torch.randn_like(parameter)
    vae.save_pretrained(setup.native)
    convert(setup.native, setup.diffusers, Layout.DIFFUSERS)


@cache
def load(side: Side, dtype: str, compiled: bool, setup: Setup) -> nn.Module:
    if side == "peer":
        # Imported here, because it would count as memory of our model.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what diffusers says on import is not ours
            from diffusers import AutoencoderKLWan
        vae = AutoencoderKLWan.from_pretrained(setup.diffusers, torch_dtype=getattr(torch, dtype))
        return vae.to(setup.device).eval()
    vae = WanVAE.from_pretrained(setup.native, getattr(torch, dtype), setup.device)
    if compiled:
        vae.compile()
    return vae


def make_input(job: Workload, setup: Setup) -> Tensor:
    """Returns the video to encode, or the latents to decode."""
    config, generator = VIDEO_MODELS[setup.model], torch.Generator().manual_seed(1)
    if job.direction == "encode":
        shape = (1, config.in_channels, job.frames, job.height, job.width)
        x = torch.rand(shape, generator=generator) * 2 - 1
    else:
        frames = 1 + (job.frames - 1) // config.temporal_factor
        size = (job.height // config.spatial_factor, job.width // config.spatial_factor)
        x = torch.randn((1, config.z_dim, frames, *size), generator=generator)
    return x.to(setup.device, getattr(torch, job.dtype))


def make_call(side: Side, job: Workload, setup: Setup) -> Callable[[], Any]:
    """Returns the call to measure, with its model and input loaded."""
    vae = load(side, job.dtype, job.compiled and side == "ours", setup)
    x = make_input(job, setup)
    if job.direction == "stream":
        return partial(push_all, vae.stream_decode(), x)
    return partial(call_peer if side == "peer" else call_ours, vae, job, x)


@torch.inference_mode()
def call_ours(vae: nn.Module, job: Workload, x: Tensor) -> Tensor:
    options = {"tile_size": job.tile_size, "max_memory": job.max_memory}
    options = {name: value for name, value in options.items() if value is not None}
    if job.direction == "decode":
        return vae.decode(x, **options)
    posterior = vae.encode(x, **options)
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


@torch.inference_mode()
def call_peer(vae: nn.Module, job: Workload, x: Tensor) -> Tensor:
    if job.tile_size is None:
        vae.disable_tiling()
    else:
        # The default overlap of diffusers: tiles of 256 pixels every 192 pixels.
        vae.enable_tiling(*[job.tile_size] * 2, *[job.tile_size * 3 // 4] * 2)
    if job.direction == "decode":
        return vae.decode(x).sample
    return vae.encode(x).latent_dist.parameters


@torch.inference_mode()
def push_all(session: Any, latents: Tensor) -> None:
    """Decodes a stream latent by latent, and drops the output."""
    for latent in latents.split(1, dim=2):
        session.push(latent)


def make_largest_convolution(job: Workload, setup: Setup) -> Callable[[], Tensor]:
    """Returns the largest convolution of the model: dim to dim, full resolution, 4 frames."""
    dim, dtype = VIDEO_MODELS[setup.model].dim, getattr(torch, job.dtype)
    x, weight = (
        torch.randn(shape, device=setup.device, dtype=dtype).to(
            memory_format=torch.channels_last_3d
        )
        for shape in ((1, dim, 2 + 4, job.height, job.width), (dim, dim, 3, 3, 3))
    )
    padding, ones = (0, 1, 1), (1, 1, 1)
    if setup.device == "cpu" and job.dtype == "float32":
        # F.conv3d may choose a naive kernel for a batch of one.
        return partial(torch.mkldnn_convolution, x, weight, None, padding, ones, ones, 1)
    return partial(F.conv3d, x, weight, padding=padding)


def count_flops(call: Callable[[], object]) -> int:
    """Returns the floating point operations of convolutions and matrix products of ``call``."""
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.mkldnn_convolution: count_convolution_flops,
            torch.ops.mkldnn._convolution_pointwise: count_convolution_flops,
            torch.ops.mkldnn._convolution_pointwise_: count_convolution_flops,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention_flops,
        },
    )
    with counter, torch.inference_mode():
        call()
    return counter.get_total_flops()


def count_planned_flops(job: Workload, setup: Setup) -> int:
    """Returns operations of the plan of ``job`` as layers define them, with tile overlaps."""
    decoding, dtype = job.direction == "decode", getattr(torch, job.dtype)
    config = VIDEO_MODELS[setup.model]
    with torch.device("meta"):
        vae = WanVAE(config).to(dtype)
    network = vae.decoder_network() if decoding else vae.encoder_network()
    channels = config.z_dim if decoding else config.in_channels
    latents = 1 + (job.frames - 1) // config.temporal_factor
    planned = cost.Workload(1, channels, latents, job.height, job.width, dtype)
    plan = choose_plan(network, planned, Limits(job.tile_size, job.max_memory))
    return 2 * cost.Costs(network).multiply_adds(planned, plan)


def count_convolution_flops(*shapes: Any, out_shape: Sequence[int], **_: object) -> int:
    """Returns operations of a convolution: each output value is a dot product with a filter.

    The weight is the second argument; it is the third if the second is a tensor to add.
    """
    _, second, third, *_ = shapes
    adds = third is not None and len(third) == len(out_shape)
    weight = third if adds else second
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def count_attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def measure(job: Workload, setup: Setup, repeats: int) -> Result:
    """Returns all measurements of a job."""
    if job.direction == "stream":
        make_call("ours", job, setup)()  # warms up
        seconds = [time_stream(job, setup) for _ in range(repeats)]
        return Result(job, {"ours": seconds}, {"ours": measure_memory("ours", job, setup)})
    calls = {
        "ours": make_call("ours", job, setup),
        "peer": make_call("peer", job, setup),
        "convolution": make_largest_convolution(job, setup),
    }
    errors = {"between": measure_difference(calls["ours"](), calls["peer"]())}  # warms up both
    if job.tile_size or job.max_memory:
        errors["ours"] = measure_own_error("ours", job, setup)
    if job.tile_size:
        errors["peer"] = measure_own_error("peer", job, setup)
    eager = make_call("ours", replace(job, compiled=False), setup)
    flops = {
        "ours": count_flops(eager),
        "planned": count_planned_flops(job, setup),
        "convolution": count_flops(calls["convolution"]),
    }
    rounds = [
        {name: time_call(call, setup.device) for name, call in calls.items()}
        for _ in range(repeats)
    ]
    if setup.device == "cuda":
        torch.cuda.empty_cache()  # leaves the memory to the processes that measure it
    seconds = {name: [times[name] for times in rounds] for name in calls}
    peaks = {side: measure_memory(side, job, setup) for side in get_args(Side)}
    return Result(job, seconds, peaks, flops, errors)


def measure_own_error(side: Side, job: Workload, setup: Setup) -> float:
    """Returns the error that the options of ``job`` cause, relative to the plain result."""
    return measure_difference(make_call(side, job, setup)(), make_call(side, job.plain(), setup)())


def time_stream(job: Workload, setup: Setup) -> float:
    """Returns the seconds per frame after the first frame."""
    session = load("ours", job.dtype, job.compiled, setup).stream_decode()
    latents = make_input(job, setup)
    push_all(session, latents[:, :, :1])
    return time_call(partial(push_all, session, latents[:, :, 1:]), setup.device) / (job.frames - 1)


def measure_memory(side: Side, job: Workload, setup: Setup) -> int:
    """Returns ``peak_memory``, measured in its own process."""
    request = json.dumps({"side": side, "job": asdict(job), "setup": asdict(setup)})
    command = [sys.executable, str(Path(__file__).resolve()), "--measure-memory", request]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        *_, reason = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise BenchmarkError(f"no peak memory of {job.name} ({job.dtype}, {side}): {reason}")
    return int(child.stdout.split()[-1])


def peak_memory(side: Side, job: Workload, setup: Setup) -> int:
    """Returns the peak memory of the first call of a job in bytes, over the loaded model."""
    # Weights may be mapped from their file, and code is loaded late: a small call reads them. A
    # compiled model would compile again for another size.
    small = replace(job.plain(), frames=5, height=64, width=64)
    make_call(side, job if job.compiled else small, setup)()
    call = make_call(side, job, setup)
    return measure_peak_memory(call, setup.device)


def subject(options: argparse.Namespace) -> str:
    """Returns what is measured, on which device."""
    device = options.device
    if device == "cuda":
        tf32 = "with" if torch.backends.cudnn.allow_tf32 else "without"
        device += f" ({torch.cuda.get_device_name()}, {tf32} TF32 convolutions)"
    return f"{options.model} model on {device}"


def report(results: Sequence[Result]) -> str:
    """Returns Markdown tables: first comparisons, then streams."""
    parts: dict[bool, list[Result]] = {False: [], True: []}
    for result in results:
        parts[result.job.direction == "stream"].append(result)
    return "\n\n".join(table(part) for part in parts.values() if part)


def table(results: Sequence[Result]) -> str:
    """Returns a Markdown table of results with the same numbers."""
    rows = [["job", "size", "dtype", *results[0].summary()]]
    for job, summary in ((result.job, result.summary()) for result in results):
        name = f"{job.name} compiled" if job.compiled else job.name
        numbers = [cell(heading, value) for heading, value in summary.items()]
        rows.append([name, f"{job.frames}x{job.height}x{job.width}", job.dtype, *numbers])
    return format_table(rows, labels=3)


def cell(heading: str, value: float | None) -> str:
    return "-" if value is None else format(value, FORMATS.get(heading, ".3f"))


def plot(path: Path, results: Sequence[Result]) -> None:
    """Draws time and memory of a sweep against resolution and against length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    smallest = min(result.job.height for result in results)
    slices = (
        ("height", "height and width", [r for r in results if r.job.frames == SWEEP_FRAMES]),
        ("frames", "frames", [r for r in results if r.job.height == smallest]),
    )
    quantities = (("s", "median seconds"), ("MB", "peak MB over the model"))
    for row, (unit, label) in zip(figure.subplots(2, 2), quantities, strict=True):
        for axes, (attribute, title, chosen) in zip(row, slices, strict=True):
            draw_lines(axes, chosen, attribute, unit)
            axes.set(xlabel=title, ylabel=label, ylim=(0, None))
            axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def draw_lines(axes: Any, results: Sequence[Result], attribute: str, unit: str) -> None:
    """Draws a line for our model, our compiled model and the peer, in each dtype."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for job, summary in ((result.job, result.summary()) for result in results):
        for side in ("ours",) if job.compiled else ("ours", "peer"):
            label = f"{side}, {job.dtype}{', compiled' if job.compiled else ''}"
            point = (getattr(job, attribute), summary[f"{side} {unit}"])
            lines.setdefault(label, []).append(point)
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)


def choose_jobs(options: argparse.Namespace) -> list[Workload]:
    """Returns the jobs to run, grouped by dtype."""
    chosen = SWEEP if options.sweep else [job for job in JOBS if job.name in options.jobs]
    return [
        replace(job.scaled(options.size_scale), dtype=dtype, compiled=compiled)
        for dtype in options.dtypes
        for job in chosen
        for compiled in ((False, True) if options.compile else (False,))
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    names = [job.name for job in JOBS]
    dtypes = ["float32", "bfloat16", "float16"]
    parser = argparse.ArgumentParser(
        prog="benchmark", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--measure-memory", type=json.loads, help=argparse.SUPPRESS)
    which = parser.add_mutually_exclusive_group()
    jobs_help = f"what to measure (default: all): {', '.join(names)}"
    which.add_argument(
        "--jobs", nargs="+", choices=names, default=names, metavar="JOB", help=jobs_help
    )
    which.add_argument("--sweep", action="store_true", help="decode over sizes and lengths instead")
    count_help = (
        "count the kernels, bytes and memory of a GPU instead, without one; see --count --help"
    )
    which.add_argument("--count", action="store_true", help=count_help)
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes[:2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=VIDEO_MODELS, default="full")
    parser.add_argument("--compile", action="store_true", help="measure ours compiled as well")
    add_options(parser)
    parser.add_argument("--plot", type=Path, help="image of a sweep, .png for example")
    options = parser.parse_args(arguments)
    check_options(parser, options)
    check_outputs(parser, [options.plot], [options.json])
    if options.plot and not options.sweep:
        parser.error("--plot draws a sweep: add --sweep")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no such device here")
    return options


def run(options: argparse.Namespace) -> None:
    """Measures all jobs and prints a report."""
    require("diffusers", *(["matplotlib"] if options.plot else []))
    header, jobs = describe(subject(options), "diffusers"), choose_jobs(options)
    with TemporaryDirectory(prefix="wanvae-benchmark-") as folder:
        setup = Setup(options.model, folder, options.device)
        write_weights(setup)
        results = run_jobs(
            jobs,
            lambda job: measure(job, setup, options.repeats),
            report,
            header,
            options.json,
        )
    if options.plot:
        plot(options.plot, results)


OTHERS = {
    "motion": benchmark_motion.main,
    "motion-step": benchmark_motion_step.main,
    "video-io": benchmark_video_io.main,
    "video-step": benchmark_video_step.main,
}


def print_memory(request: Mapping[str, Any]) -> None:
    """Prints the peak memory that ``measure_memory`` asks its process for."""
    print(peak_memory(request["side"], Workload(**request["job"]), Setup(**request["setup"])))


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in OTHERS:
        return OTHERS[arguments[0]](arguments[1:])
    if "--count" in arguments:
        others = [argument for argument in arguments if argument != "--count"]
        return benchmark_count.main(others)
    options = parse(arguments)
    if options.measure_memory:
        return exit_status(partial(print_memory, options.measure_memory))
    return exit_status(partial(run, options))


if __name__ == "__main__":
    sys.exit(main())
