"""Where programs run, the sizes of their blocks, and the choice of the fastest settings."""

from __future__ import annotations

import pytest
import torch
from torch.torch_version import TorchVersion

pytest.importorskip("triton", minversion="3.3")

from wanvae.nn.kernels.gpu import operators, programs
from wanvae.nn.kernels.gpu.operators import can_launch, compute_on_cuda, has_programs
from wanvae.nn.kernels.gpu.programs import settings
from wanvae.nn.kernels.gpu.programs.rows import as_video, choose_block, strides_of


@pytest.mark.parametrize(
    "capability, pytorch, hip, expected",
    [
        ((8, 0), "2.7.0", None, True),
        ((12, 0), "2.14.1+cu130", None, True),
        ((7, 5), "2.7.0", None, False),
        ((9, 0), "2.6.1+cu124", None, False),
        ((9, 4), "2.7.0", "6.3", False),
    ],
)
def test_where_programs_run(monkeypatch, capability, pytorch, hip, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch, "__version__", TorchVersion(pytorch))
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(operators, "try_programs", lambda _: None)
    assert has_programs.__wrapped__(torch.device("cuda")) == expected


def test_a_gpu_for_which_triton_cannot_compile_runs_pytorch(monkeypatch, caplog):
    def try_programs(device):
        raise RuntimeError("Failed to find C compiler.\n Please specify via CC")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(operators, "try_programs", try_programs)
    assert not has_programs.__wrapped__(torch.device("cuda"))
    (record,) = caplog.records
    assert "RuntimeError: Failed to find C compiler. Please specify via CC (" in record.message


