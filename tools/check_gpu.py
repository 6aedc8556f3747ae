"""Check and measure the video VAE on one GPU, in a few minutes.

It needs PyTorch, einops, safetensors and this repository, and uses Triton and diffusers if they are
installed. Correctness comes first: operators, layers, models against what their official code
computed, and all ways to run a model against each other. Then come time and memory. Each check is
reported on its own, also if another one fails, crashes or hangs.

    python tools/check_gpu.py --json gpu.json
    python tools/check_gpu.py --only golden ways        # checks whose names begin so
    python tools/check_gpu.py --device cpu --size tiny  # rehearses all of it without a GPU

The exit status is 1 if a check fails. A check that does not fit in the time is skipped.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# Python finds only the folder of a script, so the root is added.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import gpu_checks, gpu_measures
from tools.gpu_checks import Setup, without_tf32
from tools.supervising import Job, Outcome, run_all, work
from wanvae import WanVAEConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = ("full", "tiny")
SMALL = WanVAEConfig(dim=16, z_dim=4, num_res_blocks=1)
TINY = WanVAEConfig(dim=8, z_dim=4, num_res_blocks=1, dim_mult=(1, 2), temporal_downsample=(True,))
MINUTES = 8
# How much longer than on a GPU a check of the tiny model may take on a busy CPU.
SLOWNESS_OF_CPU = 4
PACKAGES = ("triton", "diffusers")

Check = Callable[[Setup], dict[str, Any]]


def list_checks() -> dict[str, tuple[float, Check]]:
    """Returns each check with the seconds that it is expected to take, in their order."""
    decode, encode = (
        partial(gpu_measures.measure_coding, decoding=decoding) for decoding in (True, False)
    )
    checks: dict[str, tuple[float, Check]] = {}
    for name, dtype in DTYPES.items():
        checks |= {
            f"operators {name}": (8, partial(gpu_checks.check_operators, dtype=dtype)),
            f"layers {name}": (5, partial(gpu_checks.check_layers, dtype=dtype)),
            f"golden {name}": (5, partial(gpu_checks.check_golden, dtype=dtype)),
        }
    for name in ("float32", "bfloat16"):
        checks[f"ways {name}"] = (15, partial(gpu_checks.check_ways, dtype=DTYPES[name]))
    for name, code in {"decode": decode, "encode": encode}.items():
        checks[f"{name} 81x480x832"] = (20, partial(code, frames=81, height=480, width=832))
    for name, code in {"decode": decode, "encode": encode}.items():
        checks[f"{name} image 1024"] = (5, partial(code, frames=1, height=1024, width=1024))
    for height, width in ((256, 256), (480, 832)):
        stream = partial(gpu_measures.measure_stream, height=height, width=width)
        checks[f"stream {height}x{width}"] = (8, stream)
    checks |= {
        "gradients": (8, gpu_checks.check_gradients),
        "profile": (12, gpu_measures.profile),
        "training step": (15, gpu_measures.measure_training),
        "within 4 GB": (30, gpu_measures.check_limit),
    }
    for name, code in {"decode": decode, "encode": encode}.items():
        checks[f"{name} 81x720x1280"] = (35, partial(code, frames=81, height=720, width=1280))
    return checks | {
        "diffusers": (60, gpu_measures.compare_with_diffusers),
        "compiled models": (60, gpu_checks.check_compiled),
        "compiled decode": (60, gpu_measures.measure_compiled),
    }


def make_setup(device: str, size: str) -> Setup:
    """Returns what is checked on a device."""
    config, small, scale, frames = WanVAEConfig(), SMALL, 1.0, 81
    if size == "tiny":
        config, small, scale, frames = TINY, TINY, 1 / 16, 9
    backend, repeats = ("inductor", 3) if size == "full" else ("eager", 1)
    return Setup(torch.device(device), config, small, scale, frames, repeats, backend)


def is_usable(setup: Setup) -> bool:
    """Returns whether this process can still compute on the device."""
    try:
        torch.ones(1, device=setup.device).sum().item()
    except Exception:
        return False
    return True


def run_checks(setup: Setup) -> None:
    """Runs the checks that stdin names."""
    functions = {name: partial(check, setup) for name, (_, check) in list_checks().items()}
    with without_tf32():
        work(functions, partial(is_usable, setup))


def choose_jobs(names: Sequence[str] | None) -> list[Job]:
    """Returns the checks whose names begin with one of ``names``; None is all."""
    return [
        Job(name, seconds)
        for name, (seconds, _) in list_checks().items()
        if names is None or name.startswith(tuple(names))
    ]


def describe(device: str, size: str) -> str:
    """Returns one line: what is checked, on which device, with which packages, and when."""
    versions = [f"torch {torch.__version__}"]
    if device.startswith("cuda") and torch.cuda.is_available():
        hardware = torch.cuda.get_device_name(device)
        versions.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    else:
        hardware = f"{device} ({platform.machine()})"
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    return f"{size} model on {hardware}; {', '.join(versions)}; {date.today().isoformat()}"


def show(value: object, name: str) -> str:
    """Returns a figure as text."""
    if isinstance(value, int) and "bytes" in name:
        return f"{value / 2**20:.0f} MB"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_outcome(outcome: Outcome) -> str:
    """Returns the row of a check in the table."""
    figures = ", ".join(
        f"{name} {show(value, name)}"
        for name, value in outcome.figures.items()
        if not isinstance(value, list)
    )
    text = outcome.message or figures
    return f"{outcome.name:22} {outcome.status:8} {outcome.seconds:6.1f} s  {text}"


def show_profile(outcomes: Sequence[Outcome]) -> str:
    """Returns the longest kernels of the profile, a line each."""
    kernels = [k for outcome in outcomes for k in outcome.figures.get("longest", [])]
    return "\n".join(
        f"{kernel['seconds'] * 1000:10.2f} ms {kernel['launches']:6} x {kernel['name']}"
        for kernel in kernels
    )


def write_json(path: Path, header: str, outcomes: Sequence[Outcome]) -> None:
    """Writes all outcomes so far."""
    content = {"header": header, "results": [asdict(outcome) for outcome in outcomes]}
    path.write_text(json.dumps(content, indent=2) + "\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="where to check (default: cuda)")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the model and frames")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for all (default: 8)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="checks whose names begin so")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not choose_jobs(options.only):
        parser.error(f"no check begins with {' or '.join(options.only)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = parse(arguments)
    if options.worker:
        run_checks(make_setup(options.device, options.size))
        return 0
    header, outcomes = describe(options.device, options.size), []
    print(header, flush=True)
    command = [sys.executable, __file__, "--worker"]
    command += ["--device", options.device, "--size", options.size]
    slowness = 1 if options.device.startswith("cuda") else SLOWNESS_OF_CPU
    jobs = choose_jobs(options.only)
    for outcome in run_all(jobs, command, 60 * options.minutes, slowness):
        outcomes.append(outcome)
        print(show_outcome(outcome), flush=True)
        if options.json is not None:
            write_json(options.json, header, outcomes)
    print(show_profile(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
