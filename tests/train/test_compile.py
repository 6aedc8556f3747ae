"""Training a video VAE with compiled blocks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from tests.helpers import tiny
from tests.train.test_train import GAN, lines_of, options
from wanvae import WanVAE
from wanvae.engine.checkpoint import read_tensors
from wanvae.engine.training import compiling
from wanvae.train.run import innermost_blocks, main

BUCKETS = "[{frames: 5, height: 16, width: 24}, {frames: 1, height: 16, width: 16}]"
# What decodes more than once, and asks for gradients of gradients and of layers.
LOSSES = [*GAN, "--loss.gan.r1=1", "--loss.equivariance.weight=1"]
LOSSES += ["--loss.channel_dropout.weight=1"]


@pytest.fixture
def graphs(monkeypatch) -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs that have been compiled so far, by a backend without code of its own."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setitem(compiling.OPTIONS, "backend", backend)
    yield graphs
    torch._dynamo.reset()


def train(folder: Path, run: Path, *changes: str, steps: int = 4) -> dict[str, torch.Tensor]:
    """The weights after a run of a small model."""
    small = ["--model.num_res_blocks=1", "--trainer.accumulate=2", f"--data.buckets={BUCKETS}"]
    assert main([*options(folder, run, steps), *small, *changes]) == 0
    files = run / "model.safetensors", run / "lora.safetensors"
    return read_tensors(next(path for path in files if path.exists())).tensors


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["true", "false"])
def test_compiled_blocks_train_as_plain_ones(folder, tmp_path, graphs, recompute):
    """With each loss, several shapes, and an evaluation in between, which compiles nothing."""
    changes = [*LOSSES, f"--gradient_checkpointing={recompute}", f"--evaluation.folder={folder}"]
    changes += ["--evaluation.frames=5", "--evaluation.size=16", "--trainer.evaluate_every=1"]
    expected = train(folder, tmp_path / "plain", *changes)
    assert not graphs
    assert_close(train(folder, tmp_path / "compiled", *changes, "--trainer.compile=true"), expected)
    count = len(graphs)
    blocks = innermost_blocks(WanVAE.from_pretrained(tmp_path / "plain" / "model.safetensors"))
    # Two shapes for each block at most, less what is shared.
    assert 0 < count <= 2 * len(blocks)
    psnr = [
        [line["evaluation_psnr"] for line in lines_of(run) if "evaluation_psnr" in line]
        for run in (tmp_path / "plain", tmp_path / "compiled")
    ]
    assert psnr[0] == pytest.approx(psnr[1], abs=0.01)
    # A run that goes on, from other objects of the same kind, compiles nothing more.
    train(folder, tmp_path / "compiled", *changes, "--trainer.compile=true", steps=8)
    assert len(graphs) == count


@pytest.mark.slow
def test_a_lora_is_trained_through_compiled_blocks(folder, tmp_path, graphs):
    weights = tmp_path / "vae.safetensors"
    tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float().save_pretrained(weights)
    changes = [f"--weights={weights}", "--lora.rank=1", "--trainer.optimizer=sgd"]
    expected = train(folder, tmp_path / "plain", *changes)
    assert_close(train(folder, tmp_path / "compiled", *changes, "--trainer.compile=true"), expected)
    assert graphs


@pytest.mark.slow
def test_code_by_inductor_trains_and_goes_on_as_if_it_never_stopped(folder, tmp_path):
    """With weights that are the same, bit for bit."""
    torch._dynamo.reset()
    # AdamW would make steps of full size of gradients that are nothing but rounding.
    plain = ["--trainer.checkpoint_every=2", "--trainer.optimizer=sgd"]
    changes = [*plain, "--trainer.compile=true"]
    expected = train(folder, tmp_path / "plain", *plain)
    whole = train(folder, tmp_path / "whole", *changes)
    assert_close(whole, expected)
    (tmp_path / "whole" / "model.safetensors").unlink()
    newest = tmp_path / "whole" / "checkpoints" / "step-00000004"
    newest.rename(tmp_path / "newest")
    torch._dynamo.reset()
    again = train(folder, tmp_path / "whole", *changes)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
