"""The operators ``torch.ops.wanvae``, and what computes them on each device.

Compilers and fake tensors see one operator where ``plain`` takes several operations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from wanvae.nn.kernels.gpu import plain

LOGGER = logging.getLogger("wanvae")
LIBRARY = torch.library.Library("wanvae", "DEF")
# Triton's programs are for these dtypes, and for GPUs from this compute capability on.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
# The first PyTorch whose Triton compiles these programs.
LEAST_PYTORCH = "2.7"


@dataclass(frozen=True)
class Operator:
    """An operator.

    Attributes:
        schema: its arguments and results.
        in_pytorch: computes it by PyTorch's operations.
        fake: allocates its results without values.
        fits: whether the shapes of its arguments suit each other. A program does not look at
            shapes, and would read beyond the end of a tensor. PyTorch's operations raise an error.
    """

    schema: str
    in_pytorch: Callable[..., Any]
    fake: Callable[..., Any]
    fits: Callable[..., bool]


DEFINITIONS: dict[str, Operator] = {
    "join": Operator(
        "(Tensor? past, Tensor x, Tensor? bias, Tensor? gamma, str activation, int history, "
        "int kept) -> (Tensor, Tensor)",
        plain.join,
        plain.allocate_joined,
        plain.join_fits,
    ),
    "add_": Operator(
        "(Tensor(a!) y, Tensor? bias, Tensor shortcut) -> Tensor(a!)",
        plain.add_,
        plain.keep,
        lambda y, bias, shortcut: y.shape == shortcut.shape and plain.is_for(y.shape[1], bias),
    ),
    "make_phases": Operator(
        "(Tensor weight) -> Tensor",
        plain.make_phases,
        plain.allocate_phases,
        lambda weight: weight.shape[2:] == (3, 3),
    ),
    "interleave": Operator(
        "(Tensor phases, Tensor? bias) -> Tensor",
        plain.interleave,
        plain.allocate_interleaved,
        lambda phases, bias: plain.is_for(phases.shape[1] / 4, bias),
    ),
    "interleave_frames": Operator(
        "(Tensor x, Tensor? bias) -> Tensor",
        plain.interleave_frames,
        plain.allocate_doubled_frames,
        lambda x, bias: x.shape[1] % 2 == 0 and plain.is_for(x.shape[1], bias),
    ),
    "norm_activate_backward": Operator(
        "(Tensor grad, Tensor x, Tensor gamma, str activation) -> (Tensor, Tensor)",
        plain.norm_activate_backward,
        plain.allocate_gradients,
        lambda grad, x, gamma, _: grad.shape == x.shape and plain.is_for(x.shape[1], gamma),
    ),
}


def register(name: str) -> None:
    """Makes an operator known to PyTorch."""
    operator = DEFINITIONS[name]
    LIBRARY.define(name + operator.schema)
    LIBRARY.impl(name, operator.in_pytorch, "CompositeExplicitAutograd")
    LIBRARY.impl(name, partial(compute_on_cuda, name), "CUDA")
    torch.library.register_fake(f"wanvae::{name}", operator.fake, lib=LIBRARY)


def compute_on_cuda(name: str, *arguments: Any) -> Any:
    """Computes an operator by its program in Triton; by PyTorch if its program cannot."""
    operator = DEFINITIONS[name]
    if not (can_launch(arguments) and operator.fits(*arguments)):
        return operator.in_pytorch(*arguments)
    from wanvae.nn.kernels.gpu import programs

    return getattr(programs, name)(*arguments)


def can_launch(arguments: Sequence[Any]) -> bool:
    """Returns whether Triton's programs can compute an operator on its arguments."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    device = tensors[0].device
    return all(x.dtype in DTYPES and x.device == device for x in tensors) and has_programs(device)


@cache
def has_programs(device: torch.device) -> bool:
    """Returns whether a CUDA device can run Triton's programs.

    The first call for a device tries it. The log says so once if it fails.
    """
    if not programs_exist():
        return False
    if not torch.cuda.is_available():
        return True  # a fake tensor, which shows what a GPU would do
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return False
    try:
        try_programs(device)
    except torch.OutOfMemoryError:
        raise  # says nothing about programs
    # Triton and the compilers that it calls raise errors of many kinds.
    except Exception as error:
        LOGGER.warning(
            "Triton cannot compile a program for %s, so it runs PyTorch's operations, which take "
            "more time and memory: %s: %s (Triton needs a C compiler, and a cache folder that it "
            "can write, TRITON_CACHE_DIR)",
            device,
            type(error).__name__,
            " ".join(str(error).split())[:200],
        )
        return False
    return True


def try_programs(device: torch.device) -> None:
    """Compiles and launches a small program on a device."""
    from wanvae.nn.kernels.gpu import programs

    # Here and now, also if the caller works with fake tensors or counts operations.
    with _disable_current_modes():
        y, shortcut = (torch.zeros(1, 1, 1, device=device) for _ in range(2))
        programs.add_(y, None, shortcut)


def programs_exist() -> bool:
    """Returns whether this PyTorch has programs in Triton for its GPUs.

    They are untried on GPUs of AMD, so these run PyTorch's operations.
    """
    known = torch.__version__ >= LEAST_PYTORCH and torch.version.hip is None
    return known and find_spec("triton") is not None


for defined in DEFINITIONS:
    register(defined)

OPERATORS = torch.ops.wanvae
