"""Compiled steps: many sizes, and what can be compiled by ``torch.compile`` itself."""

from __future__ import annotations

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


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_steps_and_model_compile_by_inductor_for_many_sizes(dynamic: bool | None) -> None:
    agree(tiny(**SMALL).float(), "inductor", dynamic, (5, 4, 4), (7, 4, 6), (7, 6, 8))
