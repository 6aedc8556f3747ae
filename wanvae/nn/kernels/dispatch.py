"""The table that says which function computes each operation, by observer and device.

To add an algorithm, write it in its own file and name it in the rows where it is faster. For
example, a fused CUDA kernel for inference belongs to ``Observer.NOBODY`` and ``"cuda"``, and an
operation with a backward pass of its own to ``Observer.AUTOGRAD``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import Enum, auto

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from wanvae.nn.kernels.attention import (
    Projections,
    allocate_at_once,
    allocate_in_blocks,
    attend_at_once,
    attend_in_blocks,
    attend_to,
)
from wanvae.nn.kernels.by_frames import convolve_by_frames, convolve_doubled_contiguously
from wanvae.nn.kernels.convolution import (
    Convolve,
    allocate_convolution,
    convolve_by_pytorch,
    convolve_on_cpu,
    with_fewest_multiplications,
)
from wanvae.nn.kernels.doubled import (
    allocate_doubled,
    allocate_doubled_by_pytorch,
    convolve_doubled_by_pytorch,
    convolve_doubled_in_phases,
)
from wanvae.nn.kernels.gpu import fused
from wanvae.nn.kernels.gpu.operators import has_programs
from wanvae.nn.kernels.history import (
    allocate_joined,
    clone,
    clone_to_pool,
    concatenate,
    forget,
    join_in_native_dtype,
    join_in_place,
    pair_frames,
)
from wanvae.nn.kernels.pointwise import PointwiseFunction, add, add_in_place, apply_before
from wanvae.nn.kernels.precision import in_native_dtype
from wanvae.nn.kernels.rms_norm import (
    allocate_rms_norm,
    rms_norm_by_squares,
    rms_norm_by_vector_norm,
)
from wanvae.nn.kernels.training.attention import (
    attend_to_positions_with_gradients,
    attend_with_gradients,
)
from wanvae.nn.kernels.training.convolution import convolve_in_training, remember_recipe
from wanvae.nn.kernels.training.convolution_1d import convolve_after
from wanvae.nn.kernels.training.doubled import convolve_doubled_with_gradients
from wanvae.nn.kernels.training.dropout import add_dropped
from wanvae.nn.kernels.training.remaking import join_and_remake, rms_norm_and_remake


class Observer(Enum):
    """An observer of the operations of a layer: a transform, autograd, a compiler or nobody."""

    # ``torch.func.vmap`` and forward derivatives follow PyTorch's operations alone.
    TRANSFORM = auto()
    # Gradients are recorded: operations need a backward pass, and nothing is overwritten.
    AUTOGRAD = auto()
    # torch.compile traces: it fuses PyTorch's operations itself, with gradients or without.
    COMPILER = auto()
    # Inference: only the values count.
    NOBODY = auto()


@dataclass(frozen=True)
class Kernels:
    """A function for each operation.

    Attributes:
        convolve: a convolution of any rank: ``(x, weight, bias, stride, padding, dilation)``.
        convolve_doubled: a padded 3x3 convolution of images that are first doubled by repetition:
            ``(x, weight, bias)``.
        join: joins past and new frames to the input of a causal convolution: ``(past, x,
            pointwise, history)``. Returns the input, and the frames for the next piece or None.
        remember: ``(past, x, pointwise, history)`` as for ``join``. Returns how to convolve what is
            joined, if the backward pass can make it again; otherwise None, and ``convolve`` does.
        convolve_after: ``(x, pointwise)``. Returns how to convolve ``x``, without past frames, if
            the convolution applies ``pointwise`` to its input itself; otherwise None.
        clone: copies ``(x, dtype)``; the copy does not keep the memory of ``x``.
        rms_norm: Wan's norm over channels, ``(x, gamma)``.
        attend: attention over the positions of images: ``(layers, images)``.
        attend_to: attention of queries to keys and values, ``(q, k, v, mask)``, ``(B, 1, N, C)``
            each. The mask says whether a query sees a key; None is all keys.
        pair_frames: makes two frames of each frame: ``(x, pointwise)``.
        add: the residual addition, ``(y, pointwise, shortcut)``: ``pointwise`` is applied to ``y``,
            a new tensor that may be overwritten.
        fixed_state_shapes: whether zeros fill the state after one frame to its full length. True
            gives a compiler fewer shapes; False takes less memory.
        bias_apart: whether convolutions leave their bias to the operation after them.
    """

    convolve: Callable[
        [Tensor, Tensor, Tensor | None, Sequence[int], Sequence[int], Sequence[int]], Tensor
    ]
    convolve_doubled: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    join: Callable[
        [Tensor | None, Tensor, Sequence[PointwiseFunction], int], tuple[Tensor, Tensor | None]
    ]
    remember: Callable[[Tensor | None, Tensor, Sequence[PointwiseFunction], int], Convolve | None]
    convolve_after: Callable[[Tensor, Sequence[PointwiseFunction]], Convolve | None]
    clone: Callable[[Tensor, torch.dtype], Tensor]
    rms_norm: Callable[[Tensor, Tensor], Tensor]
    attend: Callable[[Projections, Tensor], Tensor]
    attend_to: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    pair_frames: Callable[[Tensor, Sequence[PointwiseFunction]], Tensor]
    add: Callable[[Tensor, Sequence[PointwiseFunction], Tensor], Tensor]
    fixed_state_shapes: bool
    bias_apart: bool


PYTORCH = Kernels(
    convolve=convolve_by_pytorch,
    convolve_doubled=convolve_doubled_by_pytorch,
    join=concatenate,
    remember=forget,
    convolve_after=apply_before,
    clone=clone,
    rms_norm=rms_norm_by_squares,
    attend=attend_at_once,
    attend_to=attend_to,
    pair_frames=pair_frames,
    add=add,
    fixed_state_shapes=True,
    bias_apart=False,
)

# The gradients of attention have gradients of their own, as all other gradients have.
TRAINING = replace(
    PYTORCH, attend=attend_to_positions_with_gradients, attend_to=attend_with_gradients
)

# Keeps no input of a convolution for the backward pass that norm and activation can make again.
TRAINING_ON_CPU = replace(
    TRAINING,
    convolve=convolve_in_training,
    convolve_doubled=convolve_doubled_with_gradients,
    join=join_and_remake,
    remember=remember_recipe,
    convolve_after=convolve_after,
    rms_norm=rms_norm_and_remake,
    add=add_dropped,
)

COMPILED_ON_CPU = replace(
    PYTORCH,
    convolve=in_native_dtype(convolve_by_pytorch),
    convolve_doubled=in_native_dtype(convolve_doubled_by_pytorch),
)

FUSED_WITH_GRADIENTS = replace(TRAINING, join=fused.concatenate)

IN_PLACE = replace(
    PYTORCH,
    join=join_in_place,
    clone=clone_to_pool,
    rms_norm=rms_norm_by_vector_norm,
    attend=attend_in_blocks,
    add=add_in_place,
    fixed_state_shapes=False,
)

IN_PLACE_ON_CPU = replace(
    IN_PLACE,
    convolve=in_native_dtype(with_fewest_multiplications(convolve_on_cpu)),
    convolve_doubled=in_native_dtype(convolve_doubled_in_phases),
    join=join_in_native_dtype,
)

# Convolutions remain PyTorch's. What lies between two convolutions is one pass through memory.
FUSED = replace(
    PYTORCH,
    convolve=fused.convolve,
    convolve_doubled=fused.convolve_doubled,
    join=fused.join,
    clone=clone,
    rms_norm=fused.rms_norm,
    attend=attend_at_once,
    pair_frames=fused.pair_frames,
    add=fused.add,
    fixed_state_shapes=False,
    bias_apart=True,
)

# Takes the memory of IN_PLACE_ON_CPU without values, so that plans can run on the meta device.
MEMORY_OF_CPU = replace(
    IN_PLACE_ON_CPU,
    convolve=in_native_dtype(with_fewest_multiplications(allocate_convolution)),
    convolve_doubled=in_native_dtype(allocate_doubled),
    join=allocate_joined,
    rms_norm=allocate_rms_norm,
    attend=allocate_in_blocks,
)

# Apple's GPUs. Frames are joined by PyTorch, because nothing may be padded or strided there.
PYTORCH_ON_MPS = replace(
    PYTORCH, convolve=convolve_by_frames, convolve_doubled=convolve_doubled_contiguously
)

TRAINING_ON_MPS = replace(PYTORCH_ON_MPS, attend=TRAINING.attend, attend_to=TRAINING.attend_to)

INFERENCE_ON_MPS = replace(PYTORCH_ON_MPS, attend=attend_in_blocks, fixed_state_shapes=False)

# The same for FUSED.
MEMORY_OF_CUDA = replace(
    FUSED,
    convolve=allocate_convolution,
    convolve_doubled=fused.allocate_doubled,
    attend=allocate_at_once,
)

# The same for IN_PLACE on other devices than the CPU.
MEMORY_OF_OTHERS = replace(
    IN_PLACE,
    convolve=allocate_convolution,
    convolve_doubled=allocate_doubled_by_pytorch,
    rms_norm=allocate_rms_norm,
    attend=allocate_in_blocks,
)

# Rehearses the operations themselves. Only attention takes more memory on the meta device.
MEMORY_OF_MPS = replace(INFERENCE_ON_MPS, attend=allocate_in_blocks)

# The device whose memory is measured on the meta device, for each thread.
REHEARSED: ContextVar[str] = ContextVar("REHEARSED", default="cpu")
META_FOR_CUDA = "meta for cuda"
META_FOR_MPS = "meta for mps"
META_FOR_OTHERS = "meta for others"

# The key None stands for every other device, and for GPUs without the programs of FUSED.
TABLE: dict[Observer, dict[str | None, Kernels]] = {
    Observer.TRANSFORM: {"cpu": PYTORCH, "mps": PYTORCH_ON_MPS, None: PYTORCH},
    Observer.AUTOGRAD: {
        "cpu": TRAINING_ON_CPU,
        "cuda": FUSED_WITH_GRADIENTS,
        "meta": PYTORCH,
        "mps": TRAINING_ON_MPS,
        None: TRAINING,
    },
    Observer.COMPILER: {
        "cpu": COMPILED_ON_CPU,
        "cuda": PYTORCH,
        "meta": COMPILED_ON_CPU,
        "mps": PYTORCH_ON_MPS,
        None: PYTORCH,
    },
    Observer.NOBODY: {
        "cpu": IN_PLACE_ON_CPU,
        "cuda": FUSED,
        "meta": MEMORY_OF_CPU,
        "mps": INFERENCE_ON_MPS,
        META_FOR_CUDA: MEMORY_OF_CUDA,
        META_FOR_MPS: MEMORY_OF_MPS,
        META_FOR_OTHERS: MEMORY_OF_OTHERS,
        None: IN_PLACE,
    },
}


def kernels_for(x: Tensor) -> Kernels:
    """Returns the functions that compute the operations on ``x`` now."""
    observer = current_observer()
    kind: str | None = x.device.type
    if kind == "meta" and REHEARSED.get() != "cpu":
        kind = f"meta for {REHEARSED.get()}"
    elif kind == "cuda" and observer is not Observer.COMPILER and not has_programs(x.device):
        kind = None
    kernels = TABLE[observer]
    return kernels.get(kind) or kernels[None]


def find_rehearsal(device: torch.device) -> str:
    """Returns what to rehearse on the meta device: "cpu", "cuda", "mps" or "others"."""
    if device.type in ("cpu", "mps"):
        return device.type
    return "cuda" if device.type == "cuda" and has_programs(device) else "others"


@contextmanager
def rehearsing(device: str) -> Iterator[None]:
    """Makes tensors on the meta device take the memory of "cpu", "cuda", "mps" or "others"."""
    token = REHEARSED.set(device)
    try:
        yield
    finally:
        REHEARSED.reset(token)


def current_observer() -> Observer:
    """Returns the observer of the operations that run now."""
    if torch.compiler.is_compiling():
        return Observer.COMPILER
    # Functions with a backward pass of their own suit ``torch.func.grad``, but no other transform.
    levels = get_interpreter_stack() or ()
    if any(level.key() != TransformType.Grad for level in levels):
        return Observer.TRANSFORM
    return Observer.AUTOGRAD if torch.is_grad_enabled() else Observer.NOBODY
