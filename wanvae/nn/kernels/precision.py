"""Which dtype a layer computes in, and which dtype its output has."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

LOGGER = logging.getLogger("wanvae")
Geometry = ParamSpec("Geometry")
# An operation on an input, a weight and a bias, and on what says where the kernel is applied.
Weighted = Callable[Concatenate[Tensor, Tensor, Tensor, Geometry], Tensor]


def find_emulated_dtypes() -> frozenset[torch.dtype]:
    """The dtypes that an x86 CPU has no instructions for.

    PyTorch computes in these dtypes all the same, several times slower than in float32.
    """
    native = {
        torch.bfloat16: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        torch.float16: torch.cpu._is_amx_fp16_supported(),
    }
    x86 = platform.machine() in ("x86_64", "AMD64")
    return frozenset(dtype for dtype, supported in native.items() if x86 and not supported)


EMULATED_DTYPES = find_emulated_dtypes()


def native_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in on the CPU: float32 where the CPU only emulates ``dtype``."""
    return torch.float32 if dtype in EMULATED_DTYPES else dtype


def default_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in where nobody asks for one: ``stored``, unless a CPU emulates it."""
    return native_dtype(stored) if device.type == "cpu" else stored


def emulated_among(dtypes: Iterable[torch.dtype]) -> list[str]:
    """The names of the dtypes among some that this CPU only emulates."""
    emulated = EMULATED_DTYPES.intersection(dtypes)
    return sorted(str(dtype).removeprefix("torch.") for dtype in emulated)


def tell_of_emulation(path: object, stored: torch.dtype) -> None:
    """Log one line that says why a checkpoint is not computed in the dtype that it has."""
    name = str(stored).removeprefix("torch.")
    LOGGER.warning(
        "%s holds %s, which this CPU only emulates, many times slower: computing in float32 "
        "(dtype=%s keeps it)",
        path,
        name,
        stored,
    )


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype for statistics of ``x``: float32, or float64 where ``x`` has it."""
    return torch.promote_types(x.dtype, torch.float32)


def autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """The dtype of autocast for a layer with this weight; None where autocast changes nothing.

    Autocast leaves float64 alone and does not know the meta device.
    """
    kind = weight.device.type
    if weight.is_meta or weight.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def output_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of what a layer gives: autocast's dtype under autocast, else the weight's."""
    return autocast_dtype(weight) or weight.dtype


def in_native_dtype_of_weights(operation: Weighted[Geometry]) -> Weighted[Geometry]:
    """``operation`` in float32 where the CPU only emulates the dtype of the weights.

    It can be trained through, and PyTorch has not every backward pass in every half type. Under
    autocast autocast's dtype is taken even where the CPU emulates it, which is PyTorch's rule.
    """

    def convert_and_run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *args: Geometry.args,
        **kwargs: Geometry.kwargs,
    ) -> Tensor:
        dtype = weight.dtype
        native = native_dtype(dtype)
        if native == dtype or autocast_dtype(weight) is not None:
            return operation(x, weight, bias, *args, **kwargs)
        bias = bias if bias is None else bias.to(native)
        return operation(x.to(native), weight.to(native), bias, *args, **kwargs).to(dtype)

    return convert_and_run


def in_native_dtype(operation: Weighted[Geometry]) -> Weighted[Geometry]:
    """``operation`` for the CPU, in float32 where the CPU only emulates the dtype of the output.

    The input, the weight and the bias reach ``operation`` in one dtype, and without autocast, which
    would change the dtypes of single steps of an algorithm. The output has ``output_dtype``.
    """

    def convert_and_run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *args: Geometry.args,
        **kwargs: Geometry.kwargs,
    ) -> Tensor:
        autocast = autocast_dtype(weight)
        dtype = autocast or weight.dtype
        native = native_dtype(dtype)
        if autocast is None:
            y = operation(x.to(native), weight.to(native), bias.to(native), *args, **kwargs)
        else:
            with torch.autocast(weight.device.type, enabled=False):
                y = operation(x.to(native), weight.to(native), bias.to(native), *args, **kwargs)
        return y.to(dtype)

    return convert_and_run
