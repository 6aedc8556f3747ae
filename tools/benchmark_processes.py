"""Compare several processes that share each video with one process: time, memory, result.

The model has random weights. Times alternate between one process, while the others wait, and all
processes. The peak memory is over the loaded model, in the process that takes most.

    accelerate launch --config_file configs/accelerate/cpu.yaml tools/benchmark_processes.py
    accelerate launch --num_processes 8 tools/benchmark_processes.py --dtype bfloat16   # GPUs

Processes on a CPU have one thread each, unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

# Python finds only the folder of a script, so the root is added.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.measuring import (
    VIDEO_MODELS,
    add_options,
    check_options,
    describe,
    exit_status,
    format_table,
    measure_difference,
    measure_peak_memory,
    time_call,
    write_json,
)
from wanvae import WanVAE
from wanvae.engine.devices import launched_processes
from wanvae.engine.processes import gather_objects
from wanvae.nn import use_channels_last


@dataclass(frozen=True)
class SharedWorkload:
    """A job to measure.

    Attributes:
        name: the name on the command line and in the report.
        frames, height, width: size of the video.
        target: how many times as fast as one process two should be; None is no target.
    """

    name: str
    direction: Literal["decode", "encode"]
    frames: int
    height: int
    width: int
    target: float | None

    def scaled(self, scale: float) -> SharedWorkload:
        """Returns the same job on smaller or larger frames; sizes stay multiples of 8."""
        height, width = (max(8, round(n * scale / 8) * 8) for n in (self.height, self.width))
        return replace(self, height=height, width=width)


JOBS = (
    SharedWorkload("decode-wide", "decode", 5, 256, 512, 1.7),
    SharedWorkload("encode-wide", "encode", 5, 256, 512, 1.45),
    SharedWorkload("encode-wider", "encode", 5, 256, 1024, 1.6),
)


@dataclass(frozen=True)
class Result:
    """The measurements of a job.

    Attributes:
        alone, together: seconds in each round.
        bytes_alone, bytes_together: peak memory over the loaded model.
        error: the largest difference of the results, relative to the largest value.
    """

    job: SharedWorkload
    alone: Sequence[float]
    together: Sequence[float]
    bytes_alone: int
    bytes_together: int
    error: float

    @property
    def speedup(self) -> float:
        """How many times as fast as one process all processes are."""
        return median(self.alone) / median(self.together)


def make_call(
    vae: WanVAE, job: SharedWorkload, processes: PartialState | None
) -> Callable[[], Tensor]:
    """Returns the call to measure, which returns means or a video."""
    config, generator = vae.config, torch.Generator().manual_seed(1)
    if job.direction == "encode":
        shape = (1, config.in_channels, job.frames, job.height, job.width)
        video = torch.rand(shape, generator=generator) * 2 - 1
        return lambda: vae.encode(video, shard=processes).mean
    length = 1 + (job.frames - 1) // config.temporal_factor
    size = (job.height // config.spatial_factor, job.width // config.spatial_factor)
    latents = torch.randn((1, config.z_dim, length, *size), generator=generator)
    return partial(vae.decode, latents, shard=processes)


def measure(job: SharedWorkload, vae: WanVAE, processes: PartialState, repeats: int) -> Result:
    """Returns all measurements of a job. All processes must call this."""
    kind, first = processes.device.type, processes.is_main_process
    by_one, by_all = make_call(vae, job, None), make_call(vae, job, processes)
    results: dict[str, Tensor] = {}
    bytes_alone = measure_peak_memory(lambda: results.update(alone=by_one()), kind) if first else 0
    processes.wait_for_everyone()
    of_each = gather_objects(measure_peak_memory(lambda: results.update(together=by_all()), kind))
    alone, together = [], []
    for _ in range(repeats):
        processes.wait_for_everyone()
        alone += [time_call(by_one, kind)] if first else []
        processes.wait_for_everyone()
        together.append(time_call(by_all, kind))
    error = measure_difference(results["together"], results["alone"]) if first else 0.0
    return Result(job, alone, together, bytes_alone, max(of_each), error)


def report(results: Sequence[Result]) -> str:
    """Returns a Markdown table."""
    heading = ["job", "size", "alone s", "together s", "times as fast", "target"]
    rows = [[*heading, "alone MB", "together MB", "error"]]
    for result in results:
        job = result.job
        rows.append(
            [
                job.name,
                f"{job.frames}x{job.height}x{job.width}",
                f"{median(result.alone):.2f}",
                f"{median(result.together):.2f}",
                f"{result.speedup:.2f}",
                "-" if job.target is None else f"{job.target:.2f}",
                f"{result.bytes_alone / 1e6:.0f}",
                f"{result.bytes_together / 1e6:.0f}",
                f"{result.error:.1e}",
            ]
        )
    return format_table(rows, labels=2)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--jobs", nargs="+", choices=names, default=names, metavar="JOB", help=", ".join(names)
    )
    parser.add_argument("--model", choices=VIDEO_MODELS, default="full")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    return options


def run(options: argparse.Namespace) -> None:
    """Measures all jobs, and prints a report in the first process."""
    with launched_processes(None) as processes:
        results = measure_all(options, processes)
        if not processes.is_main_process:
            return
        count = processes.num_processes
    header = describe(f"{options.model} model, {options.dtype}, {count} processes", None)
    print(f"{header}\n\n{report(results)}")
    if options.json:
        entries = (asdict(result) | {"speedup": result.speedup} for result in results)
        write_json(options.json, header, entries)


def measure_all(options: argparse.Namespace, processes: PartialState) -> list[Result]:
    """Returns the results of the chosen jobs."""
    torch.manual_seed(0)
    vae = WanVAE(VIDEO_MODELS[options.model]).eval()
    use_channels_last(vae)
    vae.to(processes.device, getattr(torch, options.dtype))
    jobs = [job.scaled(options.size_scale) for job in JOBS if job.name in options.jobs]
    shown = tqdm(jobs, unit="job", disable=not processes.is_main_process)
    return [measure(job, vae, processes, options.repeats) for job in shown]


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status(partial(run, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