def test_a_gpu_without_memory_is_not_one_without_programs(monkeypatch):
    def try_programs(device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(operators, "try_programs", try_programs)
    with pytest.raises(torch.OutOfMemoryError):
        has_programs.__wrapped__(torch.device("cuda"))


def test_programs_take_tensors_of_one_device_and_known_dtypes(monkeypatch):
    monkeypatch.setattr(operators, "has_programs", lambda _: True)
    x, half = torch.empty(2), torch.empty(2, dtype=torch.bfloat16)
    assert can_launch([None, x, half, "silu", 0])
    assert not can_launch([x, x.to("meta")])
    assert not can_launch([x, x.double()])


def x(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


# Arguments whose shapes suit each other, and shapes that do not.
FITTING = {
    "join": [x(2, 4, 1, 3, 3), x(2, 4, 2, 3, 3), x(4), x(4, 1, 1, 1), "none", 2, 2],
    "add_": [x(2, 4, 3), x(4), x(2, 4, 3)],
    "make_phases": [x(4, 2, 3, 3)],
    "interleave": [x(1, 8, 3, 3), x(2)],
    "interleave_frames": [x(1, 8, 2, 3, 3), x(8)],
    "norm_activate_backward": [x(1, 4, 3), x(1, 4, 3), x(4, 1), "silu"],
}
UNFITTING = [
    ("join", 0, (2, 4, 1, 3, 2)),
    ("join", 0, (1, 5, 1, 3, 3)),
    ("join", 2, (3,)),
    ("join", 3, (8, 1, 1, 1)),
    ("add_", 1, (3,)),
    ("add_", 2, (2, 4, 2)),
    ("make_phases", 0, (4, 2, 2, 2)),
    ("interleave", 1, (8,)),
    ("interleave_frames", 1, (4,)),
    ("norm_activate_backward", 0, (1, 4, 2)),
    ("norm_activate_backward", 2, (3, 1)),
]


@pytest.fixture
def launched(monkeypatch):
    """The names of the programs that are called instead of launched."""
    names: list[str] = []
    monkeypatch.setattr(operators, "has_programs", lambda _: True)
    for name in FITTING:
        monkeypatch.setattr(programs, name, lambda *_, name=name: names.append(name))
    return names


@pytest.mark.parametrize("name", FITTING)
def test_shapes_that_fit_are_launched(launched, name):
    compute_on_cuda(name, *FITTING[name])
    assert launched == [name]
    assert FITTING.keys() == operators.DEFINITIONS.keys()


@pytest.mark.parametrize(("name", "index", "shape"), UNFITTING, ids=str)
def test_a_program_never_reads_beyond_the_end_of_a_tensor(launched, name, index, shape):
    """A GPU would give wrong values, or stop the process. PyTorch raises an error."""
    arguments = [*FITTING[name]]
    arguments[index] = x(*shape)
    with pytest.raises((RuntimeError, ValueError)):
        compute_on_cuda(name, *arguments)
    assert launched == []


def test_a_shortcut_may_repeat_values_as_in_pytorch(launched):
    y, shortcut = torch.ones(2, 4, 3), torch.ones(1, 4, 1)
    assert (compute_on_cuda("add_", y, None, shortcut) == 2).all()
    assert launched == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_blocks_are_powers_of_two(dtype):
    for channels in range(1, 4097):
        chunk, positions = choose_block(channels, dtype)
        for number in (chunk, positions):
            assert number & (number - 1) == 0
        assert 4 <= positions <= 256
        # 32 threads hold a row of a chunk.
        assert chunk * dtype.itemsize <= 512
        # A chunk holds at most as many idle channels as a power of two must.
        assert channels % chunk == 0 or chunk < 2 * channels


@pytest.mark.parametrize(
    "channels, dtype, block",
    [
        (96, torch.bfloat16, (32, 32)),
        (192, torch.bfloat16, (64, 16)),
        (384, torch.bfloat16, (128, 8)),
        (1024, torch.bfloat16, (256, 4)),
        (96, torch.float32, (32, 32)),
        (384, torch.float32, (128, 8)),
        (3, torch.bfloat16, (4, 256)),
    ],
)
def test_blocks_of_the_models(channels, dtype, block):
    assert choose_block(channels, dtype) == block


def test_positions_of_one_distance_have_one_stride():
    x = torch.empty(2, 4, 5, 6, 8)
    assert strides_of(x) == (960, 240, None, None, 1)
    assert strides_of(x[:, :, 1:3]) == (960, 240, None, None, 1)
    assert strides_of(x[..., ::2]) == (960, 240, None, None, 2)
    assert strides_of(x[:, :, :, 1:]) == (960, 240, 48, 8, 1)
    assert strides_of(x[..., :1]) == (960, 240, None, None, 8)
    assert strides_of(x[:, :, :1, :1, :1]) == (960, 240, None, None, 4)
    assert strides_of(x[..., :1].expand_as(x)) == (960, 240, 48, 8, 0)
    assert strides_of(as_video(x[:, :, 0, 0])) == (960, 240, None, None, 1)
    assert strides_of(as_video(x[:, :, 0].mT)) == (960, 240, 1, 8, 1)


def test_the_fastest_settings_are_measured_once(monkeypatch):
    measured, launched = [], []

    def measure(launch: settings.Launch, some: settings.Settings) -> float:
        measured.append(some)
        return -some.warps

    monkeypatch.setattr(settings, "FASTEST", {})
    monkeypatch.setattr(settings, "can_measure", lambda _: True)
    monkeypatch.setattr(settings, "measure", measure)
    for frames in (1, 2):
        settings.launch_fastest(launched.append, torch.empty(1, 4, frames), "name")
    assert measured == [*settings.SETTINGS]
    assert launched == [settings.Settings(2, 8)] * 2
    settings.launch_fastest(launched.append, torch.empty(1, 5, 1), "name")
    assert len(measured) == 2 * len(settings.SETTINGS)


def test_nothing_is_measured_on_the_cpu(monkeypatch):
    launched = []
    monkeypatch.setattr(settings, "FASTEST", {})
    monkeypatch.setattr(settings, "FEWEST_VALUES", 1)
    settings.launch_fastest(launched.append, torch.empty(1, 4, 2), "name")
    assert launched == [settings.SETTINGS[0]]
    assert not settings.FASTEST
