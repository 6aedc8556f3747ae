"""What a device takes: seconds and memory of encoding, decoding, streams and training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from tools.gpu_checks import CheckError, Setup, find_error, make_model, make_random
from wanvae import Posterior, WanVAE
from wanvae.execution.budget import Planner, parse_memory
from wanvae.execution.cost import Workload
from wanvae.execution.limits import Limits
from wanvae.execution.meter import MemoryMeter
from wanvae.execution.run import Runner

HALF = torch.bfloat16
LIMIT = "4GB"
# The longest kernels that are listed.
LISTED = 10


def measure_coding(
    setup: Setup, frames: int, height: int, width: int, *, decoding: bool
) -> dict[str, Any]:
    """Measures encoding or decoding of a clip, step by step and with graphs."""
    vae = make_model(setup.config, HALF, setup.device)
    x = make_input(setup, vae, frames, height, width, decoding=decoding)
    code = call_of(vae, decoding=decoding)
    figures: dict[str, Any] = measure(setup, vae, lambda: code(x))
    figures["predicted bytes"] = predict(vae, x, decoding=decoding)
    figures["predicted / measured"] = figures["predicted bytes"] / figures["bytes"]
    graphs = setup.make_graphs()
    for _ in range(2):
        code(x, graphs=graphs)
    of_graphs = measure(setup, vae, lambda: code(x, graphs=graphs))
    return figures | {f"{name} with graphs": value for name, value in of_graphs.items()}


def make_input(
    setup: Setup, vae: WanVAE, frames: int, height: int, width: int, *, decoding: bool
) -> Tensor:
    """Returns a video, or the latents of a video of this size."""
    height, width = setup.side(height), setup.side(width)
    frames = min(frames, setup.most_frames)
    if not decoding:
        return make_random((1, 3, frames, height, width), HALF, setup.device).tanh()
    config = vae.config
    latents = 1 + (frames - 1) // config.temporal_factor
    size = height // config.spatial_factor, width // config.spatial_factor
    return make_random((1, config.z_dim, latents, *size), HALF, setup.device)


def call_of(vae: WanVAE, *, decoding: bool) -> Callable[..., Any]:
    """Returns the method that decodes or encodes."""
    return vae.decode if decoding else vae.encode


@torch.inference_mode()
def measure(setup: Setup, vae: nn.Module, call: Callable[[], object]) -> dict[str, Any]:
    """Returns the median of the seconds, and the memory besides model and input."""
    call()  # libraries choose their kernels
    seconds = [time_call(setup, call) for _ in range(setup.repeats)]
    return {"seconds": median(seconds), "bytes": measure_memory(setup, vae, call)}


def time_call(setup: Setup, call: Callable[[], object]) -> float:
    """Returns the seconds of a call, with all work that it starts on the device."""
    wait(setup)
    began = perf_counter()
    call()
    wait(setup)
    return perf_counter() - began


def wait(setup: Setup) -> None:
    """Waits until the device has nothing to do."""
    if setup.on_gpu:
        torch.cuda.synchronize()


def measure_memory(setup: Setup, vae: nn.Module, call: Callable[[], object]) -> int:
    """Returns the peak of the memory that a call takes, its result included."""
    if not setup.on_gpu:
        with MemoryMeter([*vae.parameters(), *vae.buffers()]) as meter:
            call()
        return meter.peak
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def predict(vae: WanVAE, x: Tensor, *, decoding: bool) -> int:
    """Returns the memory that our plan expects."""
    network = vae.decoder_network() if decoding else vae.encoder_network()
    runner = Runner(network, Limits())
    latents = network.count_latents(x.shape[2])
    scale = network.pixels_per_input
    height, width = (side * scale for side in x.shape[-2:])
    workload = Workload(len(x), x.shape[1], latents, height, width, x.dtype, offloads=True)
    planner = Planner(network, overhead=0, planning_memory=0)
    return planner.memory(workload, runner.choose_plan(x.shape, latents))


def check_limit(setup: Setup) -> dict[str, Any]:
    """Checks that a large clip is decoded within a memory limit."""
    vae = make_model(setup.config, HALF, setup.device)
    x = make_input(setup, vae, 21, 720, 1280, decoding=True)
    figures = measure(setup, vae, lambda: vae.decode(x, max_memory=LIMIT))
    if figures["bytes"] > parse_memory(LIMIT):
        raise CheckError(f"took {figures['bytes'] / 2**20:.0f} MB within {LIMIT}")
    return figures


@torch.inference_mode()
def measure_stream(setup: Setup, height: int, width: int) -> dict[str, Any]:
    """Measures how long each latent of a stream takes to become frames."""
    vae = make_model(setup.config, HALF, setup.device)
    pushes = 4 + 4 * setup.repeats
    x = make_input(setup, vae, 5, height, width, decoding=True)[:, :, :1]
    graphs = setup.make_graphs()
    figures = {}
    for name, options in {"": {}, " with graphs": {"graphs": graphs}}.items():
        session = vae.stream_decode(**options)
        seconds = [time_call(setup, partial(session.push, x)) for _ in range(pushes)]
        # The first pieces have other shapes, and are recorded.
        figures |= {
            f"median seconds{name}": median(seconds[4:]),
            f"longest seconds{name}": max(seconds[4:]),
        }
    return figures


def measure_training(setup: Setup) -> dict[str, Any]:
    """Measures a step of training: forward and backward pass, and AdamW."""
    torch.manual_seed(0)
    vae = copy.deepcopy(make_model(setup.config, torch.float32, setup.device)).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-5)
    size = setup.side(256)
    frames = min(17, setup.most_frames)
    video = make_random((1, 3, frames, size, size), torch.float32, setup.device).tanh()
    losses: list[float] = []

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(setup.device.type, HALF):
            result = vae(video)
        loss = (result.video.float() - video).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    step()
    seconds = [time_call(setup, step) for _ in range(setup.repeats)]
    figures = {"seconds": median(seconds), "bytes": measure_memory(setup, vae, step)}
    if not all(torch.tensor(losses).isfinite()):
        raise CheckError(f"the losses are {losses}")
    return figures | {"first loss": losses[0], "last loss": losses[-1]}


@torch.inference_mode()
def profile(setup: Setup) -> dict[str, Any]:
    """Lists the kernels that take longest in decoding, and counts launches."""
    from torch.profiler import ProfilerActivity

    vae = make_model(setup.config, HALF, setup.device)
    x = make_input(setup, vae, 17, 480, 832, decoding=True)
    vae.decode(x)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        vae.decode(x)
        wait(setup)
    name = "self_device_time_total" if setup.on_gpu else "self_cpu_time_total"
    kind = "CUDA" if setup.on_gpu else "CPU"
    events = [event for event in profiler.key_averages() if event.device_type.name == kind]
    events.sort(key=lambda event: getattr(event, name), reverse=True)
    return {
        "launches": sum(event.count for event in events),
        "seconds": sum(getattr(event, name) for event in events) / 1e6,
        "longest": [
            {"name": e.key[:120], "seconds": getattr(e, name) / 1e6, "launches": e.count}
            for e in events[:LISTED]
        ],
    }


def measure_compiled(setup: Setup) -> dict[str, Any]:
    """Measures decoding by a compiled model; the compilation itself is timed apart."""
    vae = copy.deepcopy(make_model(setup.config, HALF, setup.device))
    x = make_input(setup, vae, 81, 480, 832, decoding=True)
    vae.compile(backend=setup.backend)
    compilation = time_call(setup, lambda: vae.decode(x))
    return {"first call": compilation} | measure(setup, vae, lambda: vae.decode(x))


@torch.inference_mode()
def compare_with_diffusers(setup: Setup) -> dict[str, Any]:
    """Measures the code of diffusers with the same weights, if diffusers is installed."""
    if find_spec("diffusers") is None:
        return {"not installed": "diffusers"}
    vae = copy.deepcopy(make_model(setup.config, HALF, setup.device))
    peer: Any = make_peer(vae)
    figures: dict[str, Any] = {}
    for name, decoding in (("decode", True), ("encode", False)):
        x = make_input(setup, vae, 81, 480, 832, decoding=decoding)
        calls = {
            side: partial(read_result, getattr(model, name), x)
            for side, model in {"ours": vae, "diffusers": peer}.items()
        }
        figures[f"{name}: difference"] = find_error(*(call() for call in calls.values()))
        for side, call in calls.items():
            measured = measure(setup, vae, call)
            figures |= {f"{name} {side}: {key}": value for key, value in measured.items()}
        for key in ("seconds", "bytes"):
            ratio = figures[f"{name} ours: {key}"] / figures[f"{name} diffusers: {key}"]
            figures[f"{name}: {key} over diffusers"] = ratio
    return figures


def make_peer(vae: WanVAE) -> nn.Module:
    """Returns diffusers' own VAE with the weights of ours, which changes their layout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = vae.as_diffusers()
    for name in ("_encode", "_decode", "tiled_encode", "tiled_decode", "enable_tiling"):
        del peer.__dict__[name]
    peer = copy.deepcopy(peer)
    for parameter in peer.parameters():
        parameter.data = parameter.data.contiguous()
    return peer


def read_result(call: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Returns the video or the moments that a call of ours or of diffusers gives."""
    result = call(x)
    if isinstance(result, Tensor):
        return result
    if isinstance(result, Posterior):
        return torch.cat([result.mean, result.logvar], dim=1)
    return result.latent_dist.parameters if hasattr(result, "latent_dist") else result.sample
