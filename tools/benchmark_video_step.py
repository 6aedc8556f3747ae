"""Compare a training step of WanVAE to one of its peer, diffusers' AutoencoderKLWan, on the CPU.

Both have the same random weights and get the same clip: forward pass, squared error and KL,
backward pass. Steps alternate between the two in one process. With one thread the times are of the
processor, so that other programs disturb them less. With more threads they are of the clock. What
is kept for the backward pass is counted without parameters. Gradients are compared to ours by
PyTorch's own operations, which keep and compute everything.

    python tools/benchmark.py video-step                       # 5x128x128, with 1 and 2 threads
    python tools/benchmark.py video-step --recompute --size-scale 0.5 --threads 1
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Literal

import torch
from torch import Tensor, nn

from tools.measuring import (
    VIDEO_MODELS,
    add_options,
    check_options,
    count_kept,
    describe,
    exit_status,
    format_table,
    require,
    run_jobs,
)
from wanvae import WanVAE
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert
from wanvae.engine.memory import keep_freed_memory
from wanvae.nn import use_channels_last
from wanvae.nn.kernels.dispatch import PYTORCH, TABLE, Observer

FRAMES, SIDE = 5, 128
KL_WEIGHT = 1e-6
# The most time, and the most kept for the backward pass, of a step of ours for one of the peer.
TIME_TARGET, KEPT_TARGET = 0.6, 0.4

Side = Literal["ours", "peer"]
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class VideoStep:
    """A training step to measure.

    Attributes:
        dtype: "float32", or "bfloat16" under autocast.
        recompute: whether ours keeps less and computes it again in the backward pass. The peer
            cannot.
        threads: number of CPU threads.
    """

    dtype: str
    recompute: bool
    threads: int


@dataclass(frozen=True)
class Result:
    """The measurements of a training step.

    Attributes:
        seconds: seconds of "ours" and "peer" in each round.
        kept: bytes that "ours" and "peer" keep for the backward pass, parameters apart.
        difference: between our gradient and our gradient by PyTorch, relative.
    """

    job: VideoStep
    seconds: Mapping[Side, Sequence[float]]
    kept: Mapping[Side, int]
    difference: float

    def summary(self) -> dict[str, float]:
        """Returns the numbers of the report, by their headings."""
        ours, peer = median(self.seconds["ours"]), median(self.seconds["peer"])
        kept_ours, kept_peer = self.kept["ours"], self.kept["peer"]
        return {
            "ours s": ours,
            "peer s": peer,
            "ours / peer": ours / peer,
            "ours MB": kept_ours / 1e6,
            "peer MB": kept_peer / 1e6,
            "kept ours / peer": kept_ours / kept_peer,
            "gradient": self.difference,
        }


def make_models(name: str) -> dict[Side, nn.Module]:
    """Returns both models, with the same random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers says on import is not ours
        from diffusers import AutoencoderKLWan
    torch.manual_seed(0)
    vae = WanVAE(VIDEO_MODELS[name])
    with TemporaryDirectory(prefix="wanvae-benchmark-") as folder:
        vae.save_pretrained(Path(folder, "vae.safetensors"))
        convert(Path(folder, "vae.safetensors"), Path(folder, "diffusers"), Layout.DIFFUSERS)
        peer = AutoencoderKLWan.from_pretrained(folder + "/diffusers")
    use_channels_last(vae)  # as the command that trains does
    return {"ours": vae.train(), "peer": peer.train()}


def run_ours(vae: nn.Module, video: Tensor, job: VideoStep) -> tuple[Tensor, Tensor]:
    """Returns the reconstruction and its KL."""
    output = vae(video, recompute=job.recompute)
    return output.video, output.posterior.kl().mean()


def run_peer(vae: nn.Module, video: Tensor, job: VideoStep) -> tuple[Tensor, Tensor]:
    """Returns the reconstruction and its KL."""
    posterior = vae.encode(video).latent_dist
    return vae.decode(posterior.sample()).sample, posterior.kl().mean()


