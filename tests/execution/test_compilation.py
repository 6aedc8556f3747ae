"""Compiled steps: many sizes, and what can be compiled by ``torch.compile`` itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch

from tests.helpers import random_video, run_steps, tiny
from wanvae import WanVAE
from wanvae.execution.compilation import Compilation, compiled_step
from wanvae.nn import CausalConv

SMALL: dict[str, object] = {"dim_mult": (1, 1), "temporal_downsample": (True,)}


@pytest.mark.skipif(
    "recompile_limit" not in signature(torch.compile).parameters,
    reason="this PyTorch has one limit for the whole process alone",
)
def test_more_sizes_are_compiled_than_pytorch_does_by_itself() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    step = compiled_step(Compilation.from_options({"backend": backend}))
    layers = (CausalConv(3, 2, 2, 3).double(),)
    for width in range(1, 13):
        x = random_video(2, 2, width)[:, :2]
        with torch.no_grad():
            torch.testing.assert_close(step(layers, x, None)[0], layers[0](x))
        assert len(graphs) == width


def agree(vae: WanVAE, backend: str, dynamic: bool | None, *sizes: tuple[int, int, int]) -> None:
    """Compare the compiled steps and the compiled model with the model for several sizes."""
    encode_step, decode_step, call = (
        torch.compile(function, backend=backend, dynamic=dynamic)
        for function in (vae.encode_step, vae.decode_step, vae)
    )
    for frames, height, width in sizes:
        video = random_video(frames, height, width).to(vae.encode_dtype)
        pieces = video.split([1] + [2] * (frames // 2), dim=2)
        with torch.no_grad():
            moments = run_steps(encode_step, pieces)
            torch.testing.assert_close(moments, vae.encode_step(video, None)[0], atol=1e-4, rtol=0)
            latents = moments[:, :2]
            decoded = run_steps(decode_step, latents.split(1, dim=2))
            expected = vae.decode_step(latents, None)[0]
            torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(call(video).video, vae(video).video, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dynamic", [None, True])
def test_steps_and_model_compile_for_many_sizes(dynamic: bool | None) -> None:
    agree(tiny(**SMALL), "eager", dynamic, (5, 4, 4), (7, 4, 6))


def agree_with_gradients(vae: WanVAE, backend: str, *sizes: tuple[int, int, int]) -> None:
    """Compare gradients through the compiled model and through compiled steps with a state."""
    call, step = (torch.compile(each, backend=backend) for each in (vae, vae.encode_step))

    def in_steps(encode: Callable[..., Any], video: torch.Tensor) -> torch.Tensor:
        return run_steps(encode, video.split([1, *[2] * (video.shape[2] // 2)], dim=2))

    for size in sizes:
        video = random_video(*size).to(vae.encode_dtype)
        for compiled, plain in (
            (lambda x: call(x).video, lambda x: vae(x).video),
            (lambda x: in_steps(step, x), lambda x: in_steps(vae.encode_step, x)),
        ):
            found, expected = (find_gradients(vae, run, video) for run in (compiled, plain))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def find_gradients(
    vae: WanVAE, run: Callable[[torch.Tensor], torch.Tensor], video: torch.Tensor
) -> list[torch.Tensor | None]:
    """The gradients of a loss, by parameter."""
    vae.zero_grad()
    run(video).square().mean().backward()
    return [parameter.grad for parameter in vae.parameters()]


@pytest.mark.slow  # about ten seconds of tracing
def test_gradients_pass_through_compiled_steps_and_model() -> None:
    agree_with_gradients(tiny(**SMALL), "aot_eager", (5, 4, 4), (7, 4, 6))


def test_encode_and_decode_of_a_compiled_model_are_those_of_the_model() -> None:
    vae, video = tiny(**SMALL), random_video(5, 4, 4)
    compiled = torch.compile(vae, backend="eager")
    latents = compiled.encode(video).mode()
    assert torch.equal(latents, vae.encode(video).mode())
    assert torch.equal(compiled.decode(latents), vae.decode(latents))


@pytest.mark.slow
def test_many_sizes_through_a_model_that_compiled_itself(recwarn: pytest.WarningsRecorder) -> None:
    """More sizes than the 8 that PyTorch compiles by itself."""
    vae = tiny(**SMALL)
    expected = copy.deepcopy(vae)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    vae.compile(backend=backend)
    for width in range(2, 22, 2):
        video, before = random_video(1, 2, width), len(graphs)
        torch.testing.assert_close(vae.encode(video).mode(), expected.encode(video).mode())
        assert len(graphs) > before
    assert not [str(warning.message) for warning in recwarn if "recompile" in str(warning.message)]


# Inductor compiles by a C++ compiler, which takes minutes on a busy machine. Each has one thing.
@pytest.mark.slow
def test_a_model_compiles_by_inductor() -> None:
    vae, video = tiny(**SMALL).float(), random_video(5, 4, 4).float()
    with torch.no_grad():
        expected = vae(video).video
        torch.testing.assert_close(torch.compile(vae)(video).video, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_steps_of_several_sizes_compile_by_inductor() -> None:
    vae = tiny(**SMALL).float()
    step = torch.compile(vae.encode_step)
    for width in (4, 6):
        video = random_video(5, 4, width).float()
        with torch.no_grad():
            moments = run_steps(step, video.split([1, 2, 2], dim=2))
            torch.testing.assert_close(moments, vae.encode_step(video, None)[0], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_gradients_of_steps_compile_by_inductor() -> None:
    vae, video = tiny(**SMALL).float(), random_video(3, 4, 4).float()
    step = torch.compile(vae.encode_step)
    pieces = video.split([1, 2], dim=2)
    found, expected = (
        find_gradients(vae, lambda _, encode=encode: run_steps(encode, pieces), video)
        for encode in (step, vae.encode_step)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_model_that_compiled_itself_encodes_by_inductor() -> None:
    vae, video = tiny(**SMALL).float(), random_video(3, 4, 4).float()
    expected = vae.encode(video).mode()
    vae.compile()
    torch.testing.assert_close(vae.encode(video).mode(), expected, atol=1e-4, rtol=0)
