"""Where programs run, the sizes of their blocks, and the choice of the fastest settings."""

from __future__ import annotations

import pytest
import torch
from torch.torch_version import TorchVersion

pytest.importorskip("triton", minversion="3.3")

from wanvae.nn.kernels.gpu.operators import has_programs
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
    assert has_programs.__wrapped__(torch.device("cuda")) == expected


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