RUNS = {"ours": run_ours, "peer": run_peer}


def find_loss(side: Side, vae: nn.Module, video: Tensor, job: VideoStep) -> Tensor:
    """Returns the loss of a step."""
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=job.dtype == "bfloat16"):
        output, kl = RUNS[side](vae, video, job)
    return (output - video).square().mean() + KL_WEIGHT * kl


def take_step(side: Side, vae: nn.Module, video: Tensor, job: VideoStep) -> Gradients:
    """Returns the gradients of a step."""
    find_loss(side, vae, video, job).backward()
    found = {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}
    vae.zero_grad(set_to_none=True)
    return found


def compare_gradients(found: Gradients, expected: Gradients) -> float:
    """Returns the norm of the difference of two gradients, relative to the norm of the second."""
    difference = sum((found[name] - expected[name]).square().sum() for name in expected)
    return (difference / sum(x.square().sum() for x in expected.values())).sqrt().item()


def find_gradients_by_pytorch(vae: nn.Module, video: Tensor, job: VideoStep) -> Gradients:
    """Returns the gradients of our model by PyTorch's own operations."""
    kernels = TABLE[Observer.AUTOGRAD]
    ours = kernels["cpu"]
    kernels["cpu"] = PYTORCH
    try:
        return take_step("ours", vae, video, job)
    finally:
        kernels["cpu"] = ours


def measure(job: VideoStep, models: Mapping[Side, nn.Module], repeats: int, scale: float) -> Result:
    """Returns all measurements of a training step."""
    before, clock = torch.get_num_threads(), process_time if job.threads == 1 else perf_counter
    side_length = max(16, round(SIDE * scale / 16) * 16)
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(1, 3, FRAMES, side_length, side_length, generator=generator) * 2 - 1
    torch.set_num_threads(job.threads)
    try:
        expected = find_gradients_by_pytorch(models["ours"], video, job)
        difference = compare_gradients(take_step("ours", models["ours"], video, job), expected)
        del expected
        kept = {
            side: count_kept(partial(find_loss, side, model, video, job), model.parameters())
            for side, model in models.items()
        }
        seconds: dict[Side, list[float]] = {side: [] for side in models}
        for _ in range(repeats):
            for side, model in models.items():
                began = clock()
                take_step(side, model, video, job)
                seconds[side].append(clock() - began)
    finally:
        torch.set_num_threads(before)
    return Result(job, seconds, kept, difference)


def report(results: Sequence[Result]) -> str:
    """Returns a Markdown table, and the targets."""
    rows = [["dtype", "recomputes", "threads", *results[0].summary()]]
    for result in results:
        job = result.job
        *cells, difference = (f"{x:.3g}" for x in result.summary().values())
        rows.append([job.dtype, str(job.recompute), str(job.threads), *cells, difference])
    targets = f"Targets: at most {TIME_TARGET} of the peer's time, {KEPT_TARGET} of what it keeps."
    return f"{format_table(rows, labels=2)}\n\n{targets}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="benchmark video-step", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--model", choices=VIDEO_MODELS, default="full")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads (default: 1 2)"
    )
    parser.add_argument(
        "--recompute", action="store_true", help="measure ours with gradient checkpointing as well"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    if min(options.threads) < 1:
        parser.error("--threads must be positive")
    return options


def run(options: argparse.Namespace) -> None:
    """Measures all steps and prints a report."""
    require("diffusers")
    keep_freed_memory()  # as the command that trains does
    models = make_models(options.model)
    jobs = [
        VideoStep(dtype, recompute, threads)
        for dtype in options.dtypes
        for recompute in ((False, True) if options.recompute else (False,))
        for threads in options.threads
    ]
    header = describe("training steps of video models on cpu", "diffusers")
    run_jobs(
        jobs,
        lambda job: measure(job, models, options.repeats, options.size_scale),
        report,
        header,
        options.json,
    )


def main(arguments: Sequence[str]) -> int:
    return exit_status(partial(run, parse(arguments)))
