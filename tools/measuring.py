"""Shared code of the benchmarks: options, time, memory, tables, files, exit status."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from wanvae.config import WanVAEConfig
from wanvae.engine.command_line import outcome
from wanvae.engine.files import FileError, atomic_path, refuse_overwriting
from wanvae.errors import UserError
from wanvae.nn.kernels.pool import POOL

# Video models with random weights, by their names on the command line.
VIDEO_MODELS = {"full": WanVAEConfig(), "tiny": WanVAEConfig(dim=8, z_dim=4, num_res_blocks=1)}

T = TypeVar("T")
R = TypeVar("R")


class BenchmarkError(UserError):
    """A measurement that is not possible. The message says why in one line."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of all benchmarks."""
    parser.add_argument("--size-scale", type=float, default=1.0, help="of all frames (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Checks the options of ``add_options``; exits with status 2 for a bad option."""
    if options.repeats < 1:
        parser.error(f"--repeats must be positive, not {options.repeats}")
    if not 0 < options.size_scale < math.inf:
        parser.error(f"--size-scale must be positive, not {options.size_scale}")
    check_outputs(parser, [options.json])


def check_outputs(
    parser: argparse.ArgumentParser,
    outputs: Iterable[Path | None],
    inputs: Iterable[Path | None] = (),
) -> None:
    """Exits with status 2 if an output cannot be written, is an input, or is named twice.

    Args:
        outputs: files to write; None is no file.
        inputs: files and folders that are read; None is none.
    """
    read = list(inputs)
    for path in filter(None, outputs):
        if path.is_dir() or not path.parent.is_dir():
            parser.error(f"{path} cannot be written: name a file in a directory that exists")
        if path.resolve() in [other.resolve() for other in read if other]:
            parser.error(f"{path} is to be read or written twice: name another output")
        try:
            refuse_overwriting(path, read)
        except FileError as error:
            parser.error(str(error))
        read.append(path)


def require(*packages: str) -> None:
    """Raises BenchmarkError if one of ``packages`` is not installed."""
    for package in packages:
        if find_spec(package.replace("-", "_")) is None:
            raise BenchmarkError(f"this needs {package}: pip install {package}")


def time_call(call: Callable[[], object], device: str) -> float:
    """Returns the seconds of ``call``, with all work that it starts on the device."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    began = perf_counter()
    call()
    return perf_counter() - began


def measure_peak_memory(call: Callable[[], object], device: str) -> int:
    """Returns the bytes that ``call`` adds at its peak to the memory in use on a device."""
    if device == "cpu":
        return measure_peak_resident_memory(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_peak_resident_memory(call: Callable[[], object]) -> int:
    """Returns the bytes that ``call`` adds to this process at its peak."""
    gc.collect()
    # Free memory that was not returned to the system would be used without being counted.
    POOL.clear()
    ctypes.CDLL(None).malloc_trim(0)
    before = read_resident_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM, the peak, anew
    call()
    return read_resident_memory("VmHWM") - before


def read_resident_memory(key: str) -> int:
    """Returns the bytes of an entry of Linux's /proc/self/status."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def measure_difference(result: Tensor, expected: Tensor) -> float:
    """Returns the largest difference relative to the largest expected value."""
    result, expected = result.float(), expected.float()
    return ((result - expected).abs().max() / expected.abs().max()).item()


def describe(subject: str, peer: str | None) -> str:
    """Returns one line: what was measured, on which machine, against which package, and when."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return (
        f"{subject}; {names[0] if names else platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; torch {torch.__version__}"
        f"{f', {peer} {version(peer)}' if peer else ''}; {date.today().isoformat()}"
    )


def format_table(rows: Sequence[Sequence[str]], labels: int) -> str:
    """Returns a Markdown table; the first row is the heading, ``labels`` columns are text."""
    heading, *others = rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * w if i < labels else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    aligns = [str.ljust] * labels + [str.rjust] * (len(widths) - labels)
    return "\n".join(
        f"| {' | '.join(a(c, w) for a, c, w in zip(aligns, row, widths, strict=True))} |"
        for row in (heading, rule, *others)
    )


def write_json(path: Path, header: str, results: Iterable[Mapping[str, object]]) -> None:
    """Writes all measurements, also the time of each round."""
    write_content(path, {"header": header, "results": list(results)})


def write_content(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def measure_all(
    items: Sequence[T], measure: Callable[[T], R], report: Callable[[list[R]], str]
) -> list[R]:
    """Measures each item and prints a report, also if an interrupt leaves items out."""
    results: list[R] = []
    try:
        for item in tqdm(items, unit="job"):
            results.append(measure(item))
    finally:
        if results:
            print(report(results))
    return results


def run_jobs(
    jobs: Sequence[T],
    measure: Callable[[T], Any],
    report: Callable[[list[Any]], str],
    header: str,
    path: Path | None,
) -> list[Any]:
    """Measures all jobs, prints a report, and writes everything that was measured to ``path``.

    Args:
        measure: returns a dataclass with a ``summary``.
    """
    results = measure_all(jobs, measure, lambda results: f"{header}\n\n{report(results)}")
    if path:
        entries = (asdict(result) | {"summary": result.summary()} for result in results)
        write_json(path, header, entries)
    return results


def count_kept(call: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Returns the bytes of different memory that ``call`` keeps for the backward pass.

    Args:
        call: returns a tensor with a gradient.
        parameters: tensors that do not count.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = call()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def exit_status(run: Callable[[], None], program: str = "benchmark") -> int:
    """Runs a program and tells people what stops it; returns its exit status."""

    def run_to_end() -> int:
        run()
        return 0

    arguments = sys.argv[1:]
    return outcome.exit_status(run_to_end, program, arguments, interrupted="interrupted")
