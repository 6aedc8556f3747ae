"""Whether results are numbers, at the cost of one pass over them.

A sum tells: it is finite if all values are, except for values near the largest of the dtype, so a
sum that is not is looked into. It needs no memory, and on a GPU it waits for the result once.
"""

from __future__ import annotations

import math
import warnings
from typing import NoReturn

import torch
from torch import Tensor, nn

from wanvae.errors import UserError

# Pixels are in [-1, 1]; values this far outside are pixels from 0 to 255.
LARGEST_PIXEL = 16


class NotFiniteError(UserError):
    """Values that are NaN or infinite, where numbers are needed."""


def is_finite(x: Tensor) -> bool:
    """Whether no value of ``x`` is NaN or infinite."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return bool(x.sum(dtype=wide).isfinite()) or bool(x.isfinite().all())


def check_input(x: Tensor, name: str) -> None:
    """Raise NotFiniteError if the input ``x`` of a model is not finite.

    An input on a GPU is not looked at, because that would wait for what computes it; the result
    tells later.
    """
    if can_look_at(x) and x.device.type == "cpu":
        require_finite_input(x, name)


def check_result(result: Tensor, x: Tensor, *, decoding: bool) -> None:
    """Raise NotFiniteError if what a model computes of ``x`` is not finite, and say why.

    Args:
        result: moments, or video that is not clamped, in the dtype that was computed in.
        decoding: whether ``x`` is latents, and not video.
    """
    if not decoding:
        warn_of_range(x)
    if not can_look_at(result) or is_finite(result):
        return
    name, verb = ("latents", "decode") if decoding else ("video", "encode")
    require_finite_input(x, name)
    refuse(result.dtype, verb)


def warn_of_range(video: Tensor) -> None:
    """Warns if a video is far outside [-1, 1]. A video on a GPU is not looked at."""
    if not can_look_at(video) or video.device.type != "cpu" or not video.numel():
        return
    low, high = (float(value) for value in video.aminmax())
    if LARGEST_PIXEL < max(-low, high) < math.inf:
        warnings.warn(
            f"the video has values from {low:g} to {high:g}, but models take pixels in [-1, 1]: "
            "scale them, as in video / 127.5 - 1",
            stacklevel=2,
        )


def check_weights(model: nn.Module, source: object) -> None:
    """Raises NotFiniteError if a parameter or buffer of a model is not finite.

    Args:
        source: where the weights come from, for the error.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise NotFiniteError(
                f"{source} holds values that are not finite (NaN or infinite), like in {name}: "
                "it is damaged; take an earlier checkpoint"
            )


def check_computed(result: Tensor, dtype: torch.dtype, verb: str) -> None:
    """Raise NotFiniteError if what a model computes of a finite input is not finite.

    Args:
        dtype: the dtype that was computed in.
        verb: what the model does: "encode" or "decode".
    """
    if can_look_at(result) and not is_finite(result):
        refuse(dtype, verb)


def refuse(dtype: torch.dtype, verb: str) -> NoReturn:
    """Raise NotFiniteError for the result of a model that computes in ``dtype``."""
    name = str(dtype).removeprefix("torch.")
    raise NotFiniteError(
        f"the model gives values that are not finite (NaN or infinite) in {name}: "
        f"{advice(dtype, verb)}"
    )


def require_finite_input(x: Tensor, name: str) -> None:
    """Raise NotFiniteError if ``x`` is not finite."""
    if not is_finite(x):
        raise NotFiniteError(
            f"the {name} {'are' if name.endswith('s') else 'is'} not finite (NaN or infinite "
            "values): find out where they come from; a model that overflows in float16 needs "
            "bfloat16 or float32"
        )


def advice(dtype: torch.dtype, verb: str) -> str:
    """What to do about a model that overflows in ``dtype``."""
    if dtype == torch.float16:
        return f"{verb} in bfloat16, which has the range of float32, or in float32"
    if dtype == torch.bfloat16:
        return f"{verb} in float32; if that is no better, the checkpoint is damaged"
    return "the checkpoint is damaged, or the input has values far outside of its range"


def can_look_at(x: Tensor) -> bool:
    """Whether ``x`` has values, and looking at them breaks nothing that records operations."""
    if x.is_meta or torch.compiler.is_compiling():
        return False
    # PyTorch cannot be asked before it has started CUDA, as with fake tensors.
    started = x.is_cuda and torch.cuda.is_initialized()
    return not (started and torch.cuda.is_current_stream_capturing())
