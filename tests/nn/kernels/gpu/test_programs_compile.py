"""Triton compiles the programs for GPUs that are not there, and what it makes of them is fast."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.3")

import triton
from triton.backends.compiler import GPUTarget

from wanvae.nn.kernels.gpu import programs
from wanvae.nn.kernels.gpu.operators import DEFINITIONS
from wanvae.nn.kernels.gpu.programs import settings

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DEVICES = count(1000)


@dataclass
class Compiler:
    """Compiles what is launched, instead of running it.

    Attributes:
        ttgir: Triton's representation of the last program, with its layouts.
        ptx: the assembly of the last program.
        spilled: bytes that a thread of the last program moves from registers to memory.
    """

    compile: Callable[..., Any]
    ttgir: str = field(init=False)
    ptx: str = field(init=False)
    spilled: int = field(init=False)

    def launch(
        self, program: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any
    ) -> None:
        """Takes the place of the method that launches a program."""
        with redirect_stdout(io.StringIO()) as log:
            kernel = self.compile(program, *arguments, grid=grid, warmup=True, **options)
        self.ttgir, self.ptx = kernel.asm["ttgir"], kernel.asm["ptx"]
        self.spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", log.getvalue())))

    @property
    def widths(self) -> set[str]:
        """How much the instructions read from and write to memory at once."""
        return set(re.findall(r"(?:ld|st)\.global[^ ]*?((?:\.v\d)?\.b\d+) ", self.ptx))


@pytest.fixture
def compiler(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> Iterator[Compiler]:
    """A compiler for a GPU of the compute capability ``request.param``."""
    device = next(DEVICES)  # nothing is compiled for this device yet
    driver = SimpleNamespace(
        get_current_device=lambda: device,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", getattr(request, "param", 90), 32),
    )
    compiler = Compiler(triton.JITFunction.run)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(triton.JITFunction, "run", lambda *a, **k: compiler.launch(*a, **k))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    return compiler


def innermost(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor with channels innermost."""
    return torch.empty_permuted(shape, (0, *range(2, len(shape)), 1), dtype=dtype)


def arguments_of(operator: str, channels: int, dtype: torch.dtype) -> list[Any]:
    """What a model calls an operator with."""
    x, past = (innermost(1, channels, frames, 16, 16, dtype=dtype) for frames in (4, 2))
    bias, gamma = torch.empty(channels, dtype=dtype), torch.empty(channels, 1, 1, 1, dtype=dtype)
    return {
        "join": [past, x, bias, gamma, "silu", 2, 2],
        "add_": [x, bias, x],
        "make_phases": [torch.empty(channels, channels, 3, 3, dtype=dtype)],
        "interleave": [innermost(4, 4 * channels, 17, 17, dtype=dtype), bias],
        "interleave_frames": [innermost(1, 2 * channels, 4, 16, 16, dtype=dtype), bias],
        "norm_activate_backward": [x, x, gamma, "silu"],
    }[operator]


@pytest.mark.parametrize("operator", DEFINITIONS)
def test_each_operator_has_a_program_with_its_signature(operator):
    program = inspect.signature(getattr(programs, operator))
    reference = inspect.signature(DEFINITIONS[operator].in_pytorch)
    assert [*program.parameters] == [*reference.parameters]
    assert program.return_annotation == reference.return_annotation


def check(compiler: Compiler, operator: str, channels: int, dtype: torch.dtype) -> None:
    """Checks that an operator compiles, and that its values fit into registers."""
    getattr(programs, operator)(*arguments_of(operator, channels, dtype))
    # One or two numbers are spilled where that lets more threads run.
    assert compiler.spilled <= 8
    if dtype == torch.bfloat16:
        # Values are rounded to the nearest, which the interpreter cannot show.
        assert "bf16" in compiler.ptx
        assert set(re.findall(r"\.(r\w)\.bf16", compiler.ptx)) <= {"rn"}


@pytest.mark.parametrize("operator", DEFINITIONS)
@pytest.mark.parametrize("compiler", [80, 90], indirect=True)
def test_programs_compile(compiler, operator):
    check(compiler, operator, 96, torch.bfloat16)
    if operator == "make_phases":
        return
    # Sums of gradients are the only values that are not read or written 16 bytes at once.
    widths = {".v4.b32"} | ({".b32"} if operator == "norm_activate_backward" else set())
    assert compiler.widths == widths
    if operator != "norm_activate_backward":
        # Threads of different warps need nothing from each other.
        assert "bar.sync" not in compiler.ptx


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 16, 96, 100, 160, 384, 1024])
@pytest.mark.parametrize("operator", DEFINITIONS)
@pytest.mark.parametrize("compiler", [80, 90], indirect=True)
def test_programs_compile_for_any_channels(compiler, operator, channels, dtype):
    check(compiler, operator, channels, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("compiler", [80, 90, 120], indirect=True)
def test_programs_compile_for_other_arguments(compiler, dtype):
    past, x, bias, gamma, _, _, _ = arguments_of("join", 96, dtype)
    crop, past_crop, planes = x[..., 1:, 2:-1], past[..., 1:, 2:-1], x.contiguous()
    for activation in ("none", "relu"):
        programs.join(None, x, None, None, activation, 2, 2)
        programs.join(past, x, None, gamma, activation, 2, 0)
        programs.norm_activate_backward(x, x, gamma, activation)
    programs.join(past_crop, crop, bias, gamma, "silu", 2, 2)
    programs.join(past, planes, bias, gamma, "silu", 2, 2)
    programs.join(past.float(), x, bias.float(), gamma.float(), "silu", 2, 2)
    programs.join(None, x[:, :, 0], None, gamma, "none", 0, 0)
    programs.join(None, x[:, :, 0, 0], None, gamma, "none", 0, 0)
    programs.add_(crop, None, crop)
    programs.add_(planes, None, x)
    programs.interleave(innermost(4, 384, 17, 17, dtype=dtype).contiguous(), None)
    programs.interleave_frames(crop, None)
    programs.interleave_frames(planes, None)
    programs.norm_activate_backward(crop, planes[..., 1:, 2:-1], gamma, "silu")
    programs.norm_activate_backward(torch.ones((), dtype=dtype).expand(x.shape), x, gamma, "silu")
    programs.make_phases(innermost(96, 96, 3, 3, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [16, 96, 100, 384, 1024])
def test_settings_do_not_change_the_order_of_sums(compiler, monkeypatch, channels, dtype):
    orders = set()
    for some in settings.SETTINGS:
        monkeypatch.setattr(settings, "SETTINGS", (some,))
        programs.join(*arguments_of("join", channels, dtype))
        orders |= orders_of_sums(compiler.ttgir)
    (order,) = orders
    assert order.endswith("1 warp")


def orders_of_sums(ttgir: str) -> set[str]:
    """Returns how sums over channels are divided among threads."""
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<\{(.*)\}>", ttgir, re.MULTILINE))
    sums = r'"tt\.reduce".*?axis = 1 .*?\}\).*?: \(tensor<\d+x(\d+)xf32, (#\w+)>\)'
    orders = set()
    for channels, layout in re.findall(sums, ttgir, re.DOTALL):
        values, threads, warps = re.findall(r"= \[\d+, (\d+)\]", layouts[layout])[:3]
        orders.add(f"{channels} channels, {values} a thread, {threads} threads, {warps} warp")
    return orders
