"""The operators ``torch.ops.wanvae``, and what computes them on each device.

Compilers and fake tensors see one operator where ``plain`` takes several operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wanvae.nn.kernels.gpu import plain

LIBRARY = torch.library.Library("wanvae", "DEF")
# Triton's programs are for these dtypes, and for GPUs from this compute capability on.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
# The first PyTorch whose Triton compiles these programs.
LEAST_PYTORCH = "2.7"
DEFINITIONS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {
    "join": (
        "(Tensor? past, Tensor x, Tensor? bias, Tensor? gamma, str activation, int history, "
        "int kept) -> (Tensor, Tensor)",
        plain.join,
        plain.allocate_joined,
    ),
    "add_": (
        "(Tensor(a!) y, Tensor? bias, Tensor shortcut) -> Tensor(a!)",
        plain.add_,
        plain.keep,
    ),
    "make_phases": ("(Tensor weight) -> Tensor", plain.make_phases, plain.allocate_phases),
    "interleave": (
        "(Tensor phases, Tensor? bias) -> Tensor",
        plain.interleave,
        plain.allocate_interleaved,
    ),
    "interleave_frames": (
        "(Tensor x, Tensor? bias) -> Tensor",
        plain.interleave_frames,
        plain.allocate_doubled_frames,
    ),
    "norm_activate_backward": (
        "(Tensor grad, Tensor x, Tensor gamma, str activation) -> (Tensor, Tensor)",
        plain.norm_activate_backward,
        plain.allocate_gradients,
    ),
}


def register(name: str) -> None:
    """Makes an operator known to PyTorch."""
    schema, in_pytorch, fake = DEFINITIONS[name]

    def on_cuda(*arguments: Any) -> Any:
        if not can_launch(arguments):
            return in_pytorch(*arguments)
        from wanvae.nn.kernels.gpu import programs

        return getattr(programs, name)(*arguments)

    LIBRARY.define(name + schema)
    LIBRARY.impl(name, in_pytorch, "CompositeExplicitAutograd")
    LIBRARY.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"wanvae::{name}", fake, lib=LIBRARY)


def can_launch(arguments: Any) -> bool:
    """Returns whether Triton's programs can compute an operator on its arguments."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return all(x.dtype in DTYPES for x in tensors) and has_programs(tensors[0].device)


@cache
def has_programs(device: torch.device) -> bool:
    """Returns whether a CUDA device can run Triton's programs."""
    return programs_exist() and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def programs_exist() -> bool:
    """Returns whether this PyTorch has programs in Triton for its GPUs.

    They are untried on GPUs of AMD, so these run PyTorch's operations.
    """
    known = torch.__version__ >= LEAST_PYTORCH and torch.version.hip is None
    return known and find_spec("triton") is not None


for operator in DEFINITIONS:
    register(operator)

OPERATORS = torch.ops.wanvae
