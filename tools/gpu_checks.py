"""What must hold on a device: the same numbers as on a CPU, however a model runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tools.golden import CASES, load_golden
from wanvae import CUDAGraphs, WanVAE, WanVAEConfig
from wanvae.nn import (
    AttentionBlock,
    CausalConv,
    Downsample,
    RMSNorm,
    Sequential,
    State,
    Upsample,
    use_channels_last,
)
from wanvae.nn.kernels.gpu import operators, plain

# The largest error, relative to the largest value, of one layer and of a whole model.
LAYER_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
MODEL_ERRORS = {torch.float32: 2e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


class CheckError(Exception):
    """A result that is wrong."""


@dataclass(frozen=True)
class Setup:
    """What is checked, and where.

    Attributes:
        config: the architecture of the model that is measured.
        small: a smaller architecture, for compilation and gradients, which take long.
        scale: of the height and the width of frames.
        most_frames: the most frames of a clip.
        repeats: how often a call is timed.
        backend: of ``torch.compile``.
    """

    device: torch.device
    config: WanVAEConfig
    small: WanVAEConfig
    scale: float
    most_frames: int
    repeats: int
    backend: str

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def side(self, pixels: int) -> int:
        """Returns the side of a frame, a multiple of 16."""
        return max(16, round(pixels * self.scale / 16) * 16)

    def make_graphs(self) -> CUDAGraphs:
        """Returns graphs; a CPU only runs the recorded work again."""
        if self.on_gpu:
            return CUDAGraphs()
        from tests.rerunning import Rerunner

        return CUDAGraphs(recorder=Rerunner())


@cache
def make_model(config: WanVAEConfig, dtype: torch.dtype, device: torch.device) -> WanVAE:
    """Returns a model with random weights, all of which matter, as ``from_pretrained`` does."""
    torch.manual_seed(0)
    vae = WanVAE(config)
    with torch.no_grad():
        for parameter in vae.parameters():
            # Attention starts with a zero projection, which would hide errors of attention.
            parameter += 0.02 * torch.randn_like(parameter)
    use_channels_last(vae)
    return vae.to(device, dtype).eval()


def make_random(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns normal values, the same on every device."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def find_error(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, relative to the largest expected value."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if not found.isfinite().all():
        return math.inf
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


def require_small(errors: dict[str, float], limit: float) -> dict[str, float]:
    """Returns the errors; raises CheckError if one is larger than ``limit``."""
    wrong = {name: error for name, error in errors.items() if not error <= limit}
    if wrong:
        listed = ", ".join(f"{name} {error:.1e}" for name, error in wrong.items())
        raise CheckError(f"errors above {limit:.0e}: {listed}")
    return errors


def check_operators(setup: Setup, dtype: torch.dtype) -> dict[str, Any]:
    """Checks each operator against PyTorch's operations in float64 on a CPU."""
    errors: dict[str, float] = {}
    for name in operators.DEFINITIONS:
        operator = getattr(torch.ops.wanvae, name)
        for arguments in OPERATOR_INPUTS[name]():
            given = [convert(argument, setup.device, dtype) for argument in arguments]
            found = as_tuple(operator(*given))
            # Rounded to the dtype first, because the operator gets rounded values too.
            exact = [convert(x, torch.device("cpu"), dtype, torch.float64) for x in arguments]
            expected = as_tuple(getattr(plain, name)(*exact))
            worst = max(map(find_error, found, expected))
            errors[name] = max(errors.get(name, 0.0), worst)
    return {"largest error": max(require_small(errors, LAYER_ERRORS[dtype]).values())}


