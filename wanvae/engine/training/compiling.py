"""Parts of a model that are compiled for training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from typing import Any, TypeAlias

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from wanvae.engine.text import first_sentence
from wanvae.errors import UserError

# From an input, a state and a region to an output and a state.
Step: TypeAlias = Callable[..., tuple[Tensor, Any]]

# A block is compiled for so many shapes of its input. Other shapes run without compilation.
SHAPES = 16
# Blocks share their compiled code, so PyTorch's own limit of 8 is too low.
OPTIONS: dict[str, Any] = {"dynamic": False}
if "recompile_limit" in signature(torch.compile).parameters:
    OPTIONS["recompile_limit"] = 4096

ALLOWED: ContextVar[bool] = ContextVar("ALLOWED", default=True)


@contextmanager
def no_new_shapes() -> Iterator[None]:
    """Compiles nothing for shapes that are only met in here, because they may be countless."""
    token = ALLOWED.set(False)
    try:
        yield
    finally:
        ALLOWED.reset(token)


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compiles ``step`` of each block, for whole inputs and with gradients.

    Other calls, for example in an evaluation, compute the same as without compilation.
    """
    # A first backward pass must leave its memory alone, because losses may ask for two.
    if hasattr(functorch_config, "donated_buffer"):
        functorch_config.donated_buffer = False
    for block in blocks:
        step: Any = block.step
        vars(block)["step"] = CompiledStep(step)


class CompiledStep:
    """The step of a block, compiled where that pays. The copy of a block has one of its own.

    A step that is run again in a backward pass, to save memory, does what it did the first time.

    Args:
        plain: the method of the block.

    Attributes:
        shapes: of the inputs that the block is compiled for.
    """

    def __init__(self, plain: Step) -> None:
        self.plain = plain
        self.compiled: Step = torch.compile(plain, **OPTIONS)
        self.shapes: set[torch.Size] = set()

    def __reduce__(self) -> tuple[type[CompiledStep], tuple[Step]]:
        return CompiledStep, (self.plain,)

    def __call__(self, x: Tensor, state: Any, region: Any = None) -> tuple[Tensor, Any]:
        if state is not None or region is not None or not torch.is_grad_enabled():
            return self.plain(x, state, region)
        if x.shape not in self.shapes:
            again = torch._C._current_graph_task_id() != -1
            if again or not ALLOWED.get() or len(self.shapes) == SHAPES:
                return self.plain(x, state, region)
            self.shapes.add(x.shape)
            if len(self.shapes) == SHAPES:
                warnings.warn(
                    f"compiled for {SHAPES} shapes; inputs of further shapes run uncompiled",
                    stacklevel=2,
                )
        try:
            with warnings.catch_warnings():
                # PyTorch looks at the gradient of the input while it compiles, and warns of that.
                warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
                return self.compiled(x, None)
        except TorchDynamoException as error:
            why = first_sentence(getattr(error, "inner_exception", error))
            raise UserError(
                f"trainer.compile: PyTorch cannot compile the model ({why}); leave compile out, or "
                "install what is missing"
            ) from error
