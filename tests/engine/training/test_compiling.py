"""Blocks that are compiled for training, by a backend that computes as PyTorch does."""

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.engine.training.test_loop import assert_equal, final_weights
from tests.engine.training.toy import Block, make_task, settings
from wanvae.engine.training import compiling
from wanvae.engine.training.compiling import compile_blocks, no_new_shapes
from wanvae.engine.training.loop import train
from wanvae.errors import UserError


@pytest.fixture
def compiled(monkeypatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the inputs of all graphs so far."""
    shapes = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        shapes.append(max((tuple(x.shape) for x in inputs if not x.requires_grad), default=()))
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setitem(compiling.OPTIONS, "backend", backend)
    yield shapes
    torch._dynamo.reset()


def make_block() -> Block:
    torch.manual_seed(0)
    block = Block(nn.Linear(4, 4), nn.Tanh())
    compile_blocks([block])
    return block


def run(block: Block, rows: int) -> torch.Tensor:
    return block.step(torch.ones(rows, 4), None)[0]


def test_each_shape_is_compiled_once_up_to_a_limit(compiled, monkeypatch):
    monkeypatch.setattr(compiling, "SHAPES", 3)
    block = make_block()
    for _ in range(3):
        run(block, 1), run(block, 2)
    assert compiled == [(1, 4), (2, 4)]
    with pytest.warns(UserWarning, match="compiled for 3 shapes; inputs of further shapes run unc"):
        run(block, 3)
    for rows in (4, 5, 1):
        torch.testing.assert_close(run(block, rows), run(block, 3)[:1].expand(rows, 4))
    assert compiled == [(1, 4), (2, 4), (3, 4)]


def test_blocks_of_one_kind_share_what_is_compiled(compiled):
    blocks = [make_block() for _ in range(12)]
    for block in blocks:
        run(block, 2)
    assert len(compiled) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_a_copy_of_a_block_runs_its_own_weights(compiled, copied):
    block = make_block()
    expected = run(block, 2)
    other = copied(block)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    assert torch.equal(run(other, 2), expected) and not run(block, 2).any()


def test_only_training_is_compiled(compiled):
    """And of shapes that may be countless, only those that are met elsewhere too."""
    block = make_block()
    with torch.no_grad():
        run(block, 1)
    with no_new_shapes():
        run(block, 2)
    assert not compiled
    run(block, 3)
    with no_new_shapes():
        run(block, 3)
    assert compiled == [(3, 4)]


def test_what_is_computed_again_is_computed_in_the_same_way(compiled):
    """Otherwise a checkpoint would find other tensors the second time."""
    block = make_block()
    x = torch.ones(2, 4, requires_grad=True)
    with no_new_shapes():
        y = checkpoint(block.step, x, None, use_reentrant=False)[0]
    y.sum().backward()
    assert not compiled
    checkpoint(block.step, x, None, use_reentrant=False)[0].sum().backward()
    assert len(compiled) == 1


def test_a_compiled_run_goes_on_as_if_it_never_stopped(tmp_path, compiled):
    """And comes to the weights of a run that is not compiled."""

    def run_to(folder: str, steps: int, **changes: object) -> Path:
        def losses(model, discriminator, batch, step):
            if step == steps:
                raise ZeroDivisionError
            return task.losses(model, discriminator, batch, step)

        task = make_task(dropout=0.0, discriminator_from=2)
        config = settings(tmp_path / folder, ema_decay=0.5, **changes)
        train(replace(task, losses=losses), config, Accelerator(cpu=True))
        return tmp_path / folder

    whole = run_to("whole", 8, compile=True)
    assert len(compiled) == 1
    with pytest.raises(ZeroDivisionError):
        run_to("cut", 5, compile=True)
    assert_equal(final_weights(run_to("cut", 8, compile=True)), final_weights(whole))
    assert_equal(final_weights(run_to("plain", 8)), final_weights(whole))


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    def backend(graph: torch.fx.GraphModule, inputs: Any) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setitem(compiling.OPTIONS, "backend", backend)
    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"trainer\.compile: .*no compiler here\); leave") as e:
        run(make_block(), 1)
    assert "\n" not in str(e.value)


def test_compilation_and_fsdp_exclude_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr("wanvae.engine.training.optimization.asks_for_sharding", lambda _: True)
    with pytest.raises(UserError, match="compile does not work with FSDP: leave one of them out"):
        train(make_task(), settings(tmp_path, compile=True), Accelerator(cpu=True))