def convert(value: Any, device: torch.device, *dtypes: torch.dtype) -> Any:
    """Returns a copy of a tensor, converted to each dtype in turn; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    value = value.clone().to(device)
    for dtype in dtypes:
        value = value.to(dtype)
    return value


def as_tuple(results: Any) -> tuple[Tensor, ...]:
    """Returns the non-empty results of an operator."""
    results = results if isinstance(results, tuple) else (results,)
    return tuple(result for result in results if result.numel())


def channels_innermost(*shape: int) -> Tensor:
    """Returns normal values with channels innermost."""
    x = make_random(shape, torch.float32, torch.device("cpu"))
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def list_joins() -> Iterator[tuple[Any, ...]]:
    """Yields arguments of ``join``: channels, sizes and histories of many kinds."""
    for channels, frames, past, height in (
        (1, 1, 0, 1),
        (3, 2, 1, 5),
        (96, 4, 2, 9),
        (384, 1, 2, 7),
    ):
        x = channels_innermost(2, channels, frames, height, height + 2)
        before = channels_innermost(2, channels, past, height, height + 2) if past else None
        bias, gamma = torch.randn(channels), torch.rand(channels, 1, 1, 1) + 0.5
        yield before, x, None, gamma, "silu", 2, 2
        yield before, x, bias, None, "none", 2, 1
        yield before, x.contiguous(), bias, gamma, "relu", 2, 0
    yield None, channels_innermost(3, 192, 5, 6), None, torch.ones(192, 1, 1), "none", 0, 0


def list_additions() -> Iterator[tuple[Any, ...]]:
    """Yields arguments of ``add_``."""
    for shape in ((1, 1, 1, 1, 1), (2, 96, 3, 5, 7), (1, 384, 2, 8, 8)):
        yield channels_innermost(*shape), None, channels_innermost(*shape) + 1
        yield channels_innermost(*shape), torch.randn(shape[1]), channels_innermost(*shape) + 1


def list_phases() -> Iterator[tuple[Any, ...]]:
    """Yields arguments of ``interleave``."""
    yield channels_innermost(3, 4 * 96, 6, 5), torch.randn(96)
    yield channels_innermost(1, 4, 2, 2), None


def list_paired_frames() -> Iterator[tuple[Any, ...]]:
    """Yields arguments of ``interleave_frames``."""
    yield channels_innermost(2, 2 * 96, 3, 5, 4), torch.randn(2 * 96)
    yield channels_innermost(1, 2, 1, 1, 1), None


def list_gradients() -> Iterator[tuple[Any, ...]]:
    """Yields arguments of ``norm_activate_backward``."""
    for channels, activation in ((3, "silu"), (96, "silu"), (384, "none")):
        shape = (2, channels, 2, 5, 6)
        gamma = torch.rand(channels, 1, 1, 1) + 0.5
        yield channels_innermost(*shape), channels_innermost(*shape) + 1, gamma, activation


OPERATOR_INPUTS: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
    "join": list_joins,
    "add_": list_additions,
    "make_phases": lambda: iter([(channels_innermost(5, 96, 3, 3),)]),
    "interleave": list_phases,
    "interleave_frames": list_paired_frames,
    "norm_activate_backward": list_gradients,
}


def check_layers(setup: Setup, dtype: torch.dtype) -> dict[str, Any]:
    """Checks layers in steps, with and without gradients, against float64 on a CPU at once."""
    errors = {}
    for name, layer, channels in list_layers():
        x = channels_innermost(2, channels, 9, 6, 10).to(dtype)
        exact = copy.deepcopy(layer).to(dtype).double()
        with torch.enable_grad():
            expected = exact(x.double())
        placed = layer.to(setup.device, dtype).eval()
        for recorded in (False, True):
            with torch.set_grad_enabled(recorded):
                found = in_steps(placed.step, x.to(setup.device), (1, 2, 2, 4))
            errors[f"{name}{' with gradients' if recorded else ''}"] = find_error(found, expected)
    return {"largest error": max(require_small(errors, LAYER_ERRORS[dtype]).values())}


def list_layers() -> Iterator[tuple[str, Any, int]]:
    """Yields layers with random weights, and their input channels."""
    torch.manual_seed(0)
    for channels in (16, 96):
        norm = RMSNorm(3, channels)
        nn.init.uniform_(norm.gamma, 0.5, 1.5)
        conv = CausalConv(3, channels, 2 * channels, 3)
        layers: dict[str, Any] = {
            "convolution": Sequential(norm, nn.SiLU(), conv),
            "downsampling": Downsample(3, channels, temporal=True),
            "upsampling": Upsample(3, channels, channels // 2, temporal=True),
            "attention": AttentionBlock(channels),
        }
        nn.init.normal_(layers["attention"].proj.weight, std=0.1)  # it starts with zeros
        for name, layer in layers.items():
            use_channels_last(layer)
            yield f"{name} of {channels} channels", layer, channels


@torch.no_grad()
def check_golden(setup: Setup, dtype: torch.dtype) -> dict[str, Any]:
    """Checks models against what their official code computed."""
    errors = {}
    for name, cases in CASES.items():
        vae, tensors = load_golden(name)
        use_channels_last(vae)
        vae = vae.to(setup.device, dtype)
        for case in cases:
            video, moments, latents, decoded = (
                tensors[f"case.{case}.{part}"].to(setup.device)
                for part in ("video", "moments", "latents", "decoded")
            )
            posterior = vae.encode(video.to(dtype))
            found = torch.cat([posterior.mean, posterior.logvar], dim=1)
            errors[f"encode {name} {case}"] = find_error(found, moments)
            found = vae.decode(vae.denormalize(latents).to(dtype), clamp=False)
            errors[f"decode {name} {case}"] = find_error(found, decoded)
    return {"largest error": max(require_small(errors, MODEL_ERRORS[dtype]).values())}


@torch.no_grad()
def check_ways(setup: Setup, dtype: torch.dtype) -> dict[str, Any]:
    """Checks that a clip at once, in chunks, in tiles and with graphs is the same."""
    vae = make_model(setup.config, dtype, setup.device)
    height, width = setup.side(96), setup.side(128)
    video = make_random((1, 3, 17, height, width), dtype, setup.device).tanh()
    moments = vae.encode_step(video, None)[0]
    latents = moments.chunk(2, dim=1)[0]
    decoded = vae.decode_step(latents, None)[0]
    tile = {"tile_size": (setup.side(48), setup.side(64))}
    graphs = setup.make_graphs()
    errors = {}
    for name, options in {"steps": {}, "tiles": tile, "graphs": {"graphs": graphs}}.items():
        for _ in range(2):
            posterior = vae.encode(video, **options)
            found = torch.cat([posterior.mean, posterior.logvar], dim=1)
            errors[f"encode in {name}"] = find_error(found, moments)
            found = vae.decode(latents, clamp=False, **options)
            errors[f"decode in {name}"] = find_error(found, decoded)
    for name, options in {"chunks": {}, "chunks with graphs": {"graphs": graphs}}.items():
        encoder = vae.stream_encode(**options)
        parts = [encoder.push(piece) for piece in video.split([1, 4, 4, 8], dim=2)]
        found = torch.cat([part.mean for part in parts if part is not None], dim=2)
        errors[f"encode in {name}"] = find_error(found, latents)
        decoder = vae.stream_decode(clamp=False, **options)
        found = torch.cat([decoder.push(z) for z in latents.split(2, dim=2)], dim=2)
        errors[f"decode in {name}"] = find_error(found, decoded)
    errors = require_small(errors, MODEL_ERRORS[dtype])
    return {"largest error": max(errors.values()), "graphs": len(graphs)}


@torch.no_grad()
def check_compiled(setup: Setup) -> dict[str, Any]:
    """Checks that a compiled model is the model, also if PyTorch records graphs."""
    vae = make_model(setup.small, torch.float32, setup.device)
    latents = make_random((1, setup.small.z_dim, 4, 6, 8), torch.float32, setup.device)
    expected = vae.decode(latents)
    options: dict[str, Any] = {"backend": setup.backend}
    ways = {"compiled": options}
    if setup.on_gpu:
        ways["compiled with graphs"] = {"mode": "reduce-overhead"}
    errors = {}
    for name, options in ways.items():
        compiled = copy.deepcopy(vae)
        compiled.compile(**options)
        for _ in range(3):
            errors[name] = find_error(compiled.decode(latents), expected)
    return {"largest error": max(require_small(errors, 1e-3).values())}


def check_gradients(setup: Setup) -> dict[str, Any]:
    """Checks gradients of a small model in float32 against float64 on a CPU."""
    vae = make_model(setup.small, torch.float32, torch.device("cpu"))
    video = make_random((1, 3, 9, 32, 32), torch.float32, torch.device("cpu")).tanh()
    found = find_gradients(copy.deepcopy(vae).to(setup.device), video.to(setup.device))
    expected = find_gradients(copy.deepcopy(vae).double(), video.double())
    errors = {name: find_error(found[name], gradient) for name, gradient in expected.items()}
    return {"largest error": max(require_small(errors, 1e-2).values())}


def find_gradients(vae: WanVAE, video: Tensor) -> dict[str, Tensor]:
    """Returns the gradients of a loss, by the names of the parameters."""
    result = vae(video)
    loss = (result.video - video).square().mean() + 1e-3 * result.posterior.mean.square().mean()
    loss.backward()
    return {
        name: parameter.grad
        for name, parameter in vae.named_parameters()
        if parameter.grad is not None
    }


def in_steps(
    step: Callable[[Tensor, State], tuple[Tensor, State]], x: Tensor, frames: Sequence[int]
) -> Tensor:
    """Returns the joined outputs of a stream in pieces of so many frames."""
    state: State = None
    outputs = []
    for piece in x.split([*frames], dim=2):
        y, state = step(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=2)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Computes float32 exactly on a GPU, and not with 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
