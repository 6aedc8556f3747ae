"""The dtype in which a layer computes, and the dtype of its output."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

LOGGER = logging.getLogger("wanvae")
Geometry = ParamSpec("Geometry")
# An operation on an input, a weight, a bias, and numbers such as stride and padding.
Weighted = Callable[Concatenate[Tensor, Tensor, "Tensor | None", Geometry], Tensor]


def find_emulated_dtypes() -> frozenset[torch.dtype]:
    """Returns the dtypes for which an x86 CPU has no instructions.

    PyTorch emulates these dtypes, several times slower than float32.
    """
    native = {
        torch.bfloat16: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        torch.float16: torch.cpu._is_amx_fp16_supported(),
    }
    x86 = platform.machine() in ("x86_64", "AMD64")
    return frozenset(dtype for dtype, supported in native.items() if x86 and not supported)


def find_slow_dtypes() -> frozenset[torch.dtype]:
    """Returns the half types in which an x86 CPU convolves more slowly than in float32.

    Only AMX makes half types faster. With AVX512-BF16 alone, one thread of oneDNN takes 1.6 to 1.9
    times as long in bfloat16 as in float32, forward and backward, for the convolutions of the
    full-size model with 3x3 kernels and 96 to 384 channels.
    """
    native = {
        torch.bfloat16: torch.cpu._is_amx_tile_supported(),
        torch.float16: torch.cpu._is_amx_fp16_supported(),
    }
    x86 = platform.machine() in ("x86_64", "AMD64")
    return frozenset(dtype for dtype, supported in native.items() if x86 and not supported)


EMULATED_DTYPES = find_emulated_dtypes()
# Autocast convolves in float32 instead of these.
SLOW_DTYPES = find_slow_dtypes()


def native_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype to compute in on the CPU: float32 if the CPU only emulates ``dtype``."""
    return torch.float32 if dtype in EMULATED_DTYPES else dtype


def choose_dtypes(
    path: object,
    networks: Iterable[tuple[torch.dtype, torch.dtype | None]],
    device: torch.device,
) -> list[torch.dtype | None]:
    """Returns the dtypes to convert the networks of a checkpoint to; None keeps what is stored.

    Where nobody asks for a dtype, a half type that the CPU only emulates becomes float32. The log
    says so, once for each such type.

    Args:
        path: of the checkpoint, for the log.
        networks: for each network, the dtype that is stored and the dtype that is asked for.
        device: of the networks.
    """
    chosen, emulated = [], set()
    for stored, asked in networks:
        if asked is None and device.type == "cpu" and stored in EMULATED_DTYPES:
            emulated.add(stored)
            asked = native_dtype(stored)
        chosen.append(asked)
    for stored in sorted(emulated, key=str):
        tell_of_emulation(path, stored)
    return chosen


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
    """Returns the dtype for statistics of ``x``: float64 if ``x`` is float64, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """Returns autocast's dtype for a layer with this weight; None if autocast changes nothing.

    Autocast does not change float64 and does not know the meta device.
    """
    kind = weight.device.type
    if weight.is_meta or weight.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def output_dtype(weight: Tensor) -> torch.dtype:
    """Returns the dtype of the output of a layer: autocast's dtype, or the dtype of the weight."""
    return autocast_dtype(weight) or weight.dtype


def computing_dtype(weight: Tensor) -> torch.dtype:
    """Returns the dtype in which a CPU convolves with this weight.

    This is ``output_dtype``, or float32 where that is faster. Float32 is at least as exact, because
    it holds all values of half types.
    """
    dtype = autocast_dtype(weight)
    if dtype is None:
        return native_dtype(weight.dtype)
    return torch.float32 if dtype in SLOW_DTYPES else dtype


def convert(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns a bias in another dtype; None stays None."""
    return None if bias is None else bias.to(dtype)


def in_native_dtype(operation: Weighted[Geometry]) -> Weighted[Geometry]:
    """Returns ``operation``, computed in ``computing_dtype``.

    ``operation`` gets the input, the weight and the bias in one dtype, and runs without autocast,
    because autocast would change dtypes inside an algorithm. The output has ``output_dtype``.
    """

    def convert_and_run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *args: Geometry.args,
        **kwargs: Geometry.kwargs,
    ) -> Tensor:
        autocast = autocast_dtype(weight)
        dtype, native = output_dtype(weight), computing_dtype(weight)
        if autocast is None:
            y = operation(x.to(native), weight.to(native), convert(bias, native), *args, **kwargs)
        else:
            x, weight, bias = x.to(native), weight.to(native), convert(bias, native)
            with torch.autocast(weight.device.type, enabled=False):
                y = operation(x, weight, bias, *args, **kwargs)
        return y.to(dtype)

    return convert_and_run
